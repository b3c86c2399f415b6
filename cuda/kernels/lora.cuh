// What adapters need beside products: core/ops/lora.h.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// x[i] *= scale. Grid ceil(count / (kVector kThreads)), no shared memory; a thread owns kVector values,
// aligned to their size, each read and written once. No two threads meet: deterministic.
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void scale_kernel(float* __restrict__ x, float scale, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (i >= count) return;
  Vector<float, kVector> v = load_vector<kVector>(x + i);
#pragma unroll
  for (int j = 0; j < kVector; ++j) v.value[j] *= scale;
  store_vector(x + i, v);
}

}  // namespace gantrain::cuda
