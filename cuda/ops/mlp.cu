#include "cuda/kernels/mlp.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/lora.h"
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
  float* input;    // with adapters: the normed rows in f32
};
ForwardPieces forward_pieces(const Context& context, Pieces& p, const GateUpForward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  void* normed = p.take<std::byte>(n * c * dtype_size(a.w->dtype()));
  const bool fused = a.lora.empty() && matmul_always_fuses(context, forward_product(a, normed, nullptr));
  float* product = fused ? nullptr : p.take<float>(n * a.w->rows());
  const bool apart = !a.lora.empty() && a.w->dtype() != DType::kF32;
  return {normed, product, apart ? p.take<float>(n * c) : static_cast<float*>(normed)};
}
struct BackwardPieces {
  void* dy;
  float* dnormed;
  float *input, *dy_f32, *dz;  // with adapters
};
BackwardPieces backward_pieces(Pieces& p, const GateUpBackward& a) {
  const int64_t n = a.x.dim(0);
  BackwardPieces s{};
  s.dy = p.take<std::byte>(n * a.w->rows() * dtype_size(a.w->dtype()));
  s.dnormed = p.take<float>(n * a.w->cols());
  if (a.lora.empty()) return s;
  s.input = p.take<float>(n * a.w->cols());
  if (a.w->dtype() != DType::kF32) s.dy_f32 = p.take<float>(n * a.w->rows());
  s.dz = p.take<float>(n * lora_ranks(a.lora));
  return s;
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
  const auto normalise = [&](DType type, void* y) {
    normalise_rows(context_, {.x = raw<float>(a.x),
                              .rows = nullptr,
                              .gain = raw<float>(a.gain),
                              .rstd = const_cast<float*>(raw<float>(a.rstd)),
                              .statistic = false,
                              .eps = 0,
                              .type = type,
                              .y = y,
                              .n = n,
                              .c = c});
  };
  normalise(a.w->dtype(), s.normed);
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
      if (a.lora.empty() && matmul_fuses(context_, product))
        return launch_matmul_tensor<true>(
            context_, product,
            SwigluEpilogue<S, T>{
                .gate = gate, .up = up, .out = out, .bias = product.bias, .half = f, .wide = aligned(4)});
    matmul(context_, product);
    if (!a.lora.empty()) {
      if (a.w->dtype() != DType::kF32) normalise(DType::kF32, s.input);
      lora_forward(context_, a.lora, n, s.input, s.product, 2 * f);
    }
    const bool wide = aligned(kWide<T>);
    launch(wide ? swiglu_forward_kernel<S, T, kWide<T>, kThreads> : swiglu_forward_kernel<S, T, 1, kThreads>,
           dim3(blocks_for(n, 1), blocks_for(f, (wide ? kWide<T> : 1) * kThreads)), kThreads, 0,
           context_.stream, s.product, gate, up, out, f);
  });
}

void CudaOps::swiglu(const Swiglu& a) {
  const int64_t n = a.a.dim(0), f = a.a.dim(1);
  with_pair(a.a.dtype(), a.g.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    const S *gate = raw<S>(a.g), *up = raw<S>(a.u);
    T* out = raw<T>(a.a);
    const bool wide = (n * f) % kWide<T> == 0 && aligned_to(16, gate, up, out);
    launch(wide ? swiglu_again_kernel<S, T, kWide<T>, kThreads> : swiglu_again_kernel<S, T, 1, kThreads>,
           blocks_for(n * f, wide ? kWide<T> * kThreads : kThreads), kThreads, 0, context_.stream, gate, up,
           out, n * f);
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
  if (!a.lora.empty()) {
    normalise_rows(context_, {.x = raw<float>(a.x),
                              .rows = nullptr,
                              .gain = raw<float>(a.gain),
                              .rstd = const_cast<float*>(raw<float>(a.rstd)),
                              .statistic = false,
                              .eps = 0,
                              .type = DType::kF32,
                              .y = s.input,
                              .n = n,
                              .c = c});
    lora_backward(context_, a.lora, n, s.input, in_f32(context_, s.dy, a.w->dtype(), s.dy_f32, n * 2 * f),
                  2 * f, s.dnormed, s.dz);
  }
  norm_backward_rows(context_, raw<float>(a.x), raw<float>(a.rstd), raw<float>(a.gain), s.dnormed,
                     raw<float>(a.dx), n, c);
}

}  // namespace gantrain
