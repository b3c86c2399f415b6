// Elementwise kernels that several families use.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// to[i] = from[i], rounded once to bf16. A thread owns kVector values: 8, so that it stores 16 bytes and
// loads 16 at a time, or 1. grid (count / kVector / kThreads); `count` is a multiple of kVector.
template <typename From, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads,
                             kFullBlocks<kThreads>) void round_to_bf16_kernel(const From* __restrict__ from,
                                                                              __nv_bfloat16* __restrict__ to,
                                                                              int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (i >= count) return;
  float in[kVector];
  load_row(from + i, in);
  store_row(to + i, in);
}

}  // namespace gantrain::cuda
