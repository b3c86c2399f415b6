// What a warp does to a row under RMSNorm: the gain, and the gradient. A lane owns kVector neighbouring
// columns at a time.
#pragma once

#include "cuda/device/reduce.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// v times the gain (C) from j on, where there is one.
template <int kVector>
__device__ inline void apply_gain(const float* __restrict__ gain, int j, float (&v)[kVector]) {
  if (!gain) return;
  float g[kVector];
  load_constant_floats(gain + j, g);
#pragma unroll
  for (int i = 0; i < kVector; ++i) v[i] *= g[i];
}

// dx += rstd * (d - xhat * mean(d * xhat)),  d = dy * gain,  xhat = x * rstd: rows of c f32.
template <int kVector>
__device__ inline void norm_backward_row(const float* __restrict__ x, float rstd,
                                         const float* __restrict__ gain, const float* __restrict__ dy,
                                         float* __restrict__ dx, int c) {
  float dot = 0;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < c; j += kWarp * kVector) {
    float d[kVector], v[kVector];
    load_floats(dy + j, d);
    apply_gain(gain, j, d);
    load_floats(x + j, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) dot += d[i] * v[i];
  }
  const float mean = warp_sum(dot) * rstd / static_cast<float>(c);
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < c; j += kWarp * kVector) {
    float d[kVector], v[kVector];
    load_floats(dy + j, d);
    apply_gain(gain, j, d);
    load_floats(x + j, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) d[i] = rstd * (d[i] - v[i] * rstd * mean);
    load_floats(dx + j, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) v[i] += d[i];
    store_floats(dx + j, v);
  }
}

}  // namespace gantrain::cuda
