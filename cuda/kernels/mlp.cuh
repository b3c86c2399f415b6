// SwiGLU and its backward: core/ops/mlp.h.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// From kVector neighbours of the gate and up product, in f32, to g and u, rounded to S and kept where wanted,
// and a = silu(g) * u of what was rounded, so that backward sees what forward used. All pointers are to the
// first of them.
template <int kVector, typename S, typename T>
__device__ inline void swiglu(const float (&g)[kVector], const float (&u)[kVector], S* gate, S* up, T* out) {
  Vector<S, kVector> gs, us;
  Vector<T, kVector> as;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    gs.value[i] = from_float<S>(g[i]);
    us.value[i] = from_float<S>(u[i]);
    const float x = to_float(gs.value[i]);
    as.value[i] = from_float<T>(x * sigmoid(x) * to_float(us.value[i]));
  }
  if (gate) {
    store_vector(gate, gs);
    store_vector(up, us);
  }
  store_vector(out, as);
}

// At the end of the product itself (cuda/kernels/matmul_tensor.cuh): its 2F columns never reach memory in
// f32.
template <typename S, typename T>
struct SwigluEpilogue {
  static constexpr bool kPaired = true;
  S *gate, *up;       // (N, F), or null
  T* out;             // (N, F)
  const float* bias;  // (2F) or null
  int64_t half;       // F
  bool wide;          // F is a multiple of four and all are aligned to four values

  template <int kCount>
  __device__ void store(int64_t row, int64_t j, float (&g)[kCount], float (&u)[kCount], bool inside) const {
    if (!inside) return;
    const int64_t at = row * half + j;
    if (bias)
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (j + i < half) {
          g[i] += bias[j + i];
          u[i] += bias[half + j + i];
        }
    if (wide) {
      if (j < half) swiglu(g, u, gate ? gate + at : nullptr, gate ? up + at : nullptr, out + at);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float gi[1] = {g[i]}, ui[1] = {u[i]};
        if (j + i < half)
          swiglu(gi, ui, gate ? gate + at + i : nullptr, gate ? up + at + i : nullptr, out + at + i);
      }
    }
  }
};

// From the product (N, 2F) in f32, gate then up. grid (N): a block owns a row, a thread kVector neighbours at
// a time. Traffic a value: 8 B read, 2 S and one T written.
template <typename S, typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void swiglu_forward_kernel(const float* __restrict__ product,
                                                                  S* __restrict__ gate, S* __restrict__ up,
                                                                  T* __restrict__ out, int f) {
  constexpr int kPart = kVector < 4 ? kVector : 4;
  const int64_t row = blockIdx.x;
  product += row * 2 * f;
  for (int j = threadIdx.x * kVector; j < f; j += kThreads * kVector) {
    float g[kVector], u[kVector];
#pragma unroll
    for (int i = 0; i < kVector; i += kPart) {
      const Vector<float, kPart> gp = load_vector<kPart>(product + j + i),
                                 up_part = load_vector<kPart>(product + f + j + i);
#pragma unroll
      for (int e = 0; e < kPart; ++e) {
        g[i + e] = gp.value[e];
        u[i + e] = up_part.value[e];
      }
    }
    const int64_t at = row * f + j;
    swiglu(g, u, gate ? gate + at : nullptr, gate ? up + at : nullptr, out + at);
  }
}

// dy (N, 2F) = [da * u * silu'(g); da * silu(g)]. Grid and block as above. Traffic a value: 2 S and 3 T.
template <typename S, typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void swiglu_backward_kernel(const S* __restrict__ gate,
                                                                   const S* __restrict__ up,
                                                                   const T* __restrict__ da,
                                                                   T* __restrict__ dy, int f) {
  const int64_t row = blockIdx.x;
  for (int j = threadIdx.x * kVector; j < f; j += kThreads * kVector) {
    const Vector<S, kVector> gs = load_vector<kVector>(gate + row * f + j),
                             us = load_vector<kVector>(up + row * f + j);
    const Vector<T, kVector> ds = load_vector<kVector>(da + row * f + j);
    Vector<T, kVector> dg, du;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float g = to_float(gs.value[i]), u = to_float(us.value[i]), d = to_float(ds.value[i]),
                  s = sigmoid(g);
      dg.value[i] = from_float<T>(d * u * s * (1.0f + g * (1.0f - s)));
      du.value[i] = from_float<T>(d * g * s);
    }
    store_vector(dy + row * 2 * f + j, dg);
    store_vector(dy + row * 2 * f + f + j, du);
  }
}

// a = silu(g) * u of what was kept, the same bits as forward's. Grid ceil(count / (kVector kThreads)), no
// shared memory; a thread owns kVector values, aligned to their size, each read and written once:
// deterministic.
template <typename S, typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void swiglu_again_kernel(const S* __restrict__ gate,
                                                                const S* __restrict__ up, T* __restrict__ out,
                                                                int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (i >= count) return;
  const Vector<S, kVector> gs = load_vector<kVector>(gate + i), us = load_vector<kVector>(up + i);
  Vector<T, kVector> as;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const float x = to_float(gs.value[j]);
    as.value[j] = from_float<T>(x * sigmoid(x) * to_float(us.value[j]));
  }
  store_vector(out + i, as);
}

}  // namespace gantrain::cuda
