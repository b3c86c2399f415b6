// What follows a product inside its kernel (cuda/kernels/matmul_tensor.cuh, matmul_simt.cuh). An epilogue
// gets neighbouring columns of one row, 4 or 8 of them, in f32, and knows nothing of the loop that made them:
//   store(row, column, v, inside)      columns `column` .. of the product; column is a multiple of their
//   number store(row, pair, a, b, inside)     kPaired: first and second halves of heads of 2 * half columns,
//   pairs
//                                      `pair` .. (cuda/kernels/qkv.cuh, mlp.cuh)
// Every lane of a warp calls, `inside` or not, lanes of four in a row having 4 * kCount columns side by side.
#pragma once

#include "cuda/device/parts.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// c = v + bias + addend, rounded once to Out. With `squares`, for the norm that follows: the sums of c^2
// over 16 columns each, in a fixed order; with `rounded`, for the product behind that norm: c * gain in bf16.
template <typename Out>
struct StoreEpilogue {
  static constexpr bool kPaired = false;
  Out* c;
  const float* bias;       // (n) or null
  const float* addend;     // (m, n) with ldc, or null; may be c
  float* squares;          // (m, parts_of(n)) or null
  __nv_bfloat16* rounded;  // (m, n) or null
  const float* gain;       // (n) or null: ones
  int64_t ldc, n;
  int width;  // so many values (1, 4 or 8) of all of them lie side by side, aligned, or not at all

  template <int kCount>
  __device__ void store(int64_t row, int64_t column, float (&v)[kCount], bool inside) const {
    const int64_t at = row * ldc + column;
    if (inside && width >= kCount && column < n) {
      if (bias) add(v, bias + column);
      if (addend) add(v, addend + at);
      store_row(c + at, v);
      if (rounded) {
        float scaled[kCount];
        if (gain) load_row(gain + column, scaled);
#pragma unroll
        for (int i = 0; i < kCount; ++i) scaled[i] = gain ? v[i] * scaled[i] : v[i];
        store_row(rounded + row * n + column, scaled);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (!inside || column + i >= n) {
          v[i] = 0;
          continue;
        }
        if (bias) v[i] += bias[column + i];
        if (addend) v[i] += addend[at + i];
        c[at + i] = from_float<Out>(v[i]);
        if (rounded)
          rounded[row * n + column + i] = from_float<__nv_bfloat16>(gain ? v[i] * gain[column + i] : v[i]);
      }
    }
    if (squares) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] = __fmul_rn(v[i], v[i]);  // not fused into the sums, in any tile
      store_part(squares, row, column, n, v, inside);
    }
  }

 private:
  template <int kCount>
  __device__ static void add(float (&v)[kCount], const float* from) {
    float more[kCount];
    load_row(from, more);
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] += more[i];
  }
};

// RMSNorm backward at the end of the product dy w that it stands behind (docs/kernels/matmul.md):
// dx += rstd (d - xhat mean),  d = v * gain, xhat = x rstd, and the mean of d xhat is dot / n, because
// sum_j (dy w)_j gain_j xhat_j = <dy, y> = `dot` for the y of forward's product. Traffic a value: x and dx
// read, dx written, and once more in bf16 where `rounded`.
struct NormBackwardEpilogue {
  static constexpr bool kPaired = false;
  const float* x;          // (m, n)
  const float* rstd;       // (m)
  const float* gain;       // (n) or null
  const float* dot;        // (m)
  float* dx;               // (m, n) +=
  __nv_bfloat16* rounded;  // (m, n) or null
  int64_t n;
  int width;  // as above

  template <int kCount>
  __device__ void store(int64_t row, int64_t column, float (&v)[kCount], bool inside) const {
    if (!inside || column >= n) return;
    const float r = rstd[row], mean = r * (r * dot[row] / static_cast<float>(n));
    const int64_t at = row * n + column;
    if (width >= kCount) {
      float more[kCount];
      if (gain) {
        load_row(gain + column, more);
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] *= more[i];
      }
      load_row(x + at, more);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] = fmaf(r, v[i], -mean * more[i]);
      load_row(dx + at, more);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] += more[i];
      store_row(dx + at, v);
      if (rounded) store_row(rounded + at, v);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (column + i >= n) break;
        const float d = gain ? v[i] * gain[column + i] : v[i];
        const float sum = fmaf(r, d, -mean * x[at + i]) + dx[at + i];
        dx[at + i] = sum;
        if (rounded) rounded[at + i] = from_float<__nv_bfloat16>(sum);
      }
    }
  }
};

}  // namespace gantrain::cuda
