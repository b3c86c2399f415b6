// Where 16-byte pieces of rows lie in shared memory.
#pragma once

#include <cstdint>

namespace gantrain::cuda {

// The byte of 16-byte chunk `chunk` of row `row` in a slice whose rows have kChunks chunks: chunks are
// permuted within 128 bytes so that the same chunk of eight rows in a row lies in different banks.
template <int kChunks>
__device__ inline uint32_t swizzled(int row, int chunk) {
  static_assert(kChunks >= 4);
  return (row * kChunks + (kChunks == 4 ? chunk ^ (row / 2 % 4) : chunk ^ (row % 8))) * 16;
}

}  // namespace gantrain::cuda
