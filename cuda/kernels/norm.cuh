// RMSNorm: the row statistic, normalised rows in any type, forward and backward: core/ops/norm.h.
#pragma once

#include "cuda/device/norm_row.cuh"

namespace gantrain::cuda {

// The lanes of a row (RowOwner) are what 2^log_lanes says, by C alone: sums are those of its lanes, in a
// fixed order whatever N is. grid (N * lanes / kThreads), block kThreads.

// kVector: columns a lane moves at once, 16 bytes of f32, and C is a multiple of 4, of 8 where there are
// 16-bit types, and rows are aligned to 16 bytes. Or 1. Launch bounds leave 32 registers a thread.

// 1 / sqrt(mean(x^2) + eps) of a row, in each of its lanes.
template <int kVector>
__device__ inline float row_rstd_of(const float* __restrict__ x, int c, float eps, const RowOwner& own) {
  float sum = 0;
#pragma unroll 1
  for (int j = own.lane * kVector; j < c; j += own.lanes * kVector) {
    float v[kVector];
    load_floats(x + j, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum += v[i] * v[i];
  }
  return 1.0f / sqrtf(row_sum(sum, own) / static_cast<float>(c) + eps);
}
// y (C) = x * r * gain, rounded to T: two places of kVector columns a lane at a time.
template <int kVector, bool kScaled, typename T>
__device__ inline void scaled_row(const float* __restrict__ x, float r, const float* __restrict__ gain,
                                  T* __restrict__ y, int c, const RowOwner& own) {
  const int apart = own.lanes * kVector;
  unsigned lanes = own.owners;  // those that go round once more
#pragma unroll 1
  for (int j = own.lane * kVector;; j += 2 * apart) {
    lanes = __ballot_sync(lanes, j < c);
    if (j >= c) break;
    const bool second = j + apart < c;
    float a[kVector], b[kVector] = {};
    load_quads(x + j, apart, second, lanes, a, b);
    const auto scale = [&](int at, float(&v)[kVector]) {
      if constexpr (kScaled) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) v[i] *= r;
      }
      apply_gain(gain, at, v);
    };
    scale(j, a);
    if (second) scale(j + apart, b);
    store_quads(y + j, apart, second, lanes, a, b);
  }
}

// Traffic a row: C f32 read, one f32 written; with `rounded`, = x * gain, C f32 read again from the cache and
// C bf16 written, kRound columns a lane at a time.
template <int kVector, int kThreads, int kRound>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void row_rstd_kernel(
    const float* __restrict__ x,          // (N, C)
    const float* __restrict__ gain,       // (C) or null: ones
    float* __restrict__ rstd,             // (N)
    __nv_bfloat16* __restrict__ rounded,  // (N, C) or null
    int64_t n, int c, float eps, int log_lanes) {
  const RowOwner own = row_owner<kThreads>(log_lanes, n);
  if (own.row >= n) return;
  x += own.row * c;
  const float r = row_rstd_of<kVector>(x, c, eps, own);
  if (own.lane == 0) rstd[own.row] = r;
  if (rounded) scaled_row<kRound, false>(x, r, gain, rounded + own.row * c, c, own);
}

// y[n] = x[index(n)] * rstd[n] * gain, rounded to T; the statistic is computed when kStatistic, else read.
// Traffic a row: C f32 read (twice with the statistic, the second time from the cache), C T written.
template <typename T, int kVector, int kThreads, bool kStatistic>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void normalise_kernel(
    const float* __restrict__ x,       // (M, C)
    const int32_t* __restrict__ rows,  // (N) or null
    const float* __restrict__ gain,    // (C) or null
    float* __restrict__ rstd,          // (N)
    T* __restrict__ y,                 // (N, C)
    int64_t n, int c, float eps, int log_lanes) {
  const RowOwner own = row_owner<kThreads>(log_lanes, n);
  if (own.row >= n) return;
  x += (rows ? rows[own.row] : own.row) * c;
  float r;
  if constexpr (kStatistic) {
    r = row_rstd_of<kVector>(x, c, eps, own);
    if (own.lane == 0) rstd[own.row] = r;
  } else {
    r = rstd[own.row];
  }
  scaled_row<kVector, true>(x, r, gain, y + own.row * c, c, own);
}

// dx[index(n)] += rstd * (d - xhat * mean(d * xhat)),  d = dy * gain,  xhat = x * rstd. With `rows` they must
// be distinct. Traffic a row: 3 C f32 read (x and dy a second time from the cache), C f32 written.
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void norm_backward_kernel(
    const float* __restrict__ x,     // (N, C)
    const float* __restrict__ rstd,  // (N)
    const float* __restrict__ gain,  // (C) or null
    const float* __restrict__ dy,    // (N, C)
    float* __restrict__ dx,          // (N, C) +=
    int64_t n, int c, int log_lanes) {
  const RowOwner own = row_owner<kThreads>(log_lanes, n);
  if (own.row >= n) return;
  norm_backward_row<kVector>(x + own.row * c, rstd[own.row], gain, dy + own.row * c, dx + own.row * c, c,
                             own);
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
