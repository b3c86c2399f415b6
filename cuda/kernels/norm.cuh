// RMSNorm: the row statistic, normalised rows in any type, forward and backward: core/ops/norm.h.
#pragma once

#include "cuda/device/reduce.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// One warp owns one row in every kernel of this file but the gradient of the gain: sums are those of a warp,
// in a fixed order whatever N is. grid (N / kRows), block (32, kRows).

// 1 / sqrt(mean(x^2) + eps) of a row, in every lane.
template <int kVector>
__device__ inline float row_rstd_of(const float* __restrict__ x, int c, float eps) {
  float sum = 0;
  for (int j = threadIdx.x * kVector; j < c; j += kWarp * kVector) {
    const Vector<float, kVector> v = load_vector<kVector>(x + j);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum += v.value[i] * v.value[i];
  }
  return 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(c) + eps);
}

// The gain (C) from j on, or ones where there is none.
template <int kVector>
__device__ inline Vector<float, kVector> gain_or_one(const float* __restrict__ gain, int j) {
  if (gain) return load_vector<kVector>(gain + j);
  Vector<float, kVector> ones;
#pragma unroll
  for (int i = 0; i < kVector; ++i) ones.value[i] = 1.0f;
  return ones;
}

// Traffic a row: C f32 read, one f32 written; with `rounded`, C f32 read again from the cache, C bf16
// written, kRound at a time.
template <int kVector, int kRows, int kRound>
__global__ __launch_bounds__(kWarp* kRows) void row_rstd_kernel(
    const float* __restrict__ x,          // (N, C)
    float* __restrict__ rstd,             // (N)
    __nv_bfloat16* __restrict__ rounded,  // (N, C) or null
    int64_t n, int c, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  x += row * c;
  const float r = row_rstd_of<kVector>(x, c, eps);
  if (threadIdx.x == 0) rstd[row] = r;
  if (!rounded) return;
  for (int j = threadIdx.x * kRound; j < c; j += kWarp * kRound) {
    float v[kRound];
    load_floats(x + j, v);
    store_floats(rounded + row * c + j, v);
  }
}

// Sums that a product's epilogue left in parts (cuda/kernels/matmul_epilogue.cuh), `parts` a row: the sum
// itself or, kStatistic, 1 / sqrt(sum / c + eps). Traffic a row: the parts read, one f32 written.
template <int kVector, int kRows, bool kStatistic>
__global__ __launch_bounds__(kWarp* kRows) void sum_parts_kernel(
    const float* __restrict__ from,  // (N, parts)
    float* __restrict__ to,          // (N)
    int64_t n, int parts, int c, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  float sum = 0;
  for (int j = threadIdx.x * kVector; j < parts; j += kWarp * kVector) {
    const Vector<float, kVector> v = load_vector<kVector>(from + row * parts + j);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum += v.value[i];
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) to[row] = kStatistic ? 1.0f / sqrtf(sum / static_cast<float>(c) + eps) : sum;
}

// y[n] = x[index(n)] * rstd[n] * gain, rounded to T; the statistic is computed when kStatistic, else read.
// Traffic a row: C f32 read (twice with the statistic, the second time from the cache), C T written.
template <typename T, int kVector, int kRows, bool kStatistic>
__global__ __launch_bounds__(kWarp* kRows) void normalise_kernel(
    const float* __restrict__ x,       // (M, C)
    const int32_t* __restrict__ rows,  // (N) or null
    const float* __restrict__ gain,    // (C) or null
    float* __restrict__ rstd,          // (N)
    T* __restrict__ y,                 // (N, C)
    int64_t n, int c, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  x += (rows ? rows[row] : row) * c;
  float r;
  if constexpr (kStatistic) {
    r = row_rstd_of<kVector>(x, c, eps);
    if (threadIdx.x == 0) rstd[row] = r;
  } else {
    r = rstd[row];
  }
  for (int j = threadIdx.x * kVector; j < c; j += kWarp * kVector) {
    const Vector<float, kVector> v = load_vector<kVector>(x + j);
    const Vector<float, kVector> g = gain_or_one<kVector>(gain, j);
    Vector<T, kVector> out;
#pragma unroll
    for (int i = 0; i < kVector; ++i) out.value[i] = from_float<T>(v.value[i] * r * g.value[i]);
    store_vector(y + row * c + j, out);
  }
}

// dx[index(n)] += rstd * (d - xhat * mean(d * xhat)),  d = dy * gain,  xhat = x * rstd. With `rows` they must
// be distinct. Traffic a row: 3 C f32 read (x and dy a second time from the cache), C f32 written.
template <int kVector, int kRows>
__global__ __launch_bounds__(kWarp* kRows) void norm_backward_kernel(
    const float* __restrict__ x,     // (N, C)
    const float* __restrict__ rstd,  // (N)
    const float* __restrict__ gain,  // (C) or null
    const float* __restrict__ dy,    // (N, C)
    float* __restrict__ dx,          // (N, C) +=
    int64_t n, int c) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  x += row * c;
  dy += row * c;
  dx += row * c;
  const float r = rstd[row];
  float dot = 0;
  for (int j = threadIdx.x * kVector; j < c; j += kWarp * kVector) {
    const Vector<float, kVector> xs = load_vector<kVector>(x + j), ds = load_vector<kVector>(dy + j),
                                 g = gain_or_one<kVector>(gain, j);
#pragma unroll
    for (int i = 0; i < kVector; ++i) dot += ds.value[i] * g.value[i] * xs.value[i];
  }
  const float mean = warp_sum(dot) * r / static_cast<float>(c);
  for (int j = threadIdx.x * kVector; j < c; j += kWarp * kVector) {
    const Vector<float, kVector> xs = load_vector<kVector>(x + j), ds = load_vector<kVector>(dy + j),
                                 g = gain_or_one<kVector>(gain, j);
    Vector<float, kVector> out = load_vector<kVector>(dx + j);
#pragma unroll
    for (int i = 0; i < kVector; ++i) out.value[i] += r * (ds.value[i] * g.value[i] - xs.value[i] * r * mean);
    store_vector(dx + j, out);
  }
}

// dw[j] += sum over n of dy * x * rstd, in order of n: grid (C / kThreads), a thread owns a column.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void gain_gradient_kernel(const float* __restrict__ x,     // (N, C)
                                                                 const float* __restrict__ rstd,  // (N)
                                                                 const float* __restrict__ dy,    // (N, C)
                                                                 float* __restrict__ dw,          // (C) +=
                                                                 int64_t n, int c) {
  const int j = blockIdx.x * kThreads + threadIdx.x;
  if (j >= c) return;
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += dy[i * c + j] * x[i * c + j] * rstd[i];
  dw[j] += sum;
}

}  // namespace gantrain::cuda
