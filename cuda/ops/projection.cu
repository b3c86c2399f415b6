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
  float* unwanted;       // a statistic that is made beside out_bf16 and not asked for
  bool extends;          // the product takes its adapters in
  LoraPieces lora;
  float* input_f32;  // with adapters apart: `a` in f32, where it is something else
  float* masked;     // with dropout
};
Matmul forward_product(const ProjectForward& a, const void* input) {
  const int64_t in = a.a.dim(1), c = a.w->rows();
  return {.m = a.a.dim(0),
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
}
ForwardPieces forward_pieces(const Context& context, Pieces& p, const ProjectForward& a) {
  const int64_t n = a.a.dim(0), in = a.a.dim(1), c = a.w->rows();
  ForwardPieces s{};
  const bool rounds = a.a.dtype() != a.w->dtype();
  if (rounds) s.input = p.take<__nv_bfloat16>(n * in);
  if (!a.rstd.empty()) s.parts = p.take<float>(row_parts(n, c));
  if (a.rstd.empty() && !a.out_bf16.empty()) s.unwanted = p.take<float>(n);
  s.extends = lora_fuses(context, a.lora, forward_product(a, rounds ? s.input : a.a.raw()));
  if (s.extends) s.lora = lora_pieces(p, a.lora, n, in, c);
  if (a.lora.empty() || s.extends) return s;
  if (a.a.dtype() != DType::kF32) s.input_f32 = p.take<float>(n * in);
  s.masked = p.take<float>(lora_masked(a.lora, n));
  return s;
}
struct BackwardPieces {
  __nv_bfloat16*
      dout;      // bf16 only: dout rounded to the input type of the product, where it was not handed over so
  bool extends;  // the product takes its adapters in
  LoraPieces lora;
  // With adapters apart: forward's input in f32 and, bf16 only, the sum of both products before it is rounded
  // once.
  float *input, *sum, *dz;
  float* masked;  // with dropout
};
Matmul backward_product(const ProjectBackward& a, const void* dout, float* sum) {
  const int64_t c = a.w->rows(), in = a.w->cols();
  return {.m = a.dout.dim(0),
          .n = in,
          .k = c,
          .a = dout,
          .lda = c,
          .b = as_cuda(*a.w).data(),
          .ldb = in,
          .dtype = a.w->dtype(),
          .c = sum ? sum : a.da.raw(),
          .ldc = in,
          .c_dtype = sum ? DType::kF32 : a.da.dtype()};
}
BackwardPieces backward_pieces(const Context& context, Pieces& p, const ProjectBackward& a) {
  const int64_t n = a.dout.dim(0), in = a.w->cols(), c = a.w->rows();
  const bool f32 = a.w->dtype() == DType::kF32;
  BackwardPieces s{};
  if (!f32 && a.dout_bf16.empty()) s.dout = p.take<__nv_bfloat16>(n * c);
  s.extends = lora_fuses(context, a.lora, backward_product(a, a.dout_bf16.raw(), nullptr), a.a.raw());
  if (s.extends) s.lora = lora_pieces(p, a.lora, n, in, c);
  if (a.lora.empty() || s.extends) return s;
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
  forward_pieces(context_, p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const ProjectBackward& a) const {
  Pieces p;
  backward_pieces(context_, p, a);
  return p.bytes();
}

void CudaOps::project_forward(const ProjectForward& a) {
  const int64_t n = a.a.dim(0), in = a.a.dim(1), c = a.w->rows();
  Pieces pieces(a.scratch);
  const void* input = a.a.raw();
  const ForwardPieces s = forward_pieces(context_, pieces, a);
  if (s.input) {
    round_to_bf16(context_, input, a.a.dtype(), s.input, n * in);
    input = s.input;
  }
  expand_weights(context_, *a.w);
  Matmul product = forward_product(a, input);
  if (s.extends) lora_extend(context_, a.lora, s.lora, nullptr, &product);
  // Neither the library nor the f32 units give a statistic or a second result, and an adapter apart changes
  // them afterwards.
  auto* rounded = raw<__nv_bfloat16>(a.out_bf16);
  const float* gain = raw<float>(a.out_gain);
  const bool adds = !a.lora.empty() && !s.extends, apart = adds || !matmul_fuses(context_, product);
  if (!apart) {
    product.rstd = raw<float>(a.rstd);
    product.eps = a.eps;
    product.parts = s.parts;
    product.rounded = rounded;
    product.rounded_gain = gain;
  }
  matmul(context_, product);
  if (adds)
    lora_forward(context_, a.lora, n, in_f32(context_, a.a.raw(), a.a.dtype(), s.input_f32, n * in),
                 raw<float>(a.out), c, s.masked);
  if (apart && (rounded || !a.rstd.empty()))
    row_statistic(context_, raw<float>(a.out), a.rstd.empty() ? s.unwanted : raw<float>(a.rstd), rounded,
                  gain, n, c, a.eps);
}

void CudaOps::project_backward(const ProjectBackward& a) {
  const int64_t n = a.dout.dim(0), c = a.w->rows(), in = a.w->cols();
  Pieces pieces(a.scratch);
  const BackwardPieces s = backward_pieces(context_, pieces, a);
  const void* input = a.dout_bf16.empty() ? a.dout.raw() : a.dout_bf16.raw();
  if (s.dout) {
    round_to_bf16(context_, input, DType::kF32, s.dout, n * c);
    input = s.dout;
  }
  expand_weights(context_, *a.w);
  Matmul product = backward_product(a, input, s.sum);
  if (s.extends) {
    lora_extend(context_, a.lora, s.lora, &product);
    lora_gradients(context_, a.lora, s.lora, product,
                   {.x = a.a.raw(), .type = a.a.dtype(), .rstd = nullptr, .gain = nullptr});
  }
  matmul(context_, product);
  if (a.lora.empty() || s.extends) return;
  float* sum = s.sum ? s.sum : raw<float>(a.da);
  lora_backward(context_, a.lora, n, in_f32(context_, a.a.raw(), a.a.dtype(), s.input, n * in),
                raw<float>(a.dout), c, sum, s.dz, s.masked);
  if (s.sum) round_to_bf16(context_, sum, DType::kF32, a.da.raw(), n * in);
}

}  // namespace gantrain
