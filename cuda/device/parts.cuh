// Sums over a row whose columns many blocks own: in parts of 16 columns, which a later kernel adds up.
#pragma once

#include "cuda/device/reduce.cuh"

namespace gantrain::cuda {

// Sums over 16 columns of a row, the same bits however many columns a lane has: neighbours first.
constexpr int kPartWidth = 16;
inline __host__ __device__ int64_t parts_of(int64_t n) { return (n + kPartWidth - 1) / kPartWidth; }
// terms: this lane's; parts (m, parts_of(n)).
template <int kCount>
__device__ inline void store_part(float* parts, int64_t row, int64_t column, int64_t n,
                                  const float (&terms)[kCount], bool inside) {
  float sum = (terms[0] + terms[1]) + (terms[2] + terms[3]);
  if constexpr (kCount == 8) sum += (terms[4] + terms[5]) + (terms[6] + terms[7]);
#pragma unroll
  for (int lanes = 1; lanes < kPartWidth / kCount; lanes *= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  if (inside && column % kPartWidth == 0 && column < n) parts[row * parts_of(n) + column / kPartWidth] = sum;
}

}  // namespace gantrain::cuda
