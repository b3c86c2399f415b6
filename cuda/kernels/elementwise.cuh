// Elementwise kernels that several families use.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// to[i] = from[i], rounded once to To. One thread an element, in strides of the grid.
template <typename From, typename To, int kThreads>
__global__ __launch_bounds__(kThreads) void convert_kernel(const From* __restrict__ from, To* __restrict__ to,
                                                           int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] = from_float<To>(to_float(from[i]));
}

}  // namespace gantrain::cuda
