// RoPE around the QKV products: core/ops/qkv.h.
#pragma once

#include "cuda/device/double.cuh"
#include "cuda/device/quads.cuh"
#include "cuda/device/rotary.cuh"

namespace gantrain::cuda {

// cos and sin of position * inv_freq, taken in f64 and rounded once, as on the CPU: table[n] = cos (D / 2),
// sin (D / 2). One thread an angle. grid (N * D / 2 / kThreads). Traffic an angle: 8 B written, position and
// frequency from the cache; bound by some 35 instructions of f64.
template <int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void rotary_table_kernel(
    const int32_t* __restrict__ positions,  // (N)
    const float* __restrict__ inv_freq,     // (D / 2)
    float* __restrict__ table,              // (N, D)
    int64_t n, int half) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n * half) return;
  const int64_t row = i / half;
  const int j = static_cast<int>(i % half);
  const SineCosine s = sine_cosine(static_cast<double>(positions[row]) * static_cast<double>(inv_freq[j]));
  table[row * 2 * half + j] = static_cast<float>(s.cosine);
  table[row * 2 * half + half + j] = static_cast<float>(s.sine);
}

// Where the heads of a row lie: q (N, H, D), k and v (N, K, D), in the order of the product's columns.
template <typename S>
struct QkvHeads {
  S *q, *k, *v;
  int heads, kv_heads, half;  // H, K, D / 2

  __device__ bool rotated(int head) const { return head < heads + kv_heads; }
  __device__ S* at(int64_t row, int head) const {
    const int d = 2 * half;
    if (head < heads) return q + (row * heads + head) * d;
    if (head < heads + kv_heads) return k + (row * kv_heads + head - heads) * d;
    return v + (row * kv_heads + head - heads - kv_heads) * d;
  }
  // kVector pairs from pair j of a head on, rounded to S; table (N, D): cos, then sin.
  template <int kVector>
  __device__ void store(int64_t row, int head, int j, const float (&a)[kVector], const float (&b)[kVector],
                        const float* __restrict__ table) const {
    Vector<S, kVector> first, second;
    if (rotated(head)) {
      table += row * 2 * half + j;
      float cosine[kVector], sine[kVector];
      load_floats(table, cosine);
      load_floats(table + half, sine);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const RotatedPair pair = rotate(a[i], b[i], cosine[i], sine[i]);
        first.value[i] = from_float<S>(pair.first);
        second.value[i] = from_float<S>(pair.second);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        first.value[i] = from_float<S>(a[i]);
        second.value[i] = from_float<S>(b[i]);
      }
    }
    S* to = at(row, head) + j;
    store_vector(to, first);
    store_vector(to + half, second);
  }
};

// At the end of the product itself (cuda/kernels/matmul_epilogue.cuh): the norm's row scale, bias, rotation,
// and q, k, v apart.
template <typename S>
struct RotaryEpilogue {
  static constexpr bool kPaired = true, kQuads = false, kSums = false;
  QkvHeads<S> to;
  const float* table;  // (N, D)
  const float* scale;  // (N) or null: ones
  const float* bias;   // ((H + 2K) D) or null
  int64_t half;        // D / 2
  int width;           // so many pairs (1, 4 or 8) of all of them lie side by side, aligned, or not at all

  template <int kCount>
  __device__ void store(int64_t row, int64_t pair, float (&a)[kCount], float (&b)[kCount],
                        bool inside) const {
    if (!inside) return;
    const int heads = to.heads + 2 * to.kv_heads, d = to.half;
    if (scale) {
      const float r = scale[row];
#pragma unroll
      for (int i = 0; i < kCount; ++i) a[i] *= r, b[i] *= r;
    }
    if (width >= kCount) {
      const int head = static_cast<int>(pair) / d, j = static_cast<int>(pair) % d;
      if (head >= heads) return;
      if (bias) {
        float first[kCount], second[kCount];
        load_row(bias + head * 2 * d + j, first);
        load_row(bias + head * 2 * d + d + j, second);
#pragma unroll
        for (int i = 0; i < kCount; ++i) a[i] += first[i], b[i] += second[i];
      }
      to.store(row, head, j, a, b, table);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int head = static_cast<int>(pair + i) / d, j = static_cast<int>(pair + i) % d;
        if (head >= heads) return;
        const float first[1] = {a[i] + (bias ? bias[head * 2 * d + j] : 0.0f)},
                    second[1] = {b[i] + (bias ? bias[head * 2 * d + d + j] : 0.0f)};
        to.store(row, head, j, first, second, table);
      }
    }
  }
};

// From the product (N, (H + 2K) D) in f32 to q, k and v. grid (N, (H + 2K) D / 2 / kVector / kThreads): a
// block owns a part of a row, a thread kVector pairs (j, j + D / 2): 4, or 1. D / 2 is a multiple of kVector,
// and with 16-bit types of 8 where that is 4. Traffic a value: 4 B read, one S written, and the row's table
// from the cache.
template <typename S, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void rotate_forward_kernel(
    const float* __restrict__ product, const float* __restrict__ table,  // (N, D)
    QkvHeads<S> to) {
  const int64_t row = blockIdx.x;
  const int half = to.half, parts = half / kVector, heads = to.heads + 2 * to.kv_heads;
  const int i = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  const unsigned lanes = __ballot_sync(0xffffffffu, i < heads * parts);
  if (i >= heads * parts) return;
  const int head = i / parts, j = i % parts * kVector;
  product += (row * heads + head) * 2 * half + j;
  float a[kVector], b[kVector];
  load_floats(product, a);
  load_floats(product + half, b);
  if (to.rotated(head)) {
    float cosine[kVector], sine[kVector];
    load_constant_floats(table + row * 2 * half + j, cosine);
    load_constant_floats(table + row * 2 * half + half + j, sine);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const RotatedPair pair = rotate(a[e], b[e], cosine[e], sine[e]);
      a[e] = pair.first;
      b[e] = pair.second;
    }
  }
  store_quads(to.at(row, head) + j, half, true, lanes, a, b);
}

// The transpose, in place: dq and dk of dy (N, (H + 2K) D) are rotated back. kDot: beside it the sum over a
// row of dy and of q, k and v as forward kept them, which a rotation of both does not change, as the first of
// H + K parts (core/ops/attention.h); the others are 0. grid (N): a block owns a row, a thread kVector pairs
// at a time. Sums in a fixed order: those of a thread, then of the block. Traffic a value: one T read and
// written, with kDot one S read, and the row's table from the cache; without, dv is left alone.
template <typename S, typename T, bool kDot, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void rotate_backward_kernel(
    T* __restrict__ dy, QkvHeads<const S> kept,
    const float* __restrict__ table,  // (N, D)
    float* __restrict__ dot) {        // (N, H + K)
  const int64_t row = blockIdx.x;
  const int half = kept.half, pieces = half / kVector, all = kept.heads + 2 * kept.kv_heads,
            parts = all - kept.kv_heads, count = (kDot ? all : parts) * pieces;
  dy += row * all * 2 * half;
  table += row * 2 * half;
  float sum = 0;
#pragma unroll 1
  for (int i0 = 0; i0 < count; i0 += kThreads) {
    const int i = i0 + static_cast<int>(threadIdx.x);
    const unsigned lanes = __ballot_sync(kAllLanes, i < count);
    if (i >= count) continue;
    const int head = i / pieces, j = i % pieces * kVector;
    T* const at = dy + head * 2 * half + j;
    float a[kVector], b[kVector];
    load_quads(at, half, true, lanes, a, b);
    if constexpr (kDot) {
      float y[kVector], z[kVector];
      load_quads(kept.at(row, head) + j, half, true, lanes, y, z);
#pragma unroll
      for (int e = 0; e < kVector; ++e) sum = fmaf(b[e], z[e], fmaf(a[e], y[e], sum));
    }
    if (kept.rotated(head)) {
      float cosine[kVector], sine[kVector];
      load_constant_floats(table + j, cosine);
      load_constant_floats(table + half + j, sine);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const RotatedPair pair = rotate(a[e], b[e], cosine[e], -sine[e]);
        a[e] = pair.first;
        b[e] = pair.second;
      }
    }
    store_quads(at, half, true, lanes, a, b);
  }
  if constexpr (kDot) {
    sum = block_sum<kThreads>(sum);
#pragma unroll 1
    for (int i = threadIdx.x; i < parts; i += kThreads) dot[row * parts + i] = i == 0 ? sum : 0.0f;
  }
}

}  // namespace gantrain::cuda
