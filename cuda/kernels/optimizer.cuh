// Optimiser steps over all tensors of a player at once: core/ops/optimizer.h.
//
// A launch gets a list of tensors by value. Blocks of kListThreads threads own kListChunk elements of one
// tensor each; they are numbered through the list. Where every address of the list is a multiple of 16 bytes
// a thread reads and writes 16 bytes at a time, and the last few elements of a tensor one by one.
#pragma once

#include <cstdint>

#include "cuda/device/reduce.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

constexpr int kListThreads = 256, kListWide = 4, kListChunk = kListThreads * kListWide;
constexpr int kListTensors = 64;  // of one launch: the arguments stay below 4 KB

// kArrays pointers to each tensor, and where its blocks begin.
template <int kArrays>
struct TensorList {
  float* array[kArrays][kListTensors];
  int64_t count[kListTensors];
  int32_t first_block[kListTensors + 1];
  int32_t tensors;
};

// The tensor that block `block` belongs to: the last one that begins at or before it.
template <int kArrays>
__device__ inline int tensor_of(const TensorList<kArrays>& list, int block) {
  int low = 0, high = list.tensors;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.first_block[middle] <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// A norm that is not finite: the step is not taken.
__device__ inline bool refuses(const float* norm) {
  return norm != nullptr && (__float_as_uint(*norm) & 0x7f800000u) == 0x7f800000u;
}

struct AdamWArgs {
  float lr, beta1, beta2, take1, take2, correct1, correct2, eps, weight_decay, clip;
};
__device__ inline void adamw_element(float& param, float grad, float& m, float& v, float scale,
                                     const AdamWArgs& a) {
  const float g = grad * scale;
  m = a.beta1 * m + a.take1 * g;
  v = a.beta2 * v + a.take2 * g * g;
  const float direction = m * a.correct1 / (sqrtf(v * a.correct2) + a.eps);
  param -= a.lr * (direction + a.weight_decay * param);
}

// list: param, grad, m, v. norm: (1) or null, read by every block. grid (blocks of the list).
// Traffic an element: param, grad, m, v read, param, m, v written: 28 bytes. Nothing is summed:
// deterministic.
template <bool kAligned>
__global__ __launch_bounds__(kListThreads) void adamw_kernel(const __grid_constant__ TensorList<4> list,
                                                             const float* __restrict__ norm,
                                                             const __grid_constant__ AdamWArgs a) {
  if (refuses(norm)) return;
  const float scale = norm != nullptr && a.clip > 0.0f && *norm > a.clip ? a.clip / *norm : 1.0f;
  const int t = tensor_of(list, static_cast<int>(blockIdx.x));
  const int64_t count = list.count[t],
                begin = static_cast<int64_t>(static_cast<int>(blockIdx.x) - list.first_block[t]) * kListChunk;
  float *param = list.array[0][t], *m = list.array[2][t], *v = list.array[3][t];
  const float* grad = list.array[1][t];
  const int64_t i = begin + static_cast<int64_t>(threadIdx.x) * kListWide;
  if (kAligned && i + kListWide <= count) {
    auto p4 = load_vector<kListWide>(param + i), m4 = load_vector<kListWide>(m + i),
         v4 = load_vector<kListWide>(v + i);
    const auto g4 = load_vector<kListWide>(grad + i);
#pragma unroll
    for (int k = 0; k < kListWide; ++k)
      adamw_element(p4.value[k], g4.value[k], m4.value[k], v4.value[k], scale, a);
    store_vector(param + i, p4);
    store_vector(m + i, m4);
    store_vector(v + i, v4);
    return;
  }
  for (int64_t k = i; k < count && k < i + kListWide; ++k)
    adamw_element(param[k], grad[k], m[k], v[k], scale, a);
}

// list: x, mean. mean = decay * mean + take * x. grid (blocks of the list). Traffic an element: 12 bytes.
template <bool kAligned>
__global__ __launch_bounds__(kListThreads) void ema_kernel(const __grid_constant__ TensorList<2> list,
                                                           const float* __restrict__ norm, float decay,
                                                           float take) {
  if (refuses(norm)) return;
  const int t = tensor_of(list, static_cast<int>(blockIdx.x));
  const int64_t count = list.count[t],
                begin = static_cast<int64_t>(static_cast<int>(blockIdx.x) - list.first_block[t]) * kListChunk;
  const float* x = list.array[0][t];
  float* mean = list.array[1][t];
  const int64_t i = begin + static_cast<int64_t>(threadIdx.x) * kListWide;
  if (kAligned && i + kListWide <= count) {
    const auto x4 = load_vector<kListWide>(x + i);
    auto m4 = load_vector<kListWide>(mean + i);
#pragma unroll
    for (int k = 0; k < kListWide; ++k) m4.value[k] = decay * m4.value[k] + take * x4.value[k];
    store_vector(mean + i, m4);
    return;
  }
  for (int64_t k = i; k < count && k < i + kListWide; ++k) mean[k] = decay * mean[k] + take * x[k];
}

// partial[b] = sum of x^2 over the chunks c of the list with c % gridDim.x == b, in f64, in the order of the
// chunks: the same partition for the same shapes. grid (at most kSumPartials). Traffic an element: 4 bytes.
template <bool kAligned>
__global__ __launch_bounds__(kListThreads) void squares_kernel(const __grid_constant__ TensorList<1> list,
                                                               double* __restrict__ partial) {
  double sum = 0;
  for (int chunk = static_cast<int>(blockIdx.x); chunk < list.first_block[list.tensors];
       chunk += static_cast<int>(gridDim.x)) {
    const int t = tensor_of(list, chunk);
    const int64_t count = list.count[t], i = static_cast<int64_t>(chunk - list.first_block[t]) * kListChunk +
                                             static_cast<int64_t>(threadIdx.x) * kListWide;
    const float* x = list.array[0][t];
    float own[kListWide] = {};
    if (kAligned && i + kListWide <= count) {
      const auto x4 = load_vector<kListWide>(x + i);
#pragma unroll
      for (int k = 0; k < kListWide; ++k) own[k] = x4.value[k];
    } else {
#pragma unroll
      for (int k = 0; k < kListWide; ++k)
        if (i + k < count) own[k] = x[i + k];
    }
#pragma unroll
    for (int k = 0; k < kListWide; ++k) sum += static_cast<double>(own[k]) * static_cast<double>(own[k]);
  }
  sum = block_sum<kListThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// flag[0] = 1 where a value's exponent bits are all ones: an infinity or a NaN. All writers write the same. A
// thread looks at kListWide 32-bit words, two values each if kPairs; `count` words, aligned to 16 bytes where
// kAligned. grid (count / kListChunk). Traffic a word: 4 bytes.
template <bool kPairs, bool kAligned>
__global__ __launch_bounds__(kListThreads) void find_not_finite_kernel(const uint32_t* __restrict__ words,
                                                                       uint32_t exponent,
                                                                       int* __restrict__ flag,
                                                                       int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kListThreads + threadIdx.x) * kListWide;
  const auto bad = [&](uint32_t word) {
    if (kPairs && (word >> 16 & exponent) == exponent) return true;
    return (word & exponent) == exponent;
  };
  bool found = false;
  if (kAligned && i + kListWide <= count) {
    const auto w4 = load_vector<kListWide>(words + i);
#pragma unroll
    for (int k = 0; k < kListWide; ++k) found |= bad(w4.value[k]);
  } else {
    for (int64_t k = i; k < count && k < i + kListWide; ++k) found |= bad(words[k]);
  }
  if (found) flag[0] = 1;
}
// The one value of 16 bits that is left where their number is odd. grid (1), block (1).
static __global__ void find_not_finite_last_kernel(const uint16_t* __restrict__ value, uint32_t exponent,
                                                   int* __restrict__ flag) {
  if ((*value & exponent) == exponent) flag[0] = 1;
}

}  // namespace gantrain::cuda
