#include "cuda/ops/elementwise.h"

#include "cuda/kernels/elementwise.cuh"
#include "cuda/ops/dispatch.cuh"

namespace gantrain::cuda {

void round_to_bf16(const Context& context, const void* from, DType from_type, void* to, int64_t count) {
  constexpr int kThreads = 256;
  with_type(from_type, [&]<typename From>(Tag<From>) {
    launch(convert_kernel<From, __nv_bfloat16, kThreads>, blocks_for(count, kThreads), kThreads, 0,
           context.stream, static_cast<const From*>(from), static_cast<__nv_bfloat16*>(to), count);
  });
}

}  // namespace gantrain::cuda
