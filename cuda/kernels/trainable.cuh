// The small trainable networks' elementwise ops, in f32: core/ops/trainable.h. A thread owns kVector
// neighbouring elements, 4 where all is aligned to 16 bytes and else 1, or a column, where a sum must run in
// order. grid (count / kVector / kThreads) unless said otherwise; `count` is a multiple of kVector. Traffic:
// every operand once. Linear layers are matrix products: cuda/ops/matmul.h.
#pragma once

#include "cuda/device/philox.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

template <int kThreads>
__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

enum class ActivationCode : int { kSilu, kGelu, kTanh };

constexpr float kGeluScale = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;

// exp of a number that is never positive: no overflow for any x.
__device__ inline float stable_sigmoid(float x) {
  const float e = expf(-fabsf(x)), inverse = reciprocal(1.0f + e);
  return x >= 0.0f ? inverse : e * inverse;
}
template <ActivationCode kCode>
__device__ inline float activate(float x) {
  if constexpr (kCode == ActivationCode::kSilu) return x * stable_sigmoid(x);
  if constexpr (kCode == ActivationCode::kGelu)
    return 0.5f * x * (1.0f + tanhf(kGeluScale * (x + kGeluCubic * x * x * x)));
  return tanhf(x);
}
template <ActivationCode kCode>
__device__ inline float activation_slope(float x) {
  if constexpr (kCode == ActivationCode::kSilu) {
    const float s = stable_sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
  if constexpr (kCode == ActivationCode::kGelu) {
    const float t = tanhf(kGeluScale * (x + kGeluCubic * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * kGeluScale * (1.0f + 3.0f * kGeluCubic * x * x);
  }
  const float t = tanhf(x);
  return 1.0f - t * t;
}
template <ActivationCode kCode, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void activation_forward_kernel(
    const float* __restrict__ x, float* __restrict__ y, int64_t count) {
  const int64_t i = thread_index<kThreads>() * kVector;
  if (i >= count) return;
  float v[kVector];
  load_floats(x + i, v);
#pragma unroll
  for (float& e : v) e = activate<kCode>(e);
  store_floats(y + i, v);
}
template <ActivationCode kCode, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void activation_backward_kernel(
    const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ dx, int64_t count) {
  const int64_t i = thread_index<kThreads>() * kVector;
  if (i >= count) return;
  float v[kVector], d[kVector], to[kVector];
  load_floats(x + i, v);
  load_floats(dy + i, d);
  load_floats(dx + i, to);
#pragma unroll
  for (int e = 0; e < kVector; ++e) to[e] += d[e] * activation_slope<kCode>(v[e]);
  store_floats(dx + i, to);
}

// y[b, p] = a[p] + c[b]: grid (B, P * C / kVector / kThreads); C is a multiple of kVector.
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void broadcast_add_forward_kernel(
    const float* __restrict__ a,  // (P, C)
    const float* __restrict__ c,  // (B, C)
    float* __restrict__ y,        // (B, P, C)
    int size, int width) {        // P * C, C
  const int64_t b = blockIdx.x;
  const int i = (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  if (i >= size) return;
  float v[kVector], more[kVector];
  load_floats(a + i, v);
  load_floats(c + b * width + i % width, more);
#pragma unroll
  for (int e = 0; e < kVector; ++e) v[e] += more[e];
  store_floats(y + b * size + i, v);
}
// x (outer, inner, width) summed over one extent, in order:  to[o, j] += sum_i x[o * outer_step + i * step +
// j]. A thread owns one (o, j). With outer_step = width and step = inner extent * width the roles are
// exchanged.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void strided_sum_kernel(const float* __restrict__ x,
                                                               float* __restrict__ to, int64_t outer,
                                                               int width, int64_t inner, int64_t outer_step,
                                                               int64_t step) {
  const int64_t i = thread_index<kThreads>();
  if (i >= outer * width) return;
  const float* from = x + i / width * outer_step + i % width;
  float sum = to[i];
  for (int64_t j = 0; j < inner; ++j) sum += from[j * step];
  to[i] = sum;
}

// y[b, p] = base[p] + s * x[b, p]: grid (B, P * C / kVector / kThreads)
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void scaled_add_forward_kernel(
    const float* __restrict__ base,  // (P, C)
    const float* __restrict__ x,     // (B, P, C)
    const float* __restrict__ s,     // (1)
    float* __restrict__ y,           // (B, P, C)
    int size) {                      // P * C
  const int i = (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  if (i >= size) return;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * size + i;
  float v[kVector], from[kVector];
  load_floats(base + i, v);
  load_floats(x + at, from);
  const float factor = s[0];
#pragma unroll
  for (int e = 0; e < kVector; ++e) v[e] += factor * from[e];
  store_floats(y + at, v);
}
// y += a * x, with a from memory where `a_at` is given.
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void axpy_kernel(const float* __restrict__ x,
                                                                               const float* __restrict__ a_at,
                                                                               float a, float* __restrict__ y,
                                                                               int64_t count) {
  const int64_t i = thread_index<kThreads>() * kVector;
  if (i >= count) return;
  const float factor = a_at ? a_at[0] : a;
  float v[kVector], from[kVector];
  load_floats(y + i, v);
  load_floats(x + i, from);
#pragma unroll
  for (int e = 0; e < kVector; ++e) v[e] += factor * from[e];
  store_floats(y + i, v);
}

// y[r] = x[rows[r]]: grid (R, C / kVector / kThreads)
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void gather_rows_kernel(
    const float* __restrict__ x, const int32_t* __restrict__ rows, float* __restrict__ y, int width) {
  const int64_t r = blockIdx.x;
  const int j = (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  if (j >= width) return;
  float v[kVector];
  load_floats(x + static_cast<int64_t>(rows[r]) * width + j, v);
  store_floats(y + r * width + j, v);
}
// dx[rows[r]] += dy[r] in order of r: a thread owns a column, because rows may repeat.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void scatter_add_rows_kernel(const float* __restrict__ dy,
                                                                    const int32_t* __restrict__ rows,
                                                                    float* __restrict__ dx, int64_t count,
                                                                    int width) {
  const int64_t j = thread_index<kThreads>();
  if (j >= width) return;
  for (int64_t r = 0; r < count; ++r) dx[static_cast<int64_t>(rows[r]) * width + j] += dy[r * width + j];
}

// y[4i .. 4i + 3] = x + sigma * the normals of Philox(key)(counter, first + i): a thread owns four elements,
// of which the last one's may be missing where kVector is 1. grid (count / 4 / kThreads).
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void add_noise_kernel(
    const float* __restrict__ x, float sigma, uint64_t key, uint64_t counter, uint64_t first,
    float* __restrict__ y, int64_t count) {
  const int64_t i = thread_index<kThreads>();
  if (4 * i >= count) return;
  const PhiloxWords words = philox(key, counter, first + static_cast<uint64_t>(i));
  const float2 near = normal_pair(words.word[0], words.word[1]),
               far = normal_pair(words.word[2], words.word[3]);
  const float normal[4] = {near.x, near.y, far.x, far.y};
  if constexpr (kVector == 4) {
    float v[4];
    load_floats(x + 4 * i, v);
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] += sigma * normal[j];
    store_floats(y + 4 * i, v);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * i + j < count) y[4 * i + j] = x[4 * i + j] + sigma * normal[j];
  }
}

}  // namespace gantrain::cuda
