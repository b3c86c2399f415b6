// SwiGLU and its backward: core/ops/mlp.h.
#pragma once

#include "cuda/device/parts.cuh"

namespace gantrain::cuda {

// 0 below -104, where exp(-x) is infinite.
__device__ inline float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }

// From kVector neighbours of the gate and up product, in f32, to g and u, rounded to S and kept where wanted,
// and a = silu(g) * u of what was rounded, so that backward sees what forward used. All pointers are to the
// first of them.
template <int kVector, typename S, typename T>
__device__ inline void swiglu(const float (&g)[kVector], const float (&u)[kVector], S* gate, S* up, T* out) {
  const auto activated = [](float x, float y) { return x * sigmoid(x) * y; };
  if constexpr (sizeof(S) == 2 && sizeof(T) == 2 && kVector > 1) {
    // Word by word, so that few values live at once.
    Vector<uint32_t, kVector / 2> gs, us, as;
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      gs.value[i] = pack_pair<S>(g[2 * i], g[2 * i + 1]);
      us.value[i] = pack_pair<S>(u[2 * i], u[2 * i + 1]);
      const float2 x = unpack_pair<S>(gs.value[i]), y = unpack_pair<S>(us.value[i]);
      as.value[i] = pack_pair<T>(activated(x.x, y.x), activated(x.y, y.y));
    }
    if (gate) {
      store_vector(reinterpret_cast<uint32_t*>(gate), gs);
      store_vector(reinterpret_cast<uint32_t*>(up), us);
    }
    store_vector(reinterpret_cast<uint32_t*>(out), as);
  } else {
    Vector<S, kVector> gs, us;
    Vector<T, kVector> as;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      gs.value[i] = from_float<S>(g[i]);
      us.value[i] = from_float<S>(u[i]);
      as.value[i] = from_float<T>(activated(to_float(gs.value[i]), to_float(us.value[i])));
    }
    if (gate) {
      store_vector(gate, gs);
      store_vector(up, us);
    }
    store_vector(out, as);
  }
}

// At the end of the product itself (cuda/kernels/matmul_epilogue.cuh), after the norm's row scale: its 2F
// columns never reach memory in f32.
template <typename S, typename T>
struct SwigluEpilogue {
  static constexpr bool kPaired = true, kQuads = false, kSums = false;
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
        load_row(bias + j, first);
        load_row(bias + half + j, second);
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
  float gate, up;
};
__device__ inline SwigluGradient swiglu_gradient(float g, float u, float da) {
  const float s = sigmoid(g), d = da * s;
  return {d * u * (1.0f + g * (1.0f - s)), d * g};
}

// At the end of the product da = dout w: da never reaches memory. With `sums`, for RMSNorm's backward: of dg
// g + du u, in f32 before dg and du are rounded. Traffic a value: 2 S read, 2 T written.
template <typename S, typename T>
struct SwigluBackwardEpilogue {
  static constexpr bool kPaired = false, kQuads = false, kSums = true;
  const S *gate, *up;  // (m, F)
  T* dy;               // (m, 2F): dg, then du
  int64_t n;           // F
  int width;           // as above
  RowSums sums;

  __device__ static NothingOfRow of_row(int64_t, bool) { return {}; }
  template <int kCount>
  __device__ float store(int64_t row, int64_t j, float (&da)[kCount], bool inside, NothingOfRow) const {
    const int64_t at = row * n + j;
    T* to = dy + row * 2 * n + j;
    if (inside && width >= kCount && j < n) {
      float g[kCount], u[kCount];
      load_row(gate + at, g);
      load_row(up + at, u);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const SwigluGradient d = swiglu_gradient(g[i], u[i], da[i]);
        da[i] = fmaf(d.gate, g[i], d.up * u[i]);
        g[i] = d.gate;
        u[i] = d.up;
      }
      store_row(to, g);
      store_row(to + n, u);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (!inside || j + i >= n) {
          da[i] = 0;
          continue;
        }
        const float g = to_float(gate[at + i]), u = to_float(up[at + i]);
        const SwigluGradient d = swiglu_gradient(g, u, da[i]);
        to[i] = from_float<T>(d.gate);
        to[n + i] = from_float<T>(d.up);
        da[i] = fmaf(d.gate, g, d.up * u);
      }
    }
    if (!sums.to) return 0;
    static_assert(kCount == 4 || kCount == 8);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float four[4] = {da[i], da[i + 1], da[i + 2], da[i + 3]};
      sum = i == 0 ? sum_of_four(four) : sum + sum_of_four(four);
    }
    return quad_sum(sum);
  }
};

// The sum of x y over kVector neighbours, added to `sum` in order.
template <int kVector, typename S, typename T>
__device__ inline float add_products(const S* x, const T* y, float sum) {
  if constexpr (sizeof(S) == 2 && sizeof(T) == 2 && kVector > 1) {
    // Word by word, so that few values live at once.
    const auto xs = load_vector<kVector / 2>(reinterpret_cast<const uint32_t*>(x)),
               ys = load_vector<kVector / 2>(reinterpret_cast<const uint32_t*>(y));
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      const float2 a = unpack_pair<S>(xs.value[i]), b = unpack_pair<T>(ys.value[i]);
      sum = fmaf(a.y, b.y, fmaf(a.x, b.x, sum));
    }
  } else {
    float a[kVector], b[kVector];
    load_row(x, a);
    load_row(y, b);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum = fmaf(a[i], b[i], sum);
  }
  return sum;
}

// The sum over a row of dg g + du u, where the product had no such epilogue. One warp owns a row.
// grid (N / kRows), block (32, kRows). Traffic a value: 2 S and 2 T read.
template <typename S, typename T, int kVector, int kRows>
__global__ __launch_bounds__(kWarp* kRows, kFullBlocks<kWarp * kRows>) void swiglu_dot_kernel(
    const S* __restrict__ gate, const S* __restrict__ up,
    const T* __restrict__ dy,  // (N, 2F)
    float* __restrict__ dot,   // (N)
    int64_t n, int f) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= n) return;
  gate += row * f;
  up += row * f;
  dy += row * 2 * f;
  float sum = 0;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < f; j += kWarp * kVector) {
    sum = add_products<kVector>(gate + j, dy + j, sum);
    sum = add_products<kVector>(up + j, dy + f + j, sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) dot[row] = sum;
}

// From the product (N, 2F) in f32, gate then up. grid (N, F / (2 kVector kThreads)): a block owns a part of a
// row, a thread two places of kVector values of its warp's: 16 bytes of f32, and F is a multiple of 8; or 1.
// Traffic a value: 8 B read, 2 S and one T written.
template <typename S, typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void swiglu_forward_kernel(
    const float* __restrict__ product, S* __restrict__ gate, S* __restrict__ up, T* __restrict__ out, int f) {
  constexpr int kApart = kWarp * kVector;
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x % kWarp, first = static_cast<int>(threadIdx.x) - lane;
  const int j = (static_cast<int>(blockIdx.y) * kThreads + first) * 2 * kVector + lane * kVector;
  const unsigned lanes = __ballot_sync(kAllLanes, j < f);
  if (j >= f) return;
  const bool second = j + kApart < f;
  float g[kVector], u[kVector], g2[kVector] = {}, u2[kVector] = {};
  load_quads(product + row * 2 * f + j, kApart, second, lanes, g, g2);
  load_quads(product + row * 2 * f + f + j, kApart, second, lanes, u, u2);
  const int64_t at = row * f + j;
  if (gate) {
    store_quads(gate + at, kApart, second, lanes, g, g2);
    store_quads(up + at, kApart, second, lanes, u, u2);
  }
  // Of what was rounded, as `swiglu` does it.
  const auto activate = [](float(&y)[kVector], const float(&x)[kVector]) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float r = to_float(from_float<S>(x[i]));
      y[i] = r * sigmoid(r) * to_float(from_float<S>(y[i]));
    }
  };
  activate(u, g);
  activate(u2, g2);
  store_quads(out + at, kApart, second, lanes, u, u2);
}

// dy (N, 2F) = [da * u * silu'(g); da * silu(g)]. Grid and block as above. Traffic a value: 2 S and 3 T.
template <typename S, typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads,
                             kFullBlocks<kThreads>) void swiglu_backward_kernel(const S* __restrict__ gate,
                                                                                const S* __restrict__ up,
                                                                                const T* __restrict__ da,
                                                                                T* __restrict__ dy, int f) {
  const int64_t row = blockIdx.x;
  const int j = (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  if (j >= f) return;
  const int64_t at = row * f + j, to = row * 2 * f + j;
  if constexpr (sizeof(T) == 2 && kVector > 1) {
    // Word by word: a word of each of the three makes a word of each of the two.
    using Words = Vector<uint32_t, kVector / 2>;
    const auto words = [](const auto* p) {
      return load_vector<kVector / 2>(reinterpret_cast<const uint32_t*>(p));
    };
    const Words gs = words(gate + at), us = words(up + at), ds = words(da + at);
    Words dg, du;
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      const float2 g = unpack_pair<S>(gs.value[i]), u = unpack_pair<S>(us.value[i]),
                   d = unpack_pair<T>(ds.value[i]);
      const SwigluGradient a = swiglu_gradient(g.x, u.x, d.x), b = swiglu_gradient(g.y, u.y, d.y);
      dg.value[i] = pack_pair<T>(a.gate, b.gate);
      du.value[i] = pack_pair<T>(a.up, b.up);
    }
    store_vector(reinterpret_cast<uint32_t*>(dy + to), dg);
    store_vector(reinterpret_cast<uint32_t*>(dy + to + f), du);
  } else {
    float g[kVector], u[kVector], d[kVector];
    load_row(gate + at, g);
    load_row(up + at, u);
    load_row(da + at, d);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const SwigluGradient a = swiglu_gradient(g[i], u[i], d[i]);
      g[i] = a.gate;
      u[i] = a.up;
    }
    store_row(dy + to, g);
    store_row(dy + to + f, u);
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
