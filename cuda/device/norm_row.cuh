// Rows under RMSNorm, and the lanes that own them: 2^log_lanes neighbours of a warp a row.
#pragma once

#include "cuda/device/quads.cuh"

namespace gantrain::cuda {

// The row of this thread, its place among the row's lanes, and the lanes of the warp that have one; all
// threads of a warp must ask. A warp has 2^(5 - log_lanes) rows, so that rows of few columns leave no lane
// idle.
struct RowOwner {
  int64_t row;
  int lane, lanes;
  unsigned owners;
};
template <int kThreads>
__device__ inline RowOwner row_owner(int log_lanes, int64_t rows) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = thread >> log_lanes;
  const int lanes = 1 << log_lanes;
  return {row, static_cast<int>(thread) & (lanes - 1), lanes, __ballot_sync(kAllLanes, row < rows)};
}
// Over the lanes of a row, in a fixed order; each gets the result.
__device__ inline float row_sum(float x, const RowOwner& own) {
  for (int offset = own.lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(own.owners, x, offset);
  return x;
}

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
                                         float* __restrict__ dx, int c, const RowOwner& own) {
  const int first = own.lane * kVector, step = own.lanes * kVector;
  float dot = 0;
#pragma unroll 1
  for (int j = first; j < c; j += step) {
    float d[kVector], v[kVector];
    load_floats(dy + j, d);
    apply_gain(gain, j, d);
    load_floats(x + j, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) dot += d[i] * v[i];
  }
  const float mean = row_sum(dot, own) * rstd / static_cast<float>(c);
#pragma unroll 1
  for (int j = first; j < c; j += step) {
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
