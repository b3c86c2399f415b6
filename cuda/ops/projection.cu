#include "cuda/ops/dequantize.h"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/lora.h"
#include "cuda/ops/matmul.h"
#include "cuda/ops/norm.h"

namespace gantrain {

using namespace cuda;

namespace {

struct ForwardPieces {
  __nv_bfloat16* input;  // `a` in f16 beside bf16 weights: rounded to the input type of the product
  float* parts;          // of the next statistic, where it is wanted
  float* input_f32;      // with adapters: `a` in f32, where it is something else
  float* unwanted;       // a statistic that is made beside out_bf16 and not asked for
  float* masked;         // with dropout
};
ForwardPieces forward_pieces(Pieces& p, const ProjectForward& a) {
  const int64_t n = a.a.dim(0), in = a.a.dim(1), c = a.w->rows();
  return {.input = a.a.dtype() == a.w->dtype() ? nullptr : p.take<__nv_bfloat16>(n * in),
          .parts = a.rstd.empty() ? nullptr : p.take<float>(row_parts(n, c)),
          .input_f32 = a.lora.empty() || a.a.dtype() == DType::kF32 ? nullptr : p.take<float>(n * in),
          .unwanted = a.rstd.empty() && !a.out_bf16.empty() ? p.take<float>(n) : nullptr,
          .masked = p.take<float>(lora_masked(a.lora, n))};
}
struct BackwardPieces {
  __nv_bfloat16*
      dout;  // bf16 only: dout rounded to the input type of the product, where it was not handed over so
  // With adapters: forward's input in f32 and, bf16 only, the sum of both products before it is rounded once.
  float *input, *sum, *dz;
  float* masked;  // with dropout
};
BackwardPieces backward_pieces(Pieces& p, const ProjectBackward& a) {
  const int64_t n = a.dout.dim(0), in = a.w->cols();
  const bool f32 = a.w->dtype() == DType::kF32;
  BackwardPieces s{};
  if (!f32 && a.dout_bf16.empty()) s.dout = p.take<__nv_bfloat16>(n * a.dout.dim(1));
  if (a.lora.empty()) return s;
  if (!f32) {
    s.input = p.take<float>(n * in);
    s.sum = p.take<float>(n * in);
  }
  s.dz = p.take<float>(n * lora_ranks(a.lora));
  s.masked = p.take<float>(lora_masked(a.lora, n));
  return s;
}

}  // namespace

int64_t CudaOps::scratch(const ProjectForward& a) const {
  Pieces p;
  forward_pieces(p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const ProjectBackward& a) const {
  Pieces p;
  backward_pieces(p, a);
  return p.bytes();
}

void CudaOps::project_forward(const ProjectForward& a) {
  const int64_t n = a.a.dim(0), in = a.a.dim(1), c = a.w->rows();
  Pieces pieces(a.scratch);
  const void* input = a.a.raw();
  const ForwardPieces s = forward_pieces(pieces, a);
  if (s.input) {
    round_to_bf16(context_, input, a.a.dtype(), s.input, n * in);
    input = s.input;
  }
  expand_weights(context_, *a.w);
  Matmul product{.m = n,
                 .n = c,
                 .k = in,
                 .a = input,
                 .lda = in,
                 .b = as_cuda(*a.w).data(),
                 .ldb = in,
                 .transpose_b = true,
                 .dtype = a.w->dtype(),
                 .c = a.out.raw(),
                 .ldc = c,
                 .bias = raw<float>(a.bias),
                 .addend = raw<float>(a.residual),
                 .fused = !a.rstd.empty() || !a.out_bf16.empty()};
  // Neither the library nor the f32 units give a statistic or a second result, and an adapter changes them
  // afterwards.
  auto* rounded = raw<__nv_bfloat16>(a.out_bf16);
  const float* gain = raw<float>(a.out_gain);
  const bool apart = !a.lora.empty() || !matmul_fuses(context_, product);
  if (!apart) {
    product.rstd = raw<float>(a.rstd);
    product.eps = a.eps;
    product.parts = s.parts;
    product.rounded = rounded;
    product.rounded_gain = gain;
  }
  matmul(context_, product);
  if (!a.lora.empty())
    lora_forward(context_, a.lora, n, in_f32(context_, a.a.raw(), a.a.dtype(), s.input_f32, n * in),
                 raw<float>(a.out), c, s.masked);
  if (apart && (rounded || !a.rstd.empty()))
    row_statistic(context_, raw<float>(a.out), a.rstd.empty() ? s.unwanted : raw<float>(a.rstd), rounded,
                  gain, n, c, a.eps);
}

void CudaOps::project_backward(const ProjectBackward& a) {
  const int64_t n = a.dout.dim(0), c = a.w->rows(), in = a.w->cols();
  Pieces pieces(a.scratch);
  const BackwardPieces s = backward_pieces(pieces, a);
  const void* input = a.dout_bf16.empty() ? a.dout.raw() : a.dout_bf16.raw();
  if (s.dout) {
    round_to_bf16(context_, input, DType::kF32, s.dout, n * c);
    input = s.dout;
  }
  expand_weights(context_, *a.w);
  matmul(context_, {.m = n,
                    .n = in,
                    .k = c,
                    .a = input,
                    .lda = c,
                    .b = as_cuda(*a.w).data(),
                    .ldb = in,
                    .dtype = a.w->dtype(),
                    .c = s.sum ? s.sum : a.da.raw(),
                    .ldc = in,
                    .c_dtype = s.sum ? DType::kF32 : a.da.dtype()});
  if (a.lora.empty()) return;
  float* sum = s.sum ? s.sum : raw<float>(a.da);
  lora_backward(context_, a.lora, n, in_f32(context_, a.a.raw(), a.a.dtype(), s.input, n * in),
                raw<float>(a.dout), c, sum, s.dz, s.masked);
  if (s.sum) round_to_bf16(context_, sum, DType::kF32, a.da.raw(), n * in);
}

}  // namespace gantrain
