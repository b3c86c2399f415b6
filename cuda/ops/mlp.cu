#include "cuda/kernels/mlp.cuh"

#include "cuda/ops/dequantize.h"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul_norm.cuh"
#include "cuda/ops/matmul_tensor.cuh"  // Hopper's kernels: cuda/CMakeLists.txt looks for this line

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

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
      dout;      // bf16 only: rounded to the input type of the product, where it was not handed over so
  float* parts;  // of the sum, where it is wanted
  void* da;      // null: it never leaves its kernel
  bool extends;  // the product takes its adapters in
  LoraPieces lora;
  Tensor project;  // with adapters apart: scratch of project_backward, which then makes da
};
// The down projection's own backward, into da.
ProjectBackward project_backward_of(const DownBackward& a, void* da, Tensor scratch) {
  return {.dout = a.dout,
          .w = a.w,
          .da = Tensor(da, a.w->dtype(), {a.dout.dim(0), a.w->cols()}, DeviceKind::kCuda),
          .scratch = scratch,
          .dout_bf16 = a.dout_bf16,
          .lora = a.lora,
          .a = a.a};
}
DownPieces down_pieces(const CudaOps& ops, const Context& context, Pieces& p, const DownBackward& a) {
  const int64_t n = a.dout.dim(0), c = a.w->rows(), f = a.w->cols();
  DownPieces s{};
  const Matmul product = down_product(a, a.dout_bf16.raw(), nullptr);
  s.extends = lora_fuses(context, a.lora, product, a.a.raw());
  const bool apart = !a.lora.empty() && !s.extends;
  if (a.w->dtype() == DType::kBF16 && a.dout_bf16.empty() && !apart) s.dout = p.take<__nv_bfloat16>(n * c);
  if (!a.dot.empty()) s.parts = p.take<float>(row_parts(n, f));
  if (apart || !matmul_always_fuses(context, product))
    s.da = p.take<std::byte>(n * f * dtype_size(a.w->dtype()));
  if (s.extends) s.lora = lora_pieces(p, a.lora, n, f, c);
  if (apart) {
    const int64_t bytes = ops.scratch(project_backward_of(a, s.da, {}));
    s.project = Tensor(p.take<std::byte>(bytes), DType::kU8, {bytes}, DeviceKind::kCuda);
  }
  return s;
}

}  // namespace

int64_t CudaOps::scratch(const GateUpForward& a) const {
  Pieces p;
  norm_forward_pieces(context_, p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const DownBackward& a) const {
  Pieces p;
  down_pieces(*this, context_, p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const GateUpBackward& a) const {
  Pieces p;
  norm_backward_pieces(context_, p, a);
  return p.bytes();
}

void CudaOps::gate_up_forward(const GateUpForward& a) {
  const int64_t n = a.x.dim(0), f = a.a.dim(1);
  Pieces pieces(a.scratch);
  const NormForwardPieces s = norm_forward_pieces(context_, pieces, a);
  expand_weights(context_, *a.w);
  Matmul product = normed_product(a, s.normed, s.product);
  const bool fuses = s.extends || (a.lora.empty() && matmul_fuses(context_, product));
  const NormInput input = norm_input(context_, a, fuses, s.normed);
  product.a = input.rows;
  if (s.extends) lora_extend(context_, a.lora, s.lora, input.scale, &product);
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
    if (!a.lora.empty()) add_adapters(context_, a, s.apart, s.product);
    const bool wide = aligned(8);
    launch(wide ? swiglu_forward_kernel<S, T, 4, kThreads> : swiglu_forward_kernel<S, T, 1, kThreads>,
           dim3(blocks_for(n, 1), blocks_for(f, (wide ? 8 : 2) * kThreads)), kThreads, 0, context_.stream,
           s.product, gate, up, out, f);
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

void CudaOps::down_backward(const DownBackward& a) {
  constexpr int kRows = 4;  // of swiglu_dot_kernel, a block
  const int64_t n = a.dout.dim(0), c = a.w->rows(), f = a.w->cols();
  Pieces pieces(a.scratch);
  const DownPieces s = down_pieces(*this, context_, pieces, a);
  const void* dout = a.dout_bf16.empty() ? a.dout.raw() : a.dout_bf16.raw();
  if (s.dout) {
    round_to_bf16(context_, dout, DType::kF32, s.dout, n * c);
    dout = s.dout;
  }
  const bool apart = !a.lora.empty() && !s.extends;
  if (!apart) expand_weights(context_, *a.w);  // else project_backward does
  Matmul product = down_product(a, dout, s.da);
  if (s.extends) {
    lora_extend(context_, a.lora, s.lora, &product);
    lora_gradients(context_, a.lora, s.lora, product,
                   {.x = a.a.raw(), .type = a.a.dtype(), .rstd = nullptr, .gain = nullptr});
  }
  with_pair(a.w->dtype(), a.g.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    const S *gate = raw<S>(a.g), *up = raw<S>(a.u);
    T* dy = raw<T>(a.dy);
    if constexpr (!std::is_same_v<T, float>)
      if (!apart && matmul_fuses(context_, product)) {
        const int width = common_width([&](int64_t values) {
          return f % values == 0 && side_by_side(values, gate, sizeof(S)) &&
                 side_by_side(values, up, sizeof(S)) && side_by_side(values, dy, sizeof(T));
        });
        return launch_matmul_tensor<false>(
            context_, product,
            SwigluBackwardEpilogue<S, T>{.gate = gate,
                                         .up = up,
                                         .dy = dy,
                                         .n = f,
                                         .width = width,
                                         .sums = row_sums(context_, n, raw<float>(a.dot), s.parts)});
      }
    if (apart)
      project_backward(project_backward_of(a, s.da, s.project));
    else
      matmul(context_, product);
    const T* da = static_cast<const T*>(s.da);
    const bool wide = f % kWide<T> == 0 && aligned_to(16, gate, up, da, dy);
    launch(
        wide ? swiglu_backward_kernel<S, T, kWide<T>, kThreads> : swiglu_backward_kernel<S, T, 1, kThreads>,
        dim3(blocks_for(n, 1), blocks_for(f, (wide ? kWide<T> : 1) * kThreads)), kThreads, 0, context_.stream,
        gate, up, da, dy, f);
    if (!a.dot.empty())
      launch(wide ? swiglu_dot_kernel<S, T, kWide<T>, kRows> : swiglu_dot_kernel<S, T, 1, kRows>,
             blocks_for(n, kRows), dim3(kWarp, kRows), 0, context_.stream, gate, up, dy, raw<float>(a.dot), n,
             f);
  });
}

void CudaOps::gate_up_backward(const GateUpBackward& a) { norm_product_backward(context_, a); }

}  // namespace gantrain
