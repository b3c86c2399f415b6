// RMSNorm: the row statistic, normalised rows in any type, forward and backward: core/ops/norm.h.
#pragma once

#include "cuda/device/norm_row.cuh"

namespace gantrain::cuda {

// One warp owns one row in every kernel of this file but the gradient of the gain: sums are those of a warp,
// in a fixed order whatever N is. grid (N / kRows), block (32, kRows).

// kVector: columns a lane moves at once, 16 bytes of the narrowest type; C is a multiple of it and rows are
// aligned to 16 bytes. Or 1. Launch bounds leave 32 registers a thread.

// 1 / sqrt(mean(x^2) + eps) of a row, in every lane.
template <int kVector>
__device__ inline float row_rstd_of(const float* __restrict__ x, int c, float eps) {
  float sum = 0;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < c; j += kWarp * kVector) {
    float v[kVector];
    load_floats(x + j, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum += v[i] * v[i];
  }
  return 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(c) + eps);
}

// Traffic a row: C f32 read, one f32 written; with `rounded`, = x * gain, C f32 read again from the cache and
// C bf16 written, kRound at a time.
template <int kVector, int kRows, int kRound>
__global__ __launch_bounds__(kWarp* kRows, kFullBlocks<kWarp * kRows>) void row_rstd_kernel(
    const float* __restrict__ x,          // (N, C)
    const float* __restrict__ gain,       // (C) or null: ones
    float* __restrict__ rstd,             // (N)
    __nv_bfloat16* __restrict__ rounded,  // (N, C) or null
    int64_t n, int c, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  x += row * c;
  const float r = row_rstd_of<kVector>(x, c, eps);
  if (threadIdx.x == 0) rstd[row] = r;
  if (!rounded) return;
#pragma unroll 1
  for (int j = threadIdx.x * kRound; j < c; j += kWarp * kRound) {
    float v[kRound], g[kRound];
    load_row(x + j, v);
    if (gain) {
      load_row(gain + j, g);
#pragma unroll
      for (int i = 0; i < kRound; ++i) v[i] *= g[i];
    }
    store_row(rounded + row * c + j, v);
  }
}

// Sums that a product's epilogue left in parts (cuda/device/parts.cuh), `parts` a row: the sum itself or,
// kStatistic, 1 / sqrt(sum / c + eps). Traffic a row: the parts read, one f32 written.
template <int kVector, int kRows, bool kStatistic>
__global__ __launch_bounds__(kWarp* kRows, kFullBlocks<kWarp * kRows>) void sum_parts_kernel(
    const float* __restrict__ from,  // (N, parts)
    float* __restrict__ to,          // (N)
    int64_t n, int parts, int c, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  float sum = 0;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < parts; j += kWarp * kVector) {
    float v[kVector];
    load_floats(from + row * parts + j, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum += v[i];
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) to[row] = kStatistic ? 1.0f / sqrtf(sum / static_cast<float>(c) + eps) : sum;
}

// y[n] = x[index(n)] * rstd[n] * gain, rounded to T; the statistic is computed when kStatistic, else read.
// Traffic a row: C f32 read (twice with the statistic, the second time from the cache), C T written.
template <typename T, int kVector, int kRows, bool kStatistic>
__global__ __launch_bounds__(kWarp* kRows, kFullBlocks<kWarp * kRows>) void normalise_kernel(
    const float* __restrict__ x,       // (M, C)
    const int32_t* __restrict__ rows,  // (N) or null
    const float* __restrict__ gain,    // (C) or null
    float* __restrict__ rstd,          // (N)
    T* __restrict__ y,                 // (N, C)
    int64_t n, int c, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  x += (rows ? rows[row] : row) * c;
  y += row * c;
  float r;
  if constexpr (kStatistic) {
    r = row_rstd_of<kVector>(x, c, eps);
    if (threadIdx.x == 0) rstd[row] = r;
  } else {
    r = rstd[row];
  }
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < c; j += kWarp * kVector) {
    float v[kVector];
    load_floats(x + j, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) v[i] *= r;
    apply_gain(gain, j, v);
    store_row(y + j, v);
  }
}

// dx[index(n)] += rstd * (d - xhat * mean(d * xhat)),  d = dy * gain,  xhat = x * rstd. With `rows` they must
// be distinct. Traffic a row: 3 C f32 read (x and dy a second time from the cache), C f32 written.
template <int kVector, int kRows>
__global__ __launch_bounds__(kWarp* kRows, kFullBlocks<kWarp * kRows>) void norm_backward_kernel(
    const float* __restrict__ x,     // (N, C)
    const float* __restrict__ rstd,  // (N)
    const float* __restrict__ gain,  // (C) or null
    const float* __restrict__ dy,    // (N, C)
    float* __restrict__ dx,          // (N, C) +=
    int64_t n, int c) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  norm_backward_row<kVector>(x + row * c, rstd[row], gain, dy + row * c, dx + row * c, c);
}

// dw[j] += sum over n of dy * x * rstd, in order of n: grid (C / kThreads), a thread owns a column. rows: of
// x (null: row n is row n).
template <int kThreads>
__global__ __launch_bounds__(kThreads) void gain_gradient_kernel(const float* __restrict__ x,  // (rows, C)
                                                                 const int32_t* __restrict__ rows,  // (N)
                                                                 const float* __restrict__ rstd,    // (N)
                                                                 const float* __restrict__ dy,      // (N, C)
                                                                 float* __restrict__ dw,            // (C) +=
                                                                 int64_t n, int c) {
  const int j = blockIdx.x * kThreads + threadIdx.x;
  if (j >= c) return;
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = rows ? rows[i] : i;
    sum += dy[i * c + j] * x[row * c + j] * rstd[i];
  }
  dw[j] += sum;
}

}  // namespace gantrain::cuda
