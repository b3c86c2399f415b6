// RoPE around the QKV products: core/ops/qkv.h.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// cos and sin of position * inv_freq, taken in f64 and rounded once, as on the CPU: table[n] = cos (D / 2),
// sin (D / 2). One thread an angle. grid (N * D / 2 / kThreads).
template <int kThreads>
__global__ __launch_bounds__(kThreads) void rotary_table_kernel(
    const int32_t* __restrict__ positions,  // (N)
    const float* __restrict__ inv_freq,     // (D / 2)
    float* __restrict__ table,              // (N, D)
    int64_t n, int half) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n * half) return;
  const int64_t row = i / half;
  const int j = static_cast<int>(i % half);
  double sine, cosine;
  sincos(static_cast<double>(positions[row]) * static_cast<double>(inv_freq[j]), &sine, &cosine);
  table[row * 2 * half + j] = static_cast<float>(cosine);
  table[row * 2 * half + half + j] = static_cast<float>(sine);
}

// From the product (N, (H + 2K) D) in f32 to q (N, H, D), k and v (N, K, D): q and k rotated by their angle,
// all rounded to S. grid (N), block kThreads: a block owns one row, a thread pairs (i, i + D / 2).
template <typename S, int kThreads>
__global__ __launch_bounds__(kThreads) void rotate_forward_kernel(const float* __restrict__ product,
                                                                  const float* __restrict__ table,  // (N, D)
                                                                  S* __restrict__ q, S* __restrict__ k,
                                                                  S* __restrict__ v, int heads, int kv_heads,
                                                                  int half) {
  const int64_t row = blockIdx.x;
  const int d = 2 * half, pairs = (heads + 2 * kv_heads) * half;
  product += row * (heads + 2 * kv_heads) * d;
  table += row * d;
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    const int head = i / half, j = i % half;
    const float a = product[head * d + j], b = product[head * d + half + j];
    if (head >= heads + kv_heads) {
      S* to = v + (row * kv_heads + head - heads - kv_heads) * d + j;
      to[0] = from_float<S>(a);
      to[half] = from_float<S>(b);
      continue;
    }
    S* to = head < heads ? q + (row * heads + head) * d + j : k + (row * kv_heads + head - heads) * d + j;
    const float cosine = table[j], sine = table[half + j];
    to[0] = from_float<S>(a * cosine - b * sine);
    to[half] = from_float<S>(b * cosine + a * sine);
  }
}

// The transpose: dq, dk un-rotated, with dv beside them as dy (N, (H + 2K) D) of T. Grid and block as above.
template <typename T, int kThreads>
__global__ __launch_bounds__(kThreads) void rotate_backward_kernel(const T* __restrict__ dq,
                                                                   const T* __restrict__ dk,
                                                                   const T* __restrict__ dv,
                                                                   const float* __restrict__ table,  // (N, D)
                                                                   T* __restrict__ dy, int heads,
                                                                   int kv_heads, int half) {
  const int64_t row = blockIdx.x;
  const int d = 2 * half, pairs = (heads + 2 * kv_heads) * half;
  dy += row * (heads + 2 * kv_heads) * d;
  table += row * d;
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    const int head = i / half, j = i % half;
    T* to = dy + head * d + j;
    if (head >= heads + kv_heads) {
      const T* from = dv + (row * kv_heads + head - heads - kv_heads) * d + j;
      to[0] = from[0];
      to[half] = from[half];
      continue;
    }
    const T* from =
        head < heads ? dq + (row * heads + head) * d + j : dk + (row * kv_heads + head - heads) * d + j;
    const float a = to_float(from[0]), b = to_float(from[half]), cosine = table[j], sine = table[half + j];
    to[0] = from_float<T>(a * cosine + b * sine);
    to[half] = from_float<T>(b * cosine - a * sine);
  }
}

}  // namespace gantrain::cuda
