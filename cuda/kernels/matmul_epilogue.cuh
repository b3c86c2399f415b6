// What follows a product inside its kernel (cuda/kernels/matmul_tensor.cuh).
#pragma once

#include "cuda/device/reduce.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

constexpr int kSquaresWidth = 16;  // columns of a partial sum of squares

// c = v + bias + addend, rounded once to Out. With `squares`, for the norm that follows: squares[row][j] =
// sum of c^2 over columns 16j .. 16j + 15 in a fixed order. A lane has four neighbouring columns: 16 bytes of
// f32, 8 of bf16.
template <typename Out>
struct StoreEpilogue {
  static constexpr bool kPaired = false;
  Out* c;
  const float* bias;    // (n) or null
  const float* addend;  // (m, n) with ldc, or null; may be c
  float* squares;       // (m, ceil(n / 16)) or null
  int64_t ldc, n;
  bool wide;  // rows of everything are aligned to four values, and n is a multiple of four

  __device__ void store(int64_t row, int64_t column, float (&v)[4], bool inside) const {
    const int64_t at = row * ldc + column;
    if (inside && wide && column < n) {
      if (bias) add(v, bias + column);
      if (addend) add(v, addend + at);
      Vector<Out, 4> out;
#pragma unroll
      for (int i = 0; i < 4; ++i) out.value[i] = from_float<Out>(v[i]);
      store_vector(c + at, out);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!inside || column + i >= n) {
          v[i] = 0;
          continue;
        }
        if (bias) v[i] += bias[column + i];
        if (addend) v[i] += addend[at + i];
        c[at + i] = from_float<Out>(v[i]);
      }
    }
    if (squares) {
      float sum = fmaf(v[1], v[1], v[0] * v[0]) + fmaf(v[3], v[3], v[2] * v[2]);
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (inside && column % kSquaresWidth == 0 && column < n)
        squares[row * ((n + kSquaresWidth - 1) / kSquaresWidth) + column / kSquaresWidth] = sum;
    }
  }

 private:
  __device__ static void add(float (&v)[4], const float* from) {
    const Vector<float, 4> more = load_vector<4>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] += more.value[i];
  }
};

}  // namespace gantrain::cuda
