// What follows a product inside its kernel (cuda/kernels/matmul_tensor.cuh, matmul_wgmma.cuh,
// matmul_simt.cuh). An epilogue gets columns of one row in f32 and knows nothing of the loop that made them:
//   of_row(row, inside)              what store wants to know of a row: every lane asks, once a row
//   store(row, column, v, inside, of_row)    a lane's columns of the product
//   store(row, pair, a, b, inside)   kPaired, which have no of_row: first and second halves of heads of 2 *
//   half columns, from
//                                    `pair` on (cuda/kernels/qkv.cuh, mlp.cuh)
// A lane has kCount of them: 4 (2) neighbours, or 8, which are neighbours or, kQuads, two quads kQuadsApart
// apart. Neighbours are for 16-bit results, quads for f32, of which lanes side by side then move 16 bytes
// each side by side; a multiple of their number comes first. Every lane of a warp calls, `inside` or not,
// lanes of four in a row having 4 * kCount columns side by side, or 16 and as many kQuadsApart further.
// kSums: store returns the sum over the row's columns that these four lanes have of what `sums` is of; the
// kernel adds those up (cuda/device/parts.cuh).
#pragma once

#include "cuda/device/parts.cuh"

namespace gantrain::cuda {

constexpr int kQuadsApart = 16;

// A lane's columns of a row in f32, where `second` says whether the row has the second quad; and added to v.
template <int kCount>
__device__ inline void load_columns(const float* p, bool second, float (&to)[kCount]) {
  if constexpr (kCount == 8) {
    const auto quad = [](const float* from, float* into) {
      const Vector<float, 4> x = load_vector<4>(from);
#pragma unroll
      for (int i = 0; i < 4; ++i) into[i] = x.value[i];
    };
    quad(p, to);
    if (second) quad(p + kQuadsApart, to + 4);
  } else {
    load_row(p, to);
  }
}
template <typename T, int kCount>
__device__ inline void store_columns(T* p, bool second, unsigned lanes, const float (&v)[kCount]) {
  if constexpr (kCount == 8) {
    const float a[4] = {v[0], v[1], v[2], v[3]}, b[4] = {v[4], v[5], v[6], v[7]};
    store_quads(p, kQuadsApart, second, lanes, a, b);
  } else {
    store_row(p, v);
  }
}
// Where value i of a lane's lies.
template <int kCount>
__device__ inline constexpr int quad_offset(int i) {
  return kCount == 8 ? i / 4 * kQuadsApart + i % 4 : i;
}
// Of the terms of four lanes: over 16 columns, or over two times 16.
template <int kCount>
__device__ inline float quads_sum(const float (&x)[kCount]) {
  static_assert(kCount == 4 || kCount == 8);
  const float a[4] = {x[0], x[1], x[2], x[3]};
  const float first = quad_sum(sum_of_four(a));
  if constexpr (kCount == 4) return first;
  const float b[4] = {x[kCount - 4], x[kCount - 3], x[kCount - 2], x[kCount - 1]};
  return first + quad_sum(sum_of_four(b));
}

// c = v + bias + addend, rounded once to Out. With `sums`, of c^2 for the norm that follows; with `rounded`,
// for the product behind that norm: c * gain in bf16. Traffic a value: 4 B of an addend read, one Out and 2 B
// of `rounded` written.
template <typename Out>
struct StoreEpilogue {
  static constexpr bool kPaired = false, kQuads = sizeof(Out) == 4, kSums = kQuads;
  Out* c;
  const float* bias;       // (n) or null
  const float* addend;     // (m, n) with ldc, or null; may be c
  __nv_bfloat16* rounded;  // (m, n) or null
  const float* gain;       // (n) or null: ones
  int64_t ldc, n;
  int width;  // so many values (1, 4 or 8) of all of them lie side by side, aligned, or not at all
  RowSums sums;

  __device__ static NothingOfRow of_row(int64_t, bool) { return {}; }
  template <int kCount>
  __device__ float store(int64_t row, int64_t column, float (&v)[kCount], bool inside, NothingOfRow) const {
    const int64_t at = row * ldc + column;
    const bool wide = width >= kCount && column < n, second = column + kQuadsApart < n;
    if constexpr (kQuads) {
      const unsigned lanes = __ballot_sync(kAllLanes, inside && wide);
      if (inside && wide) {
        float more[kCount];
        if (bias) {
          load_columns(bias + column, second, more);
          add(v, more);
        }
        if (addend) {
          load_columns(addend + at, second, more);
          add(v, more);
        }
        store_columns(c + at, second, lanes, v);
        if (rounded) {
          if (gain) load_columns(gain + column, second, more);
#pragma unroll
          for (int i = 0; i < kCount; ++i) more[i] = gain ? v[i] * more[i] : v[i];
          store_columns(rounded + row * n + column, second, lanes, more);
        }
        if (kCount == 8 && !second) {
#pragma unroll
          for (int i = 4; i < kCount; ++i) v[i] = 0;
        }
      } else {
        one_by_one(row, column, v, inside);
      }
      if (!sums.to) return 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] = __fmul_rn(v[i], v[i]);  // not fused into the sums, in any tile
      return quads_sum(v);
    } else {
      if (inside && wide) {
        float more[kCount];
        if (bias) {
          load_row(bias + column, more);
          add(v, more);
        }
        if (addend) {
          load_row(addend + at, more);
          add(v, more);
        }
        store_row(c + at, v);
      } else {
        one_by_one(row, column, v, inside);
      }
      return 0;
    }
  }

 private:
  template <int kCount>
  __device__ static void add(float (&v)[kCount], const float (&more)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] += more[i];
  }
  template <int kCount>
  __device__ void one_by_one(int64_t row, int64_t column, float (&v)[kCount], bool inside) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t j = column + (kQuads ? quad_offset<kCount>(i) : i), at = row * ldc + j;
      if (!inside || j >= n) {
        v[i] = 0;
        continue;
      }
      if (bias) v[i] += bias[j];
      if (addend) v[i] += addend[at];
      c[at] = from_float<Out>(v[i]);
      if (kSums && rounded) rounded[row * n + j] = from_float<__nv_bfloat16>(gain ? v[i] * gain[j] : v[i]);
    }
  }
};

// RMSNorm backward at the end of the product dy w that it stands behind (docs/kernels/matmul.md):
// dx += rstd (d - xhat mean),  d = v * gain, xhat = x rstd, and the mean of d xhat is dot / n, because
// sum_j (dy w)_j gain_j xhat_j = <dy, y> = `dot` for the y of forward's product. Traffic a value: x and dx
// read, dx written, and once more in bf16 where `rounded`.
struct NormBackwardEpilogue {
  static constexpr bool kPaired = false, kQuads = true, kSums = false;
  const float* x;          // (m, n)
  const float* rstd;       // (m)
  const float* gain;       // (n) or null
  const float* dot;        // (m, dot_parts)
  int dot_parts;           // whose sum is the dot product
  float* dx;               // (m, n) +=
  __nv_bfloat16* rounded;  // (m, n) or null
  int64_t n;
  int width;  // as above

  struct OfRow {
    float r, mean;  // rstd, and what x is multiplied with
  };
  __device__ OfRow of_row(int64_t row, bool inside) const {
    float sum = 0;
    if (inside)  // four lanes share a row
      for (int i = threadIdx.x % 4; i < dot_parts; i += 4) sum += dot[row * dot_parts + i];
    sum = quad_sum(sum);
    const float r = inside ? rstd[row] : 0.0f;
    return {r, r * (r * sum / static_cast<float>(n))};
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, float (&v)[kCount], bool inside, OfRow of) const {
    const unsigned lanes = __ballot_sync(kAllLanes, inside && column < n);
    if (!inside || column >= n) return;
    const float r = of.r, mean = of.mean;
    const int64_t at = row * n + column;
    if (width >= kCount) {
      const bool second = column + kQuadsApart < n;
      float more[kCount] = {};
      if (gain) {
        load_columns(gain + column, second, more);
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] *= more[i];
      }
      load_columns(x + at, second, more);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] = fmaf(r, v[i], -mean * more[i]);
      load_columns(dx + at, second, more);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] += more[i];
      store_columns(dx + at, second, lanes, v);
      if (rounded) store_columns(rounded + at, second, lanes, v);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int offset = quad_offset<kCount>(i);
        if (column + offset >= n) break;
        const int64_t j = at + offset;
        const float d = gain ? v[i] * gain[column + offset] : v[i];
        const float sum = fmaf(r, d, -mean * x[j]) + dx[j];
        dx[j] = sum;
        if (rounded) rounded[j] = from_float<__nv_bfloat16>(sum);
      }
    }
  }
};

}  // namespace gantrain::cuda
