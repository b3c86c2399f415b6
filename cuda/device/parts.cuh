// Sums over a row whose columns many tiles of a product own (cuda/kernels/matmul_epilogue.cuh): each leaves
// its part, and the last of a row's tiles adds them up. What is added to what does not depend on which that
// is.
#pragma once

#include <cstdint>

#include "cuda/device/quads.cuh"

namespace gantrain::cuda {

// A tile's part of a row is the sum over 64 columns, or, where a tile has fewer, over 16 of them: the sum of
// four of those in the same order. Two lanes side by side add first, and four columns of a lane before that.
constexpr int kPartWidth = 64, kSmallPartWidth = 16;
// Parts of a row at most, for the memory that they take.
inline __host__ __device__ int64_t parts_of(int64_t n) { return (n + kSmallPartWidth - 1) / kSmallPartWidth; }
// From one part of all rows to the next, so that eight rows in a row are a whole sector.
inline __host__ __device__ int64_t parts_stride(int64_t m) { return (m + 7) / 8 * 8; }
// Rows that one counter of arrivals stands for at least.
constexpr int kArrivalRows = 16;

// What an epilogue of a product that asks nothing of rows knows of one (cuda/kernels/matmul_epilogue.cuh).
struct NothingOfRow {};

// to[row] = the sum over its columns or, where it is a statistic, 1 / sqrt(sum / n + eps).
struct RowSums {
  float* to;           // (m) or null: no sums are wanted
  float* parts;        // (parts_of(n), parts_stride(m))
  unsigned* arrivals;  // (m / kArrivalRows, rounded up), zero before and after
  bool statistic;
  float eps;
};

__device__ inline float sum_of_four(const float (&x)[4]) { return (x[0] + x[1]) + (x[2] + x[3]); }

// The sum of row `row` from its parts, each over kWidth of its n columns. They were written by other blocks,
// so no cache of this multiprocessor's is asked. Row for row the same wherever it is done.
template <int kWidth>
__device__ inline void finish_row(const RowSums& s, int64_t row, int64_t m, int64_t n) {
  constexpr int kTogether = kPartWidth / kWidth;
  const int64_t stride = parts_stride(m);
  const int parts = static_cast<int>((n + kWidth - 1) / kWidth);
  const float* from = s.parts + row;
  float sum = 0;
#pragma unroll 4
  for (int j = 0; j < parts; j += kTogether) {
    float four[4] = {};
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (j + i < parts) four[i] = __ldcg(from + (j + i) * stride);
    sum += kTogether == 1 ? four[0] : sum_of_four(four);
  }
  s.to[row] = s.statistic ? 1.0f / sqrtf(sum / static_cast<float>(n) + s.eps) : sum;
}

}  // namespace gantrain::cuda
