// SwiGLU and its backward between the products: core/ops/mlp.h.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// From the product (N, 2F) in f32, gate then up, to a = silu(g) * u; g and u are rounded to S first and kept
// where wanted, so that backward sees what forward used. grid (N, F / kThreads): a thread owns one (n, j).
template <typename S, typename T, int kThreads>
__global__ __launch_bounds__(kThreads) void swiglu_forward_kernel(const float* __restrict__ product,
                                                                  S* __restrict__ gate, S* __restrict__ up,
                                                                  T* __restrict__ out, int f) {
  const int j = blockIdx.y * kThreads + threadIdx.x;
  const int64_t n = blockIdx.x;
  if (j >= f) return;
  const S g = from_float<S>(product[n * 2 * f + j]), u = from_float<S>(product[n * 2 * f + f + j]);
  if (gate) {
    gate[n * f + j] = g;
    up[n * f + j] = u;
  }
  const float gf = to_float(g);
  out[n * f + j] = from_float<T>(gf * sigmoid(gf) * to_float(u));
}

// dy (N, 2F) = [da * u * silu'(g); da * silu(g)]. Grid and block as above.
template <typename S, typename T, int kThreads>
__global__ __launch_bounds__(kThreads) void swiglu_backward_kernel(const S* __restrict__ gate,
                                                                   const S* __restrict__ up,
                                                                   const T* __restrict__ da,
                                                                   T* __restrict__ dy, int f) {
  const int j = blockIdx.y * kThreads + threadIdx.x;
  const int64_t n = blockIdx.x;
  if (j >= f) return;
  const float g = to_float(gate[n * f + j]), u = to_float(up[n * f + j]), d = to_float(da[n * f + j]);
  const float s = sigmoid(g);
  dy[n * 2 * f + j] = from_float<T>(d * u * s * (1.0f + g * (1.0f - s)));
  dy[n * 2 * f + f + j] = from_float<T>(d * g * s);
}

}  // namespace gantrain::cuda
