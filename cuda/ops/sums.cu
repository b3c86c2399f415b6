#include "cuda/ops/sums.h"

#include <algorithm>

#include "cuda/kernels/sums.cuh"
#include "cuda/runtime/launch.h"

namespace gantrain::cuda {

void dot_into_total(const Context& context, const float* a, const float* b, int64_t count, bool add) {
  const unsigned blocks = std::clamp<unsigned>(blocks_for(count, 4 * kSumThreads), 1, kSumPartials);
  launch(dot_partials_kernel, blocks, kSumThreads, 0, context.stream, a, b, context.partials, count);
  launch(sum_partials_kernel, 1, kSumThreads, 0, context.stream, context.partials, context.total,
         static_cast<int>(blocks), add);
}

}  // namespace gantrain::cuda
