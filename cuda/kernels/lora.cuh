// What adapters need beside products: core/ops/lora.h.
#pragma once

#include "cuda/device/philox.cuh"
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

// to = or += scale * from where Philox(key)(row, column / 4)[column % 4] >= bound, else = 0 or += nothing:
// what dropout leaves of rows of `width` values. Grid (rows, ceil(width / (4 kThreads))), no shared memory; a
// thread owns four columns, which share one draw. kVector 4: width is a multiple of four and rows are aligned
// to 16 bytes; else 1. Traffic: f32 read and written once (to read too with kAdd). Deterministic.
template <bool kAdd, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void dropout_kernel(const float* __restrict__ from,  // (N, width)
                                                           float* __restrict__ to,          // (N, width)
                                                           uint64_t key, uint32_t bound, float scale,
                                                           int width) {
  const int64_t row = blockIdx.x;
  const int j = (blockIdx.y * kThreads + threadIdx.x) * 4;
  if (j >= width) return;
  const PhiloxWords words = philox(key, static_cast<uint64_t>(row), static_cast<uint64_t>(j / 4));
  from += row * width + j;
  to += row * width + j;
#pragma unroll
  for (int l = 0; l < 4; l += kVector) {
    if (j + l >= width) return;
    float value[kVector], sum[kVector];
    load_floats(from + l, value);
    if constexpr (kAdd) load_floats(to + l, sum);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float kept = words.word[l + i] >= bound ? value[i] * scale : 0.0f;
      sum[i] = kAdd ? sum[i] + kept : kept;
    }
    store_floats(to + l, sum);
  }
}

}  // namespace gantrain::cuda
