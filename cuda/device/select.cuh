// Choosing among the entries of a row, exactly and in linear time, by a whole block: the largest, the
// heaviest leading set (top-k, top-p), and the entry at which a cumulative sum passes a target. Weights are
// integers, so that sums do not depend on the order in which threads add. A row of n entries is read by
// read(j, v): entries from j on into an array of kVector floats (or of 4); n is a multiple of kVector. A
// weight is weight(value, j).
#pragma once

#include <climits>

#include "cuda/device/philox.cuh"
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
// visit(j, values, noise) with 4 neighbouring entries of the row (1 where kVector is 1) and their Gumbel
// draws under (key, counter): four share one call of the generator, so a thread takes all four.
template <int kThreads, int kVector, typename Read, typename Visit>
__device__ inline void gumbel_each(int n, uint64_t key, uint64_t counter, Read read, Visit visit) {
  constexpr int kCount = kVector == 1 ? 1 : 4;
#pragma unroll 1
  for (int j0 = 4 * static_cast<int>(threadIdx.x); j0 < n; j0 += 4 * kThreads) {
    const PhiloxWords words = philox(key, counter, static_cast<uint64_t>(j0 / 4));
#pragma unroll
    for (int i = 0; i < 4; i += kCount) {
      if (j0 + i >= n) break;
      float v[kCount], noise[kCount];
      read(j0 + i, v);
#pragma unroll
      for (int e = 0; e < kCount; ++e) noise[e] = gumbel(words.word[i + e]);
      visit(j0 + i, v, noise);
    }
  }
}

// The largest value and the lowest index that has it.
template <int kThreads, int kVector, typename Read>
__device__ inline Best block_argmax(int n, Read read) {
  __shared__ Best part[kThreads / kWarp];
  Best best{-INFINITY, INT_MAX};
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < n; j += kThreads * kVector) {
    float v[kVector];
    read(j, v);
#pragma unroll
    for (int e = 0; e < kVector; ++e) best = better(best, {v[e], j + e});
  }
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

// Sum over the row of weight(value, j).
template <int kThreads, int kVector, typename Read, typename WeightOf>
__device__ inline Weight block_weight(int n, Read read, WeightOf weight) {
  Weight sum = 0;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < n; j += kThreads * kVector) {
    float v[kVector];
    read(j, v);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum += weight(v[e], j + e);
  }
  return block_sum<kThreads>(sum);
}

// Over a warp: the sum of x over this lane and those before it.
template <typename T>
__device__ inline T warp_running_sum(T x) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T other = __shfl_up_sync(kAllLanes, x, offset);
    if (lane >= offset) x += other;
  }
  return x;
}

struct SelectShared {
  Weight bin[256];
  Weight above, in_bin;
  int chosen, index;
};

// The cut that keeps the smallest leading set, by value and then by lower index, whose weights add up to
// `target` or more; all entries if they do not. Entries of equal value must have equal weight or weight 0
// (left out). Four passes over 8 bits of the value each; a last one only where the cut falls between ties.
template <int kThreads, int kVector, typename Read, typename WeightOf>
__device__ inline Cut cut_heaviest(int n, Read read, WeightOf weight, Weight target, SelectShared& shared) {
  uint32_t prefix = 0;
  Weight above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += kThreads) shared.bin[i] = 0;
    __syncthreads();
#pragma unroll 1
    for (int j = threadIdx.x * kVector; j < n; j += kThreads * kVector) {
      float v[kVector];
      read(j, v);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const uint32_t word = sortable(v[e]);
        if (shift < 24 && ((word ^ prefix) >> (shift + 8)) != 0) continue;
        const Weight w = weight(v[e], j + e);
        if (w > 0) atomicAdd(&shared.bin[word >> shift & 255u], w);
      }
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {
      // A lane owns eight bins, the first lane the highest ones.
      const int high = 255 - 8 * static_cast<int>(threadIdx.x);
      Weight own = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) own += shared.bin[high - i];
      const Weight upto = warp_running_sum(own);
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
  const auto tied = [&](float x, int j) { return sortable(x) == prefix && weight(x, j) > 0; };
  int ties = 0;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < n; j += kThreads * kVector) {
    float v[kVector];
    read(j, v);
#pragma unroll
    for (int e = 0; e < kVector; ++e) ties += tied(v[e], j + e);
  }
  ties = block_sum<kThreads>(ties);
  const Weight one = shared.in_bin / static_cast<Weight>(ties);
  const int wanted = static_cast<int>((target - above + one - 1) / one);
  if (wanted >= ties) return {prefix, INT_MAX};
  // The index of the wanted-th tie: one warp, kVector entries a lane at a time.
  if (threadIdx.x < kWarp) {
    int seen = 0;
#pragma unroll 1
    for (int j0 = 0; seen < wanted; j0 += kWarp * kVector) {
      const int j = j0 + static_cast<int>(threadIdx.x) * kVector;
      unsigned mask = 0;
      if (j < n) {
        float v[kVector];
        read(j, v);
#pragma unroll
        for (int e = 0; e < kVector; ++e) mask |= static_cast<unsigned>(tied(v[e], j + e)) << e;
      }
      const int upto = seen + warp_running_sum(__popc(mask)), before = upto - __popc(mask);
      if (before < wanted && upto >= wanted) {
        int left = wanted - before;
#pragma unroll
        for (int e = 0; e < kVector; ++e)
          if ((mask >> e & 1u) && --left == 0) shared.index = j + e;
      }
      seen = __shfl_sync(kAllLanes, upto, kWarp - 1);
    }
  }
  __syncthreads();
  const int index = shared.index;
  __syncthreads();
  return {prefix, index};
}

// The first j at which the sum of the weights of 0 .. j exceeds `target`, which must be less than the sum of
// all.
template <int kThreads, int kVector, typename Read, typename WeightOf>
__device__ inline int inverse_cdf(int n, Read read, WeightOf weight, Weight target) {
  constexpr int kWarps = kThreads / kWarp, kStep = kWarp * kVector;
  __shared__ Weight part[kWarps];
  __shared__ int found;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int share = (n + kWarps * kStep - 1) / (kWarps * kStep) * kStep, begin = warp * share,
            end = min(n, begin + share);
  Weight own = 0;
#pragma unroll 1
  for (int j = begin + lane * kVector; j < end; j += kStep) {
    float v[kVector];
    read(j, v);
#pragma unroll
    for (int e = 0; e < kVector; ++e) own += weight(v[e], j + e);
  }
  own = warp_sum(own);
  if (lane == 0) part[warp] = own;
  __syncthreads();
  Weight before = 0;
  for (int i = 0; i < warp; ++i) before += part[i];
  if (before <= target && before + own > target) {
#pragma unroll 1
    for (int j0 = begin;; j0 += kStep) {
      const int j = j0 + lane * kVector;
      Weight w[kVector] = {}, mine = 0;
      if (j < end) {
        float v[kVector];
        read(j, v);
#pragma unroll
        for (int e = 0; e < kVector; ++e) mine += w[e] = weight(v[e], j + e);
      }
      const Weight upto = before + warp_running_sum(mine);
      const unsigned passed = __ballot_sync(kAllLanes, upto > target);
      if (passed) {
        if (lane == __ffs(static_cast<int>(passed)) - 1) {
          Weight sum = upto - mine;
          int at = j;
#pragma unroll
          for (int e = 0; e < kVector - 1; ++e)
            if ((sum += w[e]) <= target) at = j + e + 1;
          found = at;
        }
        break;
      }
      before = __shfl_sync(kAllLanes, upto, kWarp - 1);
    }
  }
  __syncthreads();
  const int index = found;
  __syncthreads();
  return index;
}

}  // namespace gantrain::cuda
