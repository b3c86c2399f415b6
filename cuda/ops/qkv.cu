#include "cuda/kernels/qkv.cuh"

#include "cuda/ops/dequantize.h"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul_norm.cuh"
#include "cuda/ops/matmul_tensor.cuh"  // Hopper's kernels: cuda/CMakeLists.txt looks for this line

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
          .bias = raw<float>(a.bias),
          .fused = a.lora.empty()};
}
struct ForwardPieces {
  void* normed;
  float* product;  // null: it never leaves its kernel
  float* input;    // with adapters: the normed rows in f32
  float* masked;   // with dropout
};
ForwardPieces forward_pieces(const Context& context, Pieces& p, const QkvForward& a) {
  const int64_t n = a.x.dim(0);
  void* normed = p.take<std::byte>(n * a.x.dim(1) * dtype_size(a.w->dtype()));
  const bool fused = a.lora.empty() && matmul_always_fuses(context, forward_product(a, normed, nullptr));
  float* product = fused ? nullptr : p.take<float>(n * a.w->rows());
  const bool apart = !a.lora.empty() && a.w->dtype() != DType::kF32;
  float* input = apart ? p.take<float>(n * a.x.dim(1)) : static_cast<float*>(normed);
  return {normed, product, input, p.take<float>(lora_masked(a.lora, n))};
}
struct BackwardPieces {
  void* dy;
  float* dot;  // null: q, k and v are not at hand
  NormBackwardPieces norm;
};
BackwardPieces backward_pieces(const Context& context, Pieces& p, const QkvBackward& a) {
  const int64_t n = a.x.dim(0);
  void* dy = a.dy.empty() ? p.take<std::byte>(n * a.w->rows() * dtype_size(a.w->dtype())) : a.dy.raw();
  float* dot = a.q.empty() ? nullptr : p.take<float>(n);
  return {dy, dot, norm_backward_pieces(context, p, a, a.dy.raw(), !a.q.empty())};
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
  backward_pieces(context_, p, a);
  return p.bytes();
}

void CudaOps::rotary_table(const RotaryTable& a) {
  const int64_t n = a.table.dim(0), half = a.table.dim(1) / 2;
  launch(rotary_table_kernel<kThreads>, blocks_for(n * half, kThreads), kThreads, 0, context_.stream,
         raw<int32_t>(a.positions), raw<float>(a.inv_freq), raw<float>(a.table), n, half);
}

void CudaOps::qkv_forward(const QkvForward& a) {
  const int64_t n = a.x.dim(0), d = a.q.dim(2);
  Pieces pieces(a.scratch);
  const ForwardPieces s = forward_pieces(context_, pieces, a);
  expand_weights(context_, *a.w);
  Matmul product = forward_product(a, s.normed, s.product);
  const bool fuses = a.lora.empty() && matmul_fuses(context_, product);
  const NormInput input = norm_input(context_, a, fuses, s.normed);
  product.a = input.rows;
  const auto* table = raw<float>(a.rotary);
  with_type(a.q.dtype(), [&]<typename S>(Tag<S>) {
    const QkvHeads<S> to{.q = raw<S>(a.q),
                         .k = raw<S>(a.k),
                         .v = raw<S>(a.v),
                         .heads = static_cast<int>(a.q.dim(1)),
                         .kv_heads = static_cast<int>(a.k.dim(1)),
                         .half = static_cast<int>(d / 2)};
    if constexpr (!std::is_same_v<S, float>)
      if (fuses) {
        const int width = common_width([&](int64_t values) {
          return d / 2 % values == 0 && side_by_side(values, to.q, sizeof(S)) &&
                 side_by_side(values, to.k, sizeof(S)) && side_by_side(values, to.v, sizeof(S)) &&
                 aligned_to(16, product.bias, table);
        });
        return launch_matmul_tensor<true>(context_, product,
                                          RotaryEpilogue<S>{.to = to,
                                                            .table = table,
                                                            .scale = input.scale,
                                                            .bias = product.bias,
                                                            .half = d / 2,
                                                            .width = width});
      }
    matmul(context_, product);
    if (!a.lora.empty()) {
      if (a.w->dtype() != DType::kF32) normalise(context_, a, DType::kF32, s.input);
      lora_forward(context_, a.lora, n, s.input, s.product, a.w->rows(), s.masked);
    }
    const bool vectors = aligned_heads<kWide<S>>(to) && aligned_to(16, table);
    launch(vectors ? rotate_forward_kernel<S, 4, kThreads> : rotate_forward_kernel<S, 1, kThreads>,
           rotate_grid(n, product.n, vectors), kThreads, 0, context_.stream, s.product, table, to);
  });
}

void CudaOps::qkv_backward(const QkvBackward& a) {
  const int64_t n = a.x.dim(0), out = a.w->rows();
  Pieces pieces(a.scratch);
  const BackwardPieces s = backward_pieces(context_, pieces, a);
  const auto* table = raw<float>(a.rotary);
  // The dot product is taken on the way only where it will be used.
  const float* dot = s.dot && norm_backward_fuses(context_, a, s.dy, s.norm) ? s.dot : nullptr;
  const auto heads = [&]<typename S>(const S* q, const S* k, const S* v) {
    return QkvHeads<const S>{.q = q,
                             .k = k,
                             .v = v,
                             .heads = static_cast<int>(a.dq.dim(1)),
                             .kv_heads = static_cast<int>(a.dk.dim(1)),
                             .half = static_cast<int>(a.dq.dim(2) / 2)};
  };
  with_pair(
      a.w->dtype(), a.q.empty() ? a.w->dtype() : a.q.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
        const auto from = heads(raw<T>(a.dq), raw<T>(a.dk), raw<T>(a.dv));
        auto* dy = static_cast<T*>(s.dy);
        const bool vectors = aligned_heads<kWide<T>>(from) && aligned_to(16, table);
        if (!dot || std::is_same_v<T, float>)
          return launch(
              vectors ? rotate_backward_kernel<T, 4, kThreads> : rotate_backward_kernel<T, 1, kThreads>,
              rotate_grid(n, out, vectors), kThreads, 0, context_.stream, from, table, dy);
        if constexpr (!std::is_same_v<T, float>) {  // f32 products have no epilogue that would read it
          const auto kept = heads(raw<S>(a.q), raw<S>(a.k), raw<S>(a.v));
          launch(vectors && aligned_heads<kWide<T>>(kept) ? rotate_backward_dot_kernel<S, T, 4, kThreads>
                                                          : rotate_backward_dot_kernel<S, T, 1, kThreads>,
                 blocks_for(n, 1), kThreads, 0, context_.stream, from, kept, table, dy, s.dot);
        }
      });
  expand_weights(context_, *a.w);
  norm_product_backward(context_, a, s.dy, s.norm, dot);
}

}  // namespace gantrain
