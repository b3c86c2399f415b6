// Keys and values of a prefix from its table, and the table's gradient: core/ops/prefix.h.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// grid (P, 2), block kThreads: a block owns one row's key (blockIdx.y 0) or value (1). Traffic: K D f32 read,
// K D S written. kVector values a thread and turn, 16 bytes of S, or 1. Deterministic.
template <typename S, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void prefix_forward_kernel(
    const float* __restrict__ table,  // (P, 2 L, K D), from the layer's key on
    S* __restrict__ k,                // (P, K D) =
    S* __restrict__ v,                // (P, K D) =
    int64_t stride, int width) {
  const int64_t p = blockIdx.x;
  const float* from = table + p * stride + static_cast<int64_t>(blockIdx.y) * width;
  S* to = (blockIdx.y ? v : k) + p * width;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < width; j += kThreads * kVector) {
    float values[kVector];
    load_floats(from + j, values);
    store_row(to + j, values);
  }
}

// The same blocks the other way round: the block's row of the table += dk or dv. Traffic: K D T read, K D f32
// read and written. No two threads meet: deterministic.
template <typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void prefix_backward_kernel(
    const T* __restrict__ dk,    // (P, K D)
    const T* __restrict__ dv,    // (P, K D)
    float* __restrict__ dtable,  // (P, 2 L, K D), from the layer's key on +=
    int64_t stride, int width) {
  const int64_t p = blockIdx.x;
  const T* from = (blockIdx.y ? dv : dk) + p * width;
  float* to = dtable + p * stride + static_cast<int64_t>(blockIdx.y) * width;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < width; j += kThreads * kVector) {
    float values[kVector], sum[kVector];
    load_row(from + j, values);
    load_floats(to + j, sum);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] += values[i];
    store_floats(to + j, sum);
  }
}

}  // namespace gantrain::cuda
