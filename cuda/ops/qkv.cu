#include "cuda/kernels/qkv.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/lora.h"
#include "cuda/ops/matmul_tensor.cuh"
#include "cuda/ops/norm.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

Matmul forward_product(const QkvForward& a, const void* normed, float* product) {
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
          .bias = raw<float>(a.bias)};
}
struct ForwardPieces {
  void* normed;
  float *table, *product;  // product null: it never leaves its kernel
  float* input;            // with adapters: the normed rows in f32
};
ForwardPieces forward_pieces(const Context& context, Pieces& p, const QkvForward& a) {
  const int64_t n = a.x.dim(0);
  void* normed = p.take<std::byte>(n * a.x.dim(1) * dtype_size(a.w->dtype()));
  float* table = p.take<float>(n * a.q.dim(2));
  const bool fused = a.lora.empty() && matmul_always_fuses(context, forward_product(a, normed, nullptr));
  float* product = fused ? nullptr : p.take<float>(n * a.w->rows());
  const bool apart = !a.lora.empty() && a.w->dtype() != DType::kF32;
  return {normed, table, product, apart ? p.take<float>(n * a.x.dim(1)) : static_cast<float*>(normed)};
}
struct BackwardPieces {
  void* dy;
  float *dnormed, *table;
  float *input, *dy_f32, *dz;  // with adapters
};
BackwardPieces backward_pieces(Pieces& p, const QkvBackward& a) {
  const int64_t n = a.x.dim(0);
  BackwardPieces s{};
  s.dy = p.take<std::byte>(n * a.w->rows() * dtype_size(a.w->dtype()));
  s.dnormed = p.take<float>(n * a.w->cols());
  s.table = p.take<float>(n * a.dq.dim(2));
  if (a.lora.empty()) return s;
  s.input = p.take<float>(n * a.w->cols());
  if (a.w->dtype() != DType::kF32) s.dy_f32 = p.take<float>(n * a.w->rows());
  s.dz = p.take<float>(n * lora_ranks(a.lora));
  return s;
}

void rotary_table(const Context& context, const ConstTensor& positions, const ConstTensor& inv_freq,
                  float* table) {
  const int64_t n = positions.dim(0), half = inv_freq.dim(0);
  launch(rotary_table_kernel<kThreads>, blocks_for(n * half, kThreads), kThreads, 0, context.stream,
         raw<int32_t>(positions), raw<float>(inv_freq), table, n, half);
}

// Whether kVector neighbours of a half of a head always lie side by side and aligned.
template <int kVector, typename S>
bool aligned_heads(const QkvHeads<S>& heads) {
  return heads.half % kVector == 0 && aligned_to(kVector * sizeof(S), heads.q, heads.k, heads.v);
}

// Rows of `width` values: half as many pairs, four or one a thread.
dim3 rotate_grid(int64_t n, int64_t width, bool vectors) {
  return dim3(blocks_for(n, 1), blocks_for(width / 2, (vectors ? 4 : 1) * kThreads));
}

}  // namespace

int64_t CudaOps::scratch(const QkvForward& a) const {
  Pieces p;
  forward_pieces(context_, p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const QkvBackward& a) const {
  Pieces p;
  backward_pieces(p, a);
  return p.bytes();
}

void CudaOps::qkv_forward(const QkvForward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), d = a.q.dim(2);
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
  rotary_table(context_, a.positions, a.inv_freq, s.table);
  const Matmul product = forward_product(a, s.normed, s.product);
  with_type(a.q.dtype(), [&]<typename S>(Tag<S>) {
    const QkvHeads<S> to{.q = raw<S>(a.q),
                         .k = raw<S>(a.k),
                         .v = raw<S>(a.v),
                         .heads = static_cast<int>(a.q.dim(1)),
                         .kv_heads = static_cast<int>(a.k.dim(1)),
                         .half = static_cast<int>(d / 2)};
    const bool wide = aligned_heads<4>(to);
    if constexpr (!std::is_same_v<S, float>)
      if (a.lora.empty() && matmul_fuses(context_, product))
        return launch_matmul_tensor<true>(
            context_, product,
            RotaryEpilogue<S>{.to = to, .table = s.table, .bias = product.bias, .half = d / 2, .wide = wide});
    matmul(context_, product);
    if (!a.lora.empty()) {
      if (a.w->dtype() != DType::kF32) normalise(DType::kF32, s.input);
      lora_forward(context_, a.lora, n, s.input, s.product, a.w->rows());
    }
    const bool vectors = aligned_heads<kWide<S>>(to);
    launch(vectors ? rotate_forward_kernel<S, 4, kThreads> : rotate_forward_kernel<S, 1, kThreads>,
           rotate_grid(n, product.n, vectors), kThreads, 0, context_.stream, s.product, s.table, to);
  });
}

void CudaOps::qkv_backward(const QkvBackward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), out = a.w->rows();
  Pieces pieces(a.scratch);
  const BackwardPieces s = backward_pieces(pieces, a);
  rotary_table(context_, a.positions, a.inv_freq, s.table);
  with_weights(a.w->dtype(), [&]<typename T>(Tag<T>) {
    const QkvHeads<const T> from{.q = raw<T>(a.dq),
                                 .k = raw<T>(a.dk),
                                 .v = raw<T>(a.dv),
                                 .heads = static_cast<int>(a.dq.dim(1)),
                                 .kv_heads = static_cast<int>(a.dk.dim(1)),
                                 .half = static_cast<int>(a.dq.dim(2) / 2)};
    const bool vectors = aligned_heads<kWide<T>>(from);
    launch(vectors ? rotate_backward_kernel<T, 4, kThreads> : rotate_backward_kernel<T, 1, kThreads>,
           rotate_grid(n, out, vectors), kThreads, 0, context_.stream, from, s.table, static_cast<T*>(s.dy));
  });
  matmul(context_, {.m = n,
                    .n = c,
                    .k = out,
                    .a = s.dy,
                    .lda = out,
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
    lora_backward(context_, a.lora, n, s.input, in_f32(context_, s.dy, a.w->dtype(), s.dy_f32, n * out), out,
                  s.dnormed, s.dz);
  }
  norm_backward_rows(context_, raw<float>(a.x), raw<float>(a.rstd), raw<float>(a.gain), s.dnormed,
                     raw<float>(a.dx), n, c);
}

}  // namespace gantrain
