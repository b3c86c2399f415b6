#include "cuda/kernels/mlp.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul_norm.cuh"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

Matmul forward_product(const GateUpForward& a, const void* normed, float* product) {
  const int64_t c = a.x.dim(1), f = a.a.dim(1);
  return {.m = a.x.dim(0),
          .n = 2 * f,
          .k = c,
          .a = normed,
          .lda = c,
          .b = as_cuda(*a.w).data(),
          .ldb = c,
          .transpose_b = true,
          .dtype = a.w->dtype(),
          .c = product,
          .ldc = 2 * f,
          .bias = raw<float>(a.bias),
          .fused = true};
}
struct ForwardPieces {
  void* normed;
  float* product;  // null: it never leaves its kernel
};
ForwardPieces forward_pieces(const Context& context, Pieces& p, const GateUpForward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  void* normed = p.take<std::byte>(n * c * dtype_size(a.w->dtype()));
  return {normed, matmul_always_fuses(context, forward_product(a, normed, nullptr))
                      ? nullptr
                      : p.take<float>(n * a.w->rows())};
}
Matmul down_product(const DownBackward& a, const void* dout, void* da) {
  const int64_t c = a.w->rows(), f = a.w->cols();
  return {.m = a.dout.dim(0),
          .n = f,
          .k = c,
          .a = dout,
          .lda = c,
          .b = as_cuda(*a.w).data(),
          .ldb = f,
          .dtype = a.w->dtype(),
          .c = da,
          .ldc = f,
          .c_dtype = a.w->dtype(),
          .fused = true};
}
struct DownPieces {
  __nv_bfloat16*
      dout;     // bf16 only: rounded to the input type of the product, where it was not handed over so
  float* dots;  // in parts, where the sum is wanted
  void* da;     // null: it never leaves its kernel
};
DownPieces down_pieces(const Context& context, Pieces& p, const DownBackward& a) {
  const int64_t n = a.dout.dim(0), c = a.w->rows(), f = a.w->cols();
  const bool rounds = a.w->dtype() == DType::kBF16 && a.dout_bf16.empty();
  auto* dout = rounds ? p.take<__nv_bfloat16>(n * c) : nullptr;
  float* dots = a.dot.empty() ? nullptr : p.take<float>(n * parts_of(f));
  return {dout, dots,
          matmul_always_fuses(context, down_product(a, nullptr, nullptr))
              ? nullptr
              : p.take<std::byte>(n * f * dtype_size(a.w->dtype()))};
}
float* backward_piece(const Context& context, Pieces& p, const GateUpBackward& a) {
  return needs_dnormed(context, a, !a.dot.empty()) ? p.take<float>(a.x.dim(0) * a.x.dim(1)) : nullptr;
}

}  // namespace

int64_t CudaOps::scratch(const GateUpForward& a) const {
  Pieces p;
  forward_pieces(context_, p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const DownBackward& a) const {
  Pieces p;
  down_pieces(context_, p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const GateUpBackward& a) const {
  Pieces p;
  backward_piece(context_, p, a);
  return p.bytes();
}

void CudaOps::gate_up_forward(const GateUpForward& a) {
  const int64_t n = a.x.dim(0), f = a.a.dim(1);
  Pieces pieces(a.scratch);
  const ForwardPieces s = forward_pieces(context_, pieces, a);
  Matmul product = forward_product(a, s.normed, s.product);
  const bool fuses = matmul_fuses(context_, product);
  const NormInput input = norm_input(context_, a, fuses, s.normed);
  product.a = input.rows;
  // g and u not wanted: rounded as if they were kept, so that inference sees what training sees.
  const DType kept = a.g.empty() ? a.a.dtype() : a.g.dtype();
  with_pair(a.a.dtype(), kept, [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    S *gate = raw<S>(a.g), *up = raw<S>(a.u);
    T* out = raw<T>(a.a);
    const auto aligned = [&](int64_t values) {
      return f % values == 0 && side_by_side(values, out, sizeof(T)) &&
             side_by_side(values, gate, sizeof(S)) && side_by_side(values, up, sizeof(S));
    };
    if constexpr (!std::is_same_v<T, float>)
      if (fuses)
        return launch_matmul_tensor<true>(context_, product,
                                          SwigluEpilogue<S, T>{.gate = gate,
                                                               .up = up,
                                                               .out = out,
                                                               .scale = input.scale,
                                                               .bias = product.bias,
                                                               .half = f,
                                                               .width = common_width([&](int64_t values) {
                                                                 return aligned(values) &&
                                                                        aligned_to(16, product.bias);
                                                               })});
    matmul(context_, product);
    launch(aligned(kWide<T>) ? swiglu_forward_kernel<S, T, kWide<T>, kThreads>
                             : swiglu_forward_kernel<S, T, 1, kThreads>,
           blocks_for(n, 1), kThreads, 0, context_.stream, s.product, gate, up, out, f);
  });
}

void CudaOps::down_backward(const DownBackward& a) {
  constexpr int kRows = 4;  // of swiglu_dot_kernel, a block
  const int64_t n = a.dout.dim(0), c = a.w->rows(), f = a.w->cols();
  Pieces pieces(a.scratch);
  const DownPieces s = down_pieces(context_, pieces, a);
  const void* dout = a.dout_bf16.empty() ? a.dout.raw() : a.dout_bf16.raw();
  if (s.dout) {
    round_to_bf16(context_, dout, DType::kF32, s.dout, n * c);
    dout = s.dout;
  }
  const Matmul product = down_product(a, dout, s.da);
  with_pair(a.w->dtype(), a.g.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    const S *gate = raw<S>(a.g), *up = raw<S>(a.u);
    T* dy = raw<T>(a.dy);
    if constexpr (!std::is_same_v<T, float>)
      if (matmul_fuses(context_, product)) {
        const int width = common_width([&](int64_t values) {
          return f % values == 0 && side_by_side(values, gate, sizeof(S)) &&
                 side_by_side(values, up, sizeof(S)) && side_by_side(values, dy, sizeof(T));
        });
        launch_matmul_tensor<false>(
            context_, product,
            SwigluBackwardEpilogue<S, T>{
                .gate = gate, .up = up, .dy = dy, .dots = s.dots, .n = f, .width = width});
        if (s.dots) sum_of_parts(context_, s.dots, raw<float>(a.dot), n, f);
        return;
      }
    matmul(context_, product);
    const T* da = static_cast<const T*>(s.da);
    const bool wide = f % kWide<T> == 0 && aligned_to(16, gate, up, da, dy);
    launch(
        wide ? swiglu_backward_kernel<S, T, kWide<T>, kThreads> : swiglu_backward_kernel<S, T, 1, kThreads>,
        blocks_for(n, 1), kThreads, 0, context_.stream, gate, up, da, dy, f);
    if (!a.dot.empty())
      launch(wide ? swiglu_dot_kernel<S, T, kWide<T>, kRows> : swiglu_dot_kernel<S, T, 1, kRows>,
             blocks_for(n, kRows), dim3(kWarp, kRows), 0, context_.stream, gate, up, dy, raw<float>(a.dot), n,
             f);
  });
}

void CudaOps::gate_up_backward(const GateUpBackward& a) {
  Pieces pieces(a.scratch);
  float* dnormed = backward_piece(context_, pieces, a);
  norm_product_backward(context_, a, a.dy.raw(), dnormed, raw<float>(a.dot));
}

}  // namespace gantrain
