#include "cuda/ops/elementwise.h"

#include "cuda/kernels/elementwise.cuh"
#include "cuda/ops/dispatch.cuh"

namespace gantrain::cuda {

void round_to_bf16(const Context& context, const void* from, DType from_type, void* to, int64_t count) {
  constexpr int kThreads = 256;
  with_type(from_type, [&]<typename From>(Tag<From>) {
    auto* out = static_cast<__nv_bfloat16*>(to);
    const bool wide = count % 4 == 0 && aligned_to(4 * sizeof(From), from) && aligned_to(8, out);
    launch(wide ? convert_kernel<From, __nv_bfloat16, 4, kThreads>
                : convert_kernel<From, __nv_bfloat16, 1, kThreads>,
           blocks_for(count, wide ? 4 * kThreads : kThreads), kThreads, 0, context.stream,
           static_cast<const From*>(from), out, count);
  });
}

const float* in_f32(const Context& context, const void* from, DType from_type, float* to, int64_t count) {
  constexpr int kThreads = 256;
  if (from_type == DType::kF32) return static_cast<const float*>(from);
  with_type(from_type, [&]<typename From>(Tag<From>) {
    const bool wide = count % 4 == 0 && aligned_to(4 * sizeof(From), from) && aligned_to(16, to);
    launch(wide ? convert_kernel<From, float, 4, kThreads> : convert_kernel<From, float, 1, kThreads>,
           blocks_for(count, wide ? 4 * kThreads : kThreads), kThreads, 0, context.stream,
           static_cast<const From*>(from), to, count);
  });
  return to;
}

}  // namespace gantrain::cuda
