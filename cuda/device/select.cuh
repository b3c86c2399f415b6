// Choosing among the entries of a row, exactly and in linear time, by a whole block: the largest, the
// heaviest leading set (top-k, top-p), and the entry at which a cumulative sum passes a target. Weights are
// integers, so that sums do not depend on the order in which threads add.
#pragma once

#include <climits>

#include "cuda/device/reduce.cuh"

namespace gantrain::cuda {

using Weight = unsigned long long;

// A weight in [0, 1] in units of 2^-40: 2^23 of them fit with room to spare.
__device__ inline Weight fixed_weight(float w) { return static_cast<Weight>(w * 0x1p40f); }

// Words in the order of the values; -0 is 0.
__device__ inline uint32_t sortable(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Entry j is kept if its value lies above, or is equal and j <= index: by value, ties by lower index.
struct Cut {
  uint32_t word;
  int index;
  __device__ bool keeps(float x, int j) const {
    const uint32_t w = sortable(x);
    return w > word || (w == word && j <= index);
  }
};
__device__ inline Cut keep_all() { return {0u, INT_MAX}; }

struct Best {
  float value;
  int index;
};
__device__ inline Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}
// The largest value(j), j < n, and the lowest index that has it.
template <int kThreads, typename Value>
__device__ inline Best block_argmax(int n, Value value) {
  __shared__ Best part[kThreads / kWarp];
  Best best{-INFINITY, INT_MAX};
  for (int j = threadIdx.x; j < n; j += kThreads) best = better(best, {value(j), j});
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    best = better(best, {__shfl_xor_sync(kAllLanes, best.value, offset),
                         __shfl_xor_sync(kAllLanes, best.index, offset)});
  if (threadIdx.x % kWarp == 0) part[threadIdx.x / kWarp] = best;
  __syncthreads();
  best = part[0];
#pragma unroll
  for (int i = 1; i < kThreads / kWarp; ++i) best = better(best, part[i]);
  __syncthreads();
  return {best.value, min(best.index, n - 1)};  // all of them NaN: the last entry
}

struct SelectShared {
  Weight bin[256];
  Weight above, in_bin;
  int chosen, index;
};

// The cut that keeps the smallest leading set, by value and then by lower index, whose weights add up to
// `target` or more; all entries if they do not. Entries of equal value must have equal weight or weight 0
// (left out). Four passes over 8 bits of the value each; a last one only where the cut falls between ties.
template <int kThreads, typename Value, typename WeightOf>
__device__ inline Cut cut_heaviest(int n, Value value, WeightOf weight, Weight target, SelectShared& shared) {
  uint32_t prefix = 0;
  Weight above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += kThreads) shared.bin[i] = 0;
    __syncthreads();
    for (int j = threadIdx.x; j < n; j += kThreads) {
      const uint32_t word = sortable(value(j));
      if (shift < 24 && ((word ^ prefix) >> (shift + 8)) != 0) continue;
      const Weight w = weight(j);
      if (w > 0) atomicAdd(&shared.bin[word >> shift & 255u], w);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {
      // A lane owns eight bins, the first lane the highest ones.
      const int high = 255 - 8 * static_cast<int>(threadIdx.x);
      Weight own = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) own += shared.bin[high - i];
      Weight upto = own;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const Weight other = __shfl_up_sync(kAllLanes, upto, offset);
        if (static_cast<int>(threadIdx.x) >= offset) upto += other;
      }
      if (threadIdx.x == kWarp - 1 && above + upto < target) shared.chosen = -1;
      Weight before = above + upto - own;
      if (before < target && above + upto >= target) {
        int bin = high;
        while (before + shared.bin[bin] < target) before += shared.bin[bin--];
        shared.chosen = bin;
        shared.above = before;
        shared.in_bin = shared.bin[bin];
      }
    }
    __syncthreads();
    const int chosen = shared.chosen;
    above = shared.above;
    const Weight in_bin = shared.in_bin;
    __syncthreads();
    if (chosen < 0) return keep_all();
    prefix |= static_cast<uint32_t>(chosen) << shift;
    if (above + in_bin == target) {
      // The set ends with this bin: nothing below it is looked at.
      return {prefix, INT_MAX};
    }
  }
  int ties = 0;
  for (int j = threadIdx.x; j < n; j += kThreads) ties += sortable(value(j)) == prefix && weight(j) > 0;
  ties = block_sum<kThreads>(ties);
  const Weight one = shared.in_bin / static_cast<Weight>(ties);
  const int wanted = static_cast<int>((target - above + one - 1) / one);
  if (wanted >= ties) return {prefix, INT_MAX};
  // The index of the wanted-th tie: one warp, 32 entries at a time.
  if (threadIdx.x < kWarp) {
    int seen = 0;
    for (int j0 = 0; seen < wanted; j0 += kWarp) {
      const int j = j0 + static_cast<int>(threadIdx.x);
      const unsigned tie = __ballot_sync(kAllLanes, j < n && sortable(value(j)) == prefix && weight(j) > 0);
      const int here = __popc(tie);
      if (seen + here >= wanted && threadIdx.x == 0)
        shared.index = j0 + static_cast<int>(__fns(tie, 0, wanted - seen));
      seen += here;
    }
  }
  __syncthreads();
  const int index = shared.index;
  __syncthreads();
  return {prefix, index};
}

// The first j at which the sum of weight(0 .. j) exceeds `target`, which must be less than the sum of all.
template <int kThreads, typename WeightOf>
__device__ inline int inverse_cdf(int n, WeightOf weight, Weight target) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ Weight part[kWarps];
  __shared__ int found;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int share = (n + kThreads - 1) / kThreads * kWarp, begin = warp * share, end = min(n, begin + share);
  Weight own = 0;
  for (int j = begin + lane; j < end; j += kWarp) own += weight(j);
  own = warp_sum(own);
  if (lane == 0) part[warp] = own;
  __syncthreads();
  Weight before = 0;
  for (int i = 0; i < warp; ++i) before += part[i];
  if (before <= target && before + own > target) {
    for (int j0 = begin;; j0 += kWarp) {
      Weight upto = j0 + lane < end ? weight(j0 + lane) : 0;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const Weight other = __shfl_up_sync(kAllLanes, upto, offset);
        if (lane >= offset) upto += other;
      }
      const unsigned passed = __ballot_sync(kAllLanes, before + upto > target);
      if (passed) {
        if (lane == 0) found = j0 + __ffs(static_cast<int>(passed)) - 1;
        break;
      }
      before += __shfl_sync(kAllLanes, upto, kWarp - 1);
    }
  }
  __syncthreads();
  const int index = found;
  __syncthreads();
  return index;
}

}  // namespace gantrain::cuda
