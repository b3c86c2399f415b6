// Elementwise kernels that several families use.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// to[i] = from[i], rounded once to To. A thread owns kVector values: 8, so that it moves 16-bit values 16
// bytes at a time and f32 in two such pieces, or 1. grid (count / kVector / kThreads); `count` is a multiple
// of kVector.
template <typename From, typename To, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads,
                             kFullBlocks<kThreads>) void convert_kernel(const From* __restrict__ from,
                                                                        To* __restrict__ to, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (i >= count) return;
  float values[kVector];
  load_row(from + i, values);
  store_row(to + i, values);
}

}  // namespace gantrain::cuda
