// Matrix products on the f32 units: the f32 path, and any shape or alignment that the tensor-core kernel does
// not take.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// C (m, n) = A B (+ bias (n)) (+ addend (m, n)); A is (m, k), or (k, m) if kTransposeA; B is (k, n), or (n,
// k) if kTransposeB; all row-major. f32 accumulation over k in order: deterministic, and a row's result does
// not depend on m. grid (n / kTile, m / kTile), block 256: a block owns a kTile x kTile tile of C, a thread 4
// x 4 of it, strided by 16. Shared memory: two kDepth x kTile slices of A and B in f32, padded by one.
constexpr int kSimtTile = 64, kSimtDepth = 16, kSimtThreads = 256;

template <typename T, typename Out, bool kTransposeA, bool kTransposeB>
__global__ __launch_bounds__(kSimtThreads) void matmul_simt_kernel(
    const T* __restrict__ a, int64_t lda, const T* __restrict__ b, int64_t ldb, Out* c, int64_t ldc,
    const float* __restrict__ bias, const float* addend, int64_t m, int64_t n, int64_t k) {
  constexpr int kTile = kSimtTile, kDepth = kSimtDepth, kStride = 16, kOwn = kTile / kStride;
  __shared__ float as[kDepth][kTile + 1], bs[kDepth][kTile + 1];
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile,
                col0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int tx = threadIdx.x % kStride, ty = threadIdx.x / kStride;
  float sum[kOwn][kOwn] = {};
  for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
    // Neighbouring threads read neighbouring addresses, whichever way the operand lies.
    for (int i = threadIdx.x; i < kDepth * kTile; i += kSimtThreads) {
      const int inner = kTransposeA ? i / kTile : i % kDepth, outer = kTransposeA ? i % kTile : i / kDepth;
      const int64_t row = row0 + outer, depth = k0 + inner;
      const bool inside = row < m && depth < k;
      as[inner][outer] = inside ? to_float(kTransposeA ? a[depth * lda + row] : a[row * lda + depth]) : 0.0f;
    }
    for (int i = threadIdx.x; i < kDepth * kTile; i += kSimtThreads) {
      const int inner = kTransposeB ? i % kDepth : i / kTile, outer = kTransposeB ? i / kDepth : i % kTile;
      const int64_t col = col0 + outer, depth = k0 + inner;
      const bool inside = col < n && depth < k;
      bs[inner][outer] = inside ? to_float(kTransposeB ? b[col * ldb + depth] : b[depth * ldb + col]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float av[kOwn], bv[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) av[i] = as[d][ty + i * kStride];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) bv[j] = bs[d][tx + j * kStride];
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sum[i][j] = fmaf(av[i], bv[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t row = row0 + ty + i * kStride;
    if (row >= m) continue;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int64_t col = col0 + tx + j * kStride;
      if (col >= n) continue;
      float value = sum[i][j];
      if (bias) value += bias[col];
      if (addend) value += addend[row * ldc + col];
      c[row * ldc + col] = from_float<Out>(value);
    }
  }
}

}  // namespace gantrain::cuda
