// Products around RMSNorm, which the QKV and the gate and up families share.
#pragma once

#include "cuda/ops/elementwise.h"
#include "cuda/ops/matmul_tensor.cuh"
#include "cuda/ops/norm.h"

namespace gantrain::cuda {

// What forward's product reads, and what its rows are scaled by afterwards. Where the epilogue is ours and no
// gain stands between: x itself in bf16 and rstd; else the normalised rows, in `piece`, and null.
struct NormInput {
  const void* rows;
  const float* scale;
};
template <typename Forward>
NormInput norm_input(const Context& context, const Forward& a, bool fuses, void* piece) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  const float* x = raw<float>(a.x);
  auto* rstd = const_cast<float*>(raw<float>(a.rstd));  // read only: no statistic is asked for
  if (fuses && a.gain.empty()) {
    if (!a.x_bf16.empty() && aligned_to(16, a.x_bf16.raw())) return {a.x_bf16.raw(), rstd};
    round_to_bf16(context, x, DType::kF32, piece, n * c);
    return {piece, rstd};
  }
  normalise_rows(context, {.x = x,
                           .rows = nullptr,
                           .gain = raw<float>(a.gain),
                           .rstd = rstd,
                           .statistic = false,
                           .eps = 0,
                           .type = a.w->dtype(),
                           .y = piece,
                           .n = n,
                           .c = c});
  return {piece, nullptr};
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
// Whether f32 rows are needed between the two, on some call like this one.
template <typename Backward>
bool needs_dnormed(const Context& context, const Backward& a, bool has_dot) {
  return !has_dot || !matmul_always_fuses(context, norm_product(a, nullptr, nullptr));
}
// `dot` (n): <dy, y> of each row, or null: then it is taken from dxhat.
template <typename Backward>
void norm_product_backward(const Context& context, const Backward& a, const void* dy, float* dnormed,
                           const float* dot) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  const float *x = raw<float>(a.x), *rstd = raw<float>(a.rstd), *gain = raw<float>(a.gain);
  float* dx = raw<float>(a.dx);
  auto* rounded = raw<__nv_bfloat16>(a.dx_bf16);
  const Matmul product = norm_product(a, dy, dnormed);
  if (dot && matmul_fuses(context, product)) {
    const NormBackwardEpilogue epilogue{.x = x,
                                        .rstd = rstd,
                                        .gain = gain,
                                        .dot = dot,
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
  norm_backward_rows(context, x, rstd, gain, dnormed, dx, n, c);
  if (rounded) round_to_bf16(context, dx, DType::kF32, rounded, n * c);
}

}  // namespace gantrain::cuda
