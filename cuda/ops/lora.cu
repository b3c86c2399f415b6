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

// to = or += what dropout leaves of from (n, width), divided by 1 - dropout.
template <bool kAdd, typename Part>
void drop(const Context& context, const Part& p, int64_t n, int64_t width, const float* from, float* to) {
  constexpr int kThreads = 64;
  const bool wide = width % 4 == 0 && aligned_to(16, from, to);
  launch(wide ? dropout_kernel<kAdd, 4, kThreads> : dropout_kernel<kAdd, 1, kThreads>,
         dim3(blocks_for(n, 1), blocks_for(width, 4 * kThreads)), kThreads, 0, context.stream, from, to,
         p.key, dropout_bound(p.dropout), 1.0f / (1.0f - p.dropout), static_cast<int>(width));
}

}  // namespace

int64_t lora_ranks(std::span<const LoraPartBackward> parts) {
  int64_t rank = 0;
  for (const LoraPartBackward& p : parts) rank = std::max(rank, p.a.dim(0));
  return rank;
}

void lora_forward(const Context& context, std::span<const LoraPart> parts, int64_t n, const float* x,
                  float* y, int64_t ldy, float* masked) {
  for (const LoraPart& p : parts) {
    const int64_t r = p.a.dim(0), in = p.a.dim(1), o = p.b.dim(0);
    float *z = raw<float>(p.z), *to = y + p.first;
    if (p.dropout > 0.0f) drop<false>(context, p, n, in, x, masked);
    matmul(context, {.m = n,
                     .n = r,
                     .k = in,
                     .a = p.dropout > 0.0f ? masked : x,
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
                   const float* dy, int64_t ldy, float* dx, float* dz, float* masked) {
  for (const LoraPartBackward& p : parts) {
    const int64_t r = p.a.dim(0), in = p.a.dim(1), o = p.b.dim(0);
    const float* from = dy + p.first;
    float *da = raw<float>(p.da), *db = raw<float>(p.db);
    matmul(context,
           {.m = n, .n = r, .k = o, .a = from, .lda = ldy, .b = p.b.raw(), .ldb = r, .c = dz, .ldc = r});
    scale(context, dz, p.scale, n * r);
    const bool dropout = p.dropout > 0.0f;
    if (dropout) drop<false>(context, p, n, in, x, masked);
    matmul(context, {.m = r,
                     .n = in,
                     .k = n,
                     .a = dz,
                     .lda = r,
                     .transpose_a = true,
                     .b = dropout ? masked : x,
                     .ldb = in,
                     .c = da,
                     .ldc = in,
                     .addend = da});
    matmul(context, {.m = n,
                     .n = in,
                     .k = r,
                     .a = dz,
                     .lda = r,
                     .b = p.a.raw(),
                     .ldb = in,
                     .c = dropout ? masked : dx,
                     .ldc = in,
                     .addend = dropout ? nullptr : dx});
    if (dropout) drop<true>(context, p, n, in, masked, dx);
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
