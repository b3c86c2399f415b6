// Elementwise kernels that several families use.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// to[i] = from[i], rounded once to To. A thread owns kVector values, aligned to their size.
template <typename From, typename To, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void convert_kernel(const From* __restrict__ from, To* __restrict__ to,
                                                           int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (i >= count) return;
  const Vector<From, kVector> in = load_vector<kVector>(from + i);
  Vector<To, kVector> out;
#pragma unroll
  for (int j = 0; j < kVector; ++j) out.value[j] = from_float<To>(to_float(in.value[j]));
  store_vector(to + i, out);
}

}  // namespace gantrain::cuda
