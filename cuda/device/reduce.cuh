// Sums and maxima over a warp and over a block, in a fixed order.
#pragma once

namespace gantrain::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Over the 32 lanes; every lane gets the result.
template <typename T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// Over a block of kThreads threads, all of which must call; every thread gets the result. May be called again
// at once: it ends behind a barrier.
template <int kThreads, typename T, typename Warp, typename Join>
__device__ inline T block_reduce(T x, Warp warp, Join join) {
  static_assert(kThreads % kWarp == 0);
  __shared__ T part[kThreads / kWarp];
  x = warp(x);
  if (threadIdx.x % kWarp == 0) part[threadIdx.x / kWarp] = x;
  __syncthreads();
  T all = part[0];
#pragma unroll
  for (int i = 1; i < kThreads / kWarp; ++i) all = join(all, part[i]);
  __syncthreads();
  return all;
}
template <int kThreads, typename T>
__device__ inline T block_sum(T x) {
  return block_reduce<kThreads>(
      x, [](T v) { return warp_sum(v); }, [](T a, T b) { return a + b; });
}
template <int kThreads>
__device__ inline float block_max(float x) {
  return block_reduce<kThreads>(
      x, [](float v) { return warp_max(v); }, [](float a, float b) { return fmaxf(a, b); });
}

}  // namespace gantrain::cuda
