// Sums over whole tensors, in f64 and in a fixed order: partial sums of a fixed partition, then one block
// adds them up.
#pragma once

#include "cuda/device/reduce.cuh"

namespace gantrain::cuda {

constexpr int kSumThreads = 256, kSumPartials = 256;

// partial[b] = sum over the elements i with (i / kSumThreads) % gridDim.x == b of a[i] * b[i]; grid (<=
// kSumPartials).
static __global__ __launch_bounds__(kSumThreads) void dot_partials_kernel(const float* __restrict__ a,
                                                                          const float* __restrict__ b,
                                                                          double* __restrict__ partial,
                                                                          int64_t count) {
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kSumThreads)
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// total[0] = (add ? total[0] : 0) + sum of partial[0 .. partials). grid (1).
static __global__ __launch_bounds__(kSumThreads) void sum_partials_kernel(const double* __restrict__ partial,
                                                                          double* __restrict__ total,
                                                                          int partials, bool add) {
  const double sum =
      block_sum<kSumThreads>(static_cast<int>(threadIdx.x) < partials ? partial[threadIdx.x] : 0.0);
  if (threadIdx.x == 0) total[0] = (add ? total[0] : 0.0) + sum;
}
static_assert(kSumPartials <= kSumThreads);

// to[0] += total[0], or to[0] = sqrt(total[0]). grid (1), block 1.
static __global__ void add_total_kernel(const double* __restrict__ total, float* __restrict__ to) {
  to[0] += static_cast<float>(total[0]);
}
static __global__ void root_total_kernel(const double* __restrict__ total, float* __restrict__ to) {
  to[0] = static_cast<float>(sqrt(total[0]));
}

}  // namespace gantrain::cuda
