#include "cuda/ops/elementwise.h"

#include "cuda/kernels/elementwise.cuh"
#include "cuda/ops/dispatch.cuh"

namespace gantrain::cuda {

namespace {

template <typename From, typename To>
void convert(const Context& context, const void* from, void* to, int64_t count) {
  constexpr int kThreads = 256;
  const auto* in = static_cast<const From*>(from);
  auto* out = static_cast<To*>(to);
  in_vectors(
      count, 8, aligned_to(16, in, out),
      [&](int64_t, int64_t n) {
        launch(convert_kernel<From, To, 8, kThreads>, blocks_for(n, 8 * kThreads), kThreads, 0,
               context.stream, in, out, n);
      },
      [&](int64_t begin, int64_t n) {
        launch(convert_kernel<From, To, 1, kThreads>, blocks_for(n, kThreads), kThreads, 0, context.stream,
               in + begin, out + begin, n);
      });
}

}  // namespace

void round_to_bf16(const Context& context, const void* from, DType from_type, void* to, int64_t count) {
  GT_CHECK(from_type == DType::kF32 || from_type == DType::kF16, "no kernel rounds {} to bf16",
           dtype_name(from_type));
  if (from_type == DType::kF32)
    convert<float, __nv_bfloat16>(context, from, to, count);
  else
    convert<__half, __nv_bfloat16>(context, from, to, count);
}

const float* in_f32(const Context& context, const void* from, DType from_type, float* to, int64_t count) {
  if (from_type == DType::kF32) return static_cast<const float*>(from);
  if (from_type == DType::kBF16)
    convert<__nv_bfloat16, float>(context, from, to, count);
  else
    convert<__half, float>(context, from, to, count);
  return to;
}

}  // namespace gantrain::cuda
