// Elementwise kernels that several families use.
#pragma once

#include "cuda/device/quads.cuh"

namespace gantrain::cuda {

// to[i] = from[i], rounded once to To. Between types of different size a lane takes two quads of its warp's
// 256 values (load_quads), between types of one size eight neighbours: 16 bytes at a time; or kVector is 1.
// grid (count / kVector / kThreads); `count` is a multiple of kVector, which is 8 or 1.
template <typename From, typename To, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads,
                             kFullBlocks<kThreads>) void convert_kernel(const From* __restrict__ from,
                                                                        To* __restrict__ to, int64_t count) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if constexpr (kVector == 1 || sizeof(From) == sizeof(To)) {
    const int64_t i = thread * kVector;
    if (i >= count) return;
    float values[kVector];
    load_row(from + i, values);
    store_row(to + i, values);
  } else {
    constexpr int kApart = 4 * kWarp;
    const int lane = threadIdx.x % kWarp;
    const int64_t i = (thread - lane) * kVector + 4 * lane;
    const unsigned lanes = __ballot_sync(kAllLanes, i < count);
    if (i >= count) return;
    const bool second = i + kApart < count;
    float a[4], b[4];
    load_quads(from + i, kApart, second, lanes, a, b);
    store_quads(to + i, kApart, second, lanes, a, b);
  }
}

}  // namespace gantrain::cuda
