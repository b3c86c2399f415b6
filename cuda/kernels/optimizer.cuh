// Optimiser steps: core/ops/optimizer.h. One thread an element; grid (count / kThreads).
#pragma once

#include <cstdint>

namespace gantrain::cuda {

struct AdamWArgs {
  float lr, beta1, beta2, take1, take2, correct1, correct2, eps, weight_decay, grad_scale;
};
// Traffic an element: param, grad, m, v read, param, m, v written: 28 bytes.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void adamw_kernel(float* __restrict__ param,
                                                         const float* __restrict__ grad,
                                                         float* __restrict__ m, float* __restrict__ v,
                                                         AdamWArgs a, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const float g = grad[i] * a.grad_scale;
  const float mi = a.beta1 * m[i] + a.take1 * g, vi = a.beta2 * v[i] + a.take2 * g * g;
  m[i] = mi;
  v[i] = vi;
  const float direction = mi * a.correct1 / (sqrtf(vi * a.correct2) + a.eps);
  param[i] -= a.lr * (direction + a.weight_decay * param[i]);
}

template <int kThreads>
__global__ __launch_bounds__(kThreads) void ema_kernel(const float* __restrict__ x, float* __restrict__ mean,
                                                       float decay, float take, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) mean[i] = decay * mean[i] + take * x[i];
}

// flag[0] = 1 where a value's exponent bits are all ones: an infinity or a NaN. All writers write the same.
template <typename Word, int kThreads>
__global__ __launch_bounds__(kThreads) void find_not_finite_kernel(const Word* __restrict__ bits,
                                                                   Word exponent, int* __restrict__ flag,
                                                                   int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count && (bits[i] & exponent) == exponent) flag[0] = 1;
}

}  // namespace gantrain::cuda
