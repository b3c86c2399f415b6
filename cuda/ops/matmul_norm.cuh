// Products around RMSNorm, which the QKV and the gate and up families share.
#pragma once

#include "cuda/ops/dequantize.h"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/lora.h"
#include "cuda/ops/matmul_tensor.cuh"
#include "cuda/ops/norm.h"

namespace gantrain::cuda {

// x * rstd * gain of an op's arguments, in `type`.
template <typename Args>
void normalise(const Context& context, const Args& a, DType type, void* y) {
  normalise_rows(context,
                 {.x = raw<float>(a.x),
                  .rows = nullptr,
                  .gain = raw<float>(a.gain),
                  .rstd = const_cast<float*>(raw<float>(a.rstd)),  // read only: no statistic is asked for
                  .statistic = false,
                  .eps = 0,
                  .type = type,
                  .y = y,
                  .n = a.x.dim(0),
                  .c = a.x.dim(1)});
}
// What forward's product reads, and what its rows are scaled by afterwards: where the epilogue is ours, x *
// gain in bf16 if it was handed over, and rstd; else the normalised rows, in `piece`, and null.
struct NormInput {
  const void* rows;
  const float* scale;
};
template <typename Forward>
NormInput norm_input(const Context& context, const Forward& a, bool fuses, void* piece) {
  if (fuses && !a.x_bf16.empty() && aligned_to(16, a.x_bf16.raw()))
    return {a.x_bf16.raw(), raw<float>(a.rstd)};
  normalise(context, a, a.w->dtype(), piece);
  return {piece, nullptr};
}

// Adapters apart from forward's product (cuda/ops/lora.h).
struct AdaptersApart {
  float* input;   // the normed rows in f32
  float* masked;  // with dropout
};
// normed: the rows that the product reads, in its own type.
template <typename Forward>
AdaptersApart adapters_apart(Pieces& p, const Forward& a, void* normed) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  return {.input = a.w->dtype() == DType::kF32 ? static_cast<float*>(normed) : p.take<float>(n * c),
          .masked = p.take<float>(lora_masked(a.lora, n))};
}
template <typename Forward>
void add_adapters(const Context& context, const Forward& a, const AdaptersApart& s, float* product) {
  if (a.w->dtype() != DType::kF32) normalise(context, a, DType::kF32, s.input);
  lora_forward(context, a.lora, a.x.dim(0), s.input, product, a.w->rows(), s.masked);
}

// Forward's product of the normalised rows, (n, out).
template <typename Forward>
Matmul normed_product(const Forward& a, const void* normed, float* product) {
  const int64_t c = a.x.dim(1), out = a.w->rows();
  return {.m = a.x.dim(0),
          .n = out,
          .k = c,
          .a = normed,
          .lda = c,
          .b = as_cuda(*a.w).data(),
          .ldb = c,
          .transpose_b = true,
          .dtype = a.w->dtype(),
          .c = product,
          .ldc = out,
          .bias = raw<float>(a.bias),
          .fused = a.lora.empty()};
}
struct NormForwardPieces {
  void* normed;
  float* product;  // null: it never leaves its kernel
  bool extends;    // the product takes its adapters in
  LoraPieces lora;
  AdaptersApart apart;
};
template <typename Forward>
NormForwardPieces norm_forward_pieces(const Context& context, Pieces& p, const Forward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), out = a.w->rows();
  NormForwardPieces s{};
  s.normed = p.take<std::byte>(n * c * dtype_size(a.w->dtype()));
  const Matmul product = normed_product(a, s.normed, nullptr);
  s.extends = lora_fuses(context, a.lora, product);
  if (s.extends) {
    s.lora = lora_pieces(p, a.lora, n, c, out);
    return s;
  }
  if (!a.lora.empty() || !matmul_always_fuses(context, product)) s.product = p.take<float>(n * out);
  if (!a.lora.empty()) s.apart = adapters_apart(p, a, s.normed);
  return s;
}

// dy w of a backward, (n, c), and RMSNorm's backward behind it.
template <typename Backward>
Matmul norm_product(const Backward& a, const void* dy, float* dnormed) {
  const int64_t c = a.x.dim(1), out = a.w->rows();
  return {.m = a.x.dim(0),
          .n = c,
          .k = out,
          .a = dy,
          .lda = out,
          .b = as_cuda(*a.w).data(),
          .ldb = c,
          .dtype = a.w->dtype(),
          .c = dnormed,
          .ldc = c,
          .fused = true};
}
struct NormBackwardPieces {
  float* dnormed;  // f32 rows between the two; null: they never leave their kernel
  bool extends;    // the product takes its adapters in
  LoraPieces lora;
  float *input, *dy_f32, *dz;  // with adapters apart
  float* masked;               // with dropout
};
template <typename Backward>
NormBackwardPieces norm_backward_pieces(const Context& context, Pieces& p, const Backward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  NormBackwardPieces s{};
  const Matmul product = norm_product(a, a.dy.raw(), nullptr);
  s.extends = lora_fuses(context, a.lora, product, a.x.raw());
  const bool fuses = !a.dot.empty() && (a.lora.empty() || s.extends) && matmul_always_fuses(context, product);
  if (!a.dnormed.empty())
    s.dnormed = raw<float>(a.dnormed);
  else if (!fuses)
    s.dnormed = p.take<float>(n * c);
  if (s.extends) s.lora = lora_pieces(p, a.lora, n, c, a.w->rows());
  if (a.lora.empty() || s.extends) return s;
  s.input = p.take<float>(n * c);
  if (a.w->dtype() != DType::kF32) s.dy_f32 = p.take<float>(n * a.w->rows());
  s.dz = p.take<float>(n * lora_ranks(a.lora));
  s.masked = p.take<float>(lora_masked(a.lora, n));
  return s;
}
// With a.dot, <dy, y> of each row in parts, the norm's backward is done at the end of the product where that
// is possible; else dxhat goes through memory.
template <typename Backward>
void norm_product_backward(const Context& context, const Backward& a) {
  Pieces pieces(a.scratch);
  const NormBackwardPieces s = norm_backward_pieces(context, pieces, a);
  const void* dy = a.dy.raw();
  expand_weights(context, *a.w);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), out = a.w->rows();
  const float *x = raw<float>(a.x), *rstd = raw<float>(a.rstd), *gain = raw<float>(a.gain);
  float* dx = raw<float>(a.dx);
  auto* rounded = raw<__nv_bfloat16>(a.dx_bf16);
  Matmul product = norm_product(a, dy, s.dnormed);
  const bool apart = !a.lora.empty() && !s.extends;
  if (s.extends) {
    lora_extend(context, a.lora, s.lora, &product);
    lora_gradients(context, a.lora, s.lora, product,
                   {.x = x, .type = DType::kF32, .rstd = rstd, .gain = gain});
  }
  if (!a.dot.empty() && !apart && matmul_fuses(context, product)) {
    const NormBackwardEpilogue epilogue{.x = x,
                                        .rstd = rstd,
                                        .gain = gain,
                                        .dot = raw<float>(a.dot),
                                        .dot_parts = static_cast<int>(a.dot.count() / n),
                                        .dx = dx,
                                        .rounded = rounded,
                                        .n = c,
                                        .width = common_width([&](int64_t values) {
                                          return c % values == 0 && aligned_to(16, x, gain, dx) &&
                                                 side_by_side(values, rounded, sizeof(*rounded));
                                        })};
    return launch_matmul_tensor<false>(context, product, epilogue);
  }
  matmul(context, product);
  if (apart) {
    normalise(context, a, DType::kF32, s.input);
    lora_backward(context, a.lora, n, s.input, in_f32(context, dy, a.w->dtype(), s.dy_f32, n * out), out,
                  s.dnormed, s.dz, s.masked);
  }
  norm_backward_rows(context, x, rstd, gain, s.dnormed, dx, n, c);
  if (rounded) round_to_bf16(context, dx, DType::kF32, rounded, n * c);
}

}  // namespace gantrain::cuda
