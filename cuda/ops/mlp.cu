#include "cuda/kernels/mlp.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul_tensor.cuh"
#include "cuda/ops/norm.h"

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
          .bias = raw<float>(a.bias)};
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
struct BackwardPieces {
  void* dy;
  float* dnormed;
};
BackwardPieces backward_pieces(Pieces& p, const GateUpBackward& a) {
  const int64_t n = a.x.dim(0);
  return {p.take<std::byte>(n * a.w->rows() * dtype_size(a.w->dtype())), p.take<float>(n * a.w->cols())};
}

}  // namespace

int64_t CudaOps::scratch(const GateUpForward& a) const {
  Pieces p;
  forward_pieces(context_, p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const GateUpBackward& a) const {
  Pieces p;
  backward_pieces(p, a);
  return p.bytes();
}

void CudaOps::gate_up_forward(const GateUpForward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f = a.a.dim(1);
  Pieces pieces(a.scratch);
  const ForwardPieces s = forward_pieces(context_, pieces, a);
  normalise_rows(context_, {.x = raw<float>(a.x),
                            .rows = nullptr,
                            .gain = raw<float>(a.gain),
                            .rstd = const_cast<float*>(raw<float>(a.rstd)),
                            .statistic = false,
                            .eps = 0,
                            .type = a.w->dtype(),
                            .y = s.normed,
                            .n = n,
                            .c = c});
  const Matmul product = forward_product(a, s.normed, s.product);
  // g and u not wanted: rounded as if they were kept, so that inference sees what training sees.
  const DType kept = a.g.empty() ? a.a.dtype() : a.g.dtype();
  with_pair(a.a.dtype(), kept, [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    S *gate = raw<S>(a.g), *up = raw<S>(a.u);
    T* out = raw<T>(a.a);
    const auto aligned = [&](int64_t values) {
      return f % values == 0 && aligned_to(static_cast<uintptr_t>(values) * sizeof(T), out) &&
             aligned_to(static_cast<uintptr_t>(values) * sizeof(S), gate, up);
    };
    if constexpr (!std::is_same_v<T, float>)
      if (matmul_fuses(context_, product))
        return launch_matmul_tensor<true>(
            context_, product,
            SwigluEpilogue<S, T>{
                .gate = gate, .up = up, .out = out, .bias = product.bias, .half = f, .wide = aligned(4)});
    matmul(context_, product);
    const bool wide = aligned(kWide<T>);
    launch(wide ? swiglu_forward_kernel<S, T, kWide<T>, kThreads> : swiglu_forward_kernel<S, T, 1, kThreads>,
           dim3(blocks_for(n, 1), blocks_for(f, (wide ? kWide<T> : 1) * kThreads)), kThreads, 0,
           context_.stream, s.product, gate, up, out, f);
  });
}

void CudaOps::gate_up_backward(const GateUpBackward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f = a.da.dim(1);
  Pieces pieces(a.scratch);
  const BackwardPieces s = backward_pieces(pieces, a);
  with_pair(a.da.dtype(), a.g.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    const S *gate = raw<S>(a.g), *up = raw<S>(a.u);
    const T* da = raw<T>(a.da);
    const bool wide = f % kWide<T> == 0 && aligned_to(16, gate, up, da, s.dy);
    launch(
        wide ? swiglu_backward_kernel<S, T, kWide<T>, kThreads> : swiglu_backward_kernel<S, T, 1, kThreads>,
        dim3(blocks_for(n, 1), blocks_for(f, (wide ? kWide<T> : 1) * kThreads)), kThreads, 0, context_.stream,
        gate, up, da, static_cast<T*>(s.dy), f);
  });
  matmul(context_, {.m = n,
                    .n = c,
                    .k = 2 * f,
                    .a = s.dy,
                    .lda = 2 * f,
                    .b = as_cuda(*a.w).data(),
                    .ldb = c,
                    .dtype = a.w->dtype(),
                    .c = s.dnormed,
                    .ldc = c});
  norm_backward_rows(context_, raw<float>(a.x), raw<float>(a.rstd), raw<float>(a.gain), s.dnormed,
                     raw<float>(a.dx), n, c);
}

}  // namespace gantrain
