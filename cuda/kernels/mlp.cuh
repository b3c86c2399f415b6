// SwiGLU and its backward: core/ops/mlp.h.
#pragma once

#include "cuda/device/parts.cuh"
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

// At the end of the product itself (cuda/kernels/matmul_epilogue.cuh), after the norm's row scale: its 2F
// columns never reach memory in f32.
template <typename S, typename T>
struct SwigluEpilogue {
  static constexpr bool kPaired = true;
  S *gate, *up;        // (N, F), or null
  T* out;              // (N, F)
  const float* scale;  // (N) or null: ones
  const float* bias;   // (2F) or null
  int64_t half;        // F
  int width;           // so many values (1, 4 or 8) of all of them lie side by side, aligned, or not at all

  template <int kCount>
  __device__ void store(int64_t row, int64_t j, float (&g)[kCount], float (&u)[kCount], bool inside) const {
    if (!inside) return;
    const int64_t at = row * half + j;
    if (scale) {
      const float r = scale[row];
#pragma unroll
      for (int i = 0; i < kCount; ++i) g[i] *= r, u[i] *= r;
    }
    if (width >= kCount) {
      if (j >= half) return;
      if (bias) {
        float first[kCount], second[kCount];
        load_floats(bias + j, first);
        load_floats(bias + half + j, second);
#pragma unroll
        for (int i = 0; i < kCount; ++i) g[i] += first[i], u[i] += second[i];
      }
      swiglu(g, u, gate ? gate + at : nullptr, gate ? up + at : nullptr, out + at);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (j + i >= half) break;
        const float gi[1] = {g[i] + (bias ? bias[j + i] : 0.0f)},
                    ui[1] = {u[i] + (bias ? bias[half + j + i] : 0.0f)};
        swiglu(gi, ui, gate ? gate + at + i : nullptr, gate ? up + at + i : nullptr, out + at + i);
      }
    }
  }
};

// dg and du from da, g and u.
struct SwigluGradient {
  float g, u;
};
__device__ inline SwigluGradient swiglu_gradient(float g, float u, float da) {
  const float s = sigmoid(g);
  return {da * u * s * (1.0f + g * (1.0f - s)), da * g * s};
}

// At the end of the product da = dout w: da never reaches memory. With `dots`, for RMSNorm's backward: the
// sums of dg g + du u over 16 columns each, in a fixed order, in f32 before dg and du are rounded. Traffic a
// value: 2 S read, 2 T written.
template <typename S, typename T>
struct SwigluBackwardEpilogue {
  static constexpr bool kPaired = false;
  const S *gate, *up;  // (m, F)
  T* dy;               // (m, 2F): dg, then du
  float* dots;         // (m, parts_of(F)) or null
  int64_t n;           // F
  int width;           // as above

  template <int kCount>
  __device__ void store(int64_t row, int64_t j, float (&da)[kCount], bool inside) const {
    const int64_t at = row * n + j;
    T* to = dy + row * 2 * n + j;
    if (inside && width >= kCount && j < n) {
      float g[kCount], u[kCount];
      load_floats(gate + at, g);
      load_floats(up + at, u);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const SwigluGradient d = swiglu_gradient(g[i], u[i], da[i]);
        da[i] = fmaf(d.g, g[i], d.u * u[i]);
        g[i] = d.g;
        u[i] = d.u;
      }
      store_floats(to, g);
      store_floats(to + n, u);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (!inside || j + i >= n) {
          da[i] = 0;
          continue;
        }
        const float g = to_float(gate[at + i]), u = to_float(up[at + i]);
        const SwigluGradient d = swiglu_gradient(g, u, da[i]);
        to[i] = from_float<T>(d.g);
        to[n + i] = from_float<T>(d.u);
        da[i] = fmaf(d.g, g, d.u * u);
      }
    }
    if (dots) store_part(dots, row, j, n, da, inside);
  }
};

// The sum over a row of dg g + du u, where the product had no such epilogue. One warp owns a row.
// grid (N / kRows), block (32, kRows). Traffic a value: 2 S and 2 T read.
template <typename S, typename T, int kVector, int kRows>
__global__ __launch_bounds__(kWarp* kRows) void swiglu_dot_kernel(const S* __restrict__ gate,
                                                                  const S* __restrict__ up,
                                                                  const T* __restrict__ dy,  // (N, 2F)
                                                                  float* __restrict__ dot,   // (N)
                                                                  int64_t n, int f) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  gate += row * f;
  up += row * f;
  dy += row * 2 * f;
  float sum = 0;
  for (int j = threadIdx.x * kVector; j < f; j += kWarp * kVector) {
    float y[kVector], d[kVector];
    load_floats(gate + j, y);
    load_floats(dy + j, d);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum = fmaf(y[i], d[i], sum);
    load_floats(up + j, y);
    load_floats(dy + f + j, d);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum = fmaf(y[i], d[i], sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) dot[row] = sum;
}

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

}  // namespace gantrain::cuda
