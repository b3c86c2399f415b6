#include "cuda/kernels/qkv.cuh"

#include "cuda/ops/dequantize.h"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul_norm.cuh"
#include "cuda/ops/matmul_tensor.cuh"  // Hopper's kernels: cuda/CMakeLists.txt looks for this line
#include "cuda/ops/qkv.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

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
  norm_forward_pieces(context_, p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const QkvBackward& a) const {
  Pieces p;
  norm_backward_pieces(context_, p, a);
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
  const NormForwardPieces s = norm_forward_pieces(context_, pieces, a);
  expand_weights(context_, *a.w);
  Matmul product = normed_product(a, s.normed, s.product);
  const bool fuses = s.extends || (a.lora.empty() && matmul_fuses(context_, product));
  const NormInput input = norm_input(context_, a, fuses, s.normed);
  product.a = input.rows;
  if (s.extends) lora_extend(context_, a.lora, s.lora, input.scale, &product);
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
    if (!a.lora.empty()) add_adapters(context_, a, s.apart, s.product);
    const bool vectors = aligned_heads<kWide<S>>(to) && aligned_to(16, table);
    launch(vectors ? rotate_forward_kernel<S, 4, kThreads> : rotate_forward_kernel<S, 1, kThreads>,
           rotate_grid(n, product.n, vectors), kThreads, 0, context_.stream, s.product, table, to);
  });
}

void cuda::rotate_backward(const Context& context, const AttentionBackward& a) {
  const int64_t n = a.q.dim(0), d = a.q.dim(2), front = (a.k.dim(0) - n) * a.k.dim(1) * d;
  const auto* table = raw<float>(a.rotary);
  with_pair(a.d_o.dtype(), a.q.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    const QkvHeads<const S> kept{.q = raw<S>(a.q),
                                 .k = raw<S>(a.k) + front,
                                 .v = raw<S>(a.v) + front,
                                 .heads = static_cast<int>(a.q.dim(1)),
                                 .kv_heads = static_cast<int>(a.k.dim(1)),
                                 .half = static_cast<int>(d / 2)};
    auto* dy = raw<T>(a.dy);
    const bool vectors = aligned_heads<kWide<T>>(kept) && aligned_to(16, table, dy);
    const auto kernel = a.dot.empty() ? (vectors ? rotate_backward_kernel<S, T, false, 4, kThreads>
                                                 : rotate_backward_kernel<S, T, false, 1, kThreads>)
                                      : (vectors ? rotate_backward_kernel<S, T, true, 4, kThreads>
                                                 : rotate_backward_kernel<S, T, true, 1, kThreads>);
    launch(kernel, blocks_for(n, 1), kThreads, 0, context.stream, dy, kept, table, raw<float>(a.dot));
  });
}

void CudaOps::qkv_backward(const QkvBackward& a) { norm_product_backward(context_, a); }

}  // namespace gantrain
