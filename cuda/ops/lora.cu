#include "cuda/ops/lora.h"

#include <algorithm>

#include "cuda/kernels/lora.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"

namespace gantrain::cuda {

namespace {

void scale(const Context& context, float* x, float factor, int64_t count) {
  constexpr int kThreads = 256;
  const bool wide = count % 4 == 0 && aligned_to(16, x);
  launch(wide ? scale_kernel<4, kThreads> : scale_kernel<1, kThreads>,
         blocks_for(count, wide ? 4 * kThreads : kThreads), kThreads, 0, context.stream, x, factor, count);
}

}  // namespace

int64_t lora_ranks(std::span<const LoraPartBackward> parts) {
  int64_t rank = 0;
  for (const LoraPartBackward& p : parts) rank = std::max(rank, p.a.dim(0));
  return rank;
}

void lora_forward(const Context& context, std::span<const LoraPart> parts, int64_t n, const float* x,
                  float* y, int64_t ldy) {
  for (const LoraPart& p : parts) {
    const int64_t r = p.a.dim(0), in = p.a.dim(1), o = p.b.dim(0);
    float *z = raw<float>(p.z), *to = y + p.first;
    matmul(context, {.m = n,
                     .n = r,
                     .k = in,
                     .a = x,
                     .lda = in,
                     .b = p.a.raw(),
                     .ldb = in,
                     .transpose_b = true,
                     .c = z,
                     .ldc = r});
    scale(context, z, p.scale, n * r);
    matmul(context, {.m = n,
                     .n = o,
                     .k = r,
                     .a = z,
                     .lda = r,
                     .b = p.b.raw(),
                     .ldb = r,
                     .transpose_b = true,
                     .c = to,
                     .ldc = ldy,
                     .addend = to});
  }
}

void lora_backward(const Context& context, std::span<const LoraPartBackward> parts, int64_t n, const float* x,
                   const float* dy, int64_t ldy, float* dx, float* dz) {
  for (const LoraPartBackward& p : parts) {
    const int64_t r = p.a.dim(0), in = p.a.dim(1), o = p.b.dim(0);
    const float* from = dy + p.first;
    float *da = raw<float>(p.da), *db = raw<float>(p.db);
    matmul(context,
           {.m = n, .n = r, .k = o, .a = from, .lda = ldy, .b = p.b.raw(), .ldb = r, .c = dz, .ldc = r});
    scale(context, dz, p.scale, n * r);
    matmul(context, {.m = n,
                     .n = in,
                     .k = r,
                     .a = dz,
                     .lda = r,
                     .b = p.a.raw(),
                     .ldb = in,
                     .c = dx,
                     .ldc = in,
                     .addend = dx});
    matmul(context, {.m = r,
                     .n = in,
                     .k = n,
                     .a = dz,
                     .lda = r,
                     .transpose_a = true,
                     .b = x,
                     .ldb = in,
                     .c = da,
                     .ldc = in,
                     .addend = da});
    matmul(context, {.m = o,
                     .n = r,
                     .k = n,
                     .a = from,
                     .lda = ldy,
                     .transpose_a = true,
                     .b = p.z.raw(),
                     .ldb = r,
                     .c = db,
                     .ldc = r,
                     .addend = db});
  }
}

}  // namespace gantrain::cuda
