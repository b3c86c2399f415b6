// Drawing tokens: core/ops/sampling.h.
#pragma once

#include "cuda/device/philox.cuh"
#include "cuda/device/select.cuh"

namespace gantrain::cuda {

// grid (S), block kThreads: a block owns one row of logits, which it reads a few times from the cache: once
// for the maximum and the sum, four or five times for each of top-k and top-p, twice for the draw.
// Deterministic.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void sample_kernel(const float* __restrict__ logits,       // (S, V)
                                                          const float* __restrict__ temperature,  // (S)
                                                          const int32_t* __restrict__ top_k,      // (S)
                                                          const float* __restrict__ top_p,        // (S)
                                                          const int64_t* __restrict__ key,        // (S)
                                                          const int64_t* __restrict__ counter,    // (S)
                                                          bool with_gumbel,
                                                          int32_t* __restrict__ token,  // (S)
                                                          float* __restrict__ logp,     // (S)
                                                          int n) {
  __shared__ SelectShared shared;
  const int64_t row = blockIdx.x;
  const float* x = logits + row * n;
  const auto value = [&](int j) { return x[j]; };
  const Best best = block_argmax<kThreads>(n, value);
  const float max = best.value, t = temperature[row];
  int chosen = best.index;
  if (t != 0.0f) {
    Cut kept = keep_all();
    if (top_k[row] > 0)
      kept = cut_heaviest<kThreads>(
          n, value, [](int) { return Weight{1}; }, static_cast<Weight>(top_k[row]), shared);
    const float inverse = 1.0f / t;
    const auto weight = [&](int j) {
      return kept.keeps(x[j], j) ? fixed_weight(expf((x[j] - max) * inverse)) : Weight{0};
    };
    const auto total = [&] {
      Weight sum = 0;
      for (int j = threadIdx.x; j < n; j += kThreads) sum += weight(j);
      return block_sum<kThreads>(sum);
    };
    if (top_p[row] < 1.0f) {
      const auto target =
          static_cast<Weight>(ceil(static_cast<double>(top_p[row]) * static_cast<double>(total())));
      kept = cut_heaviest<kThreads>(n, value, weight, target > 0 ? target : 1, shared);
    }
    const auto k = static_cast<uint64_t>(key[row]), c = static_cast<uint64_t>(counter[row]);
    if (with_gumbel) {
      // Four neighbouring entries share one call of the generator: a thread takes all four.
      Best own{-INFINITY, INT_MAX};
      for (int j0 = 4 * static_cast<int>(threadIdx.x); j0 < n; j0 += 4 * kThreads) {
        const PhiloxWords words = philox(k, c, static_cast<uint64_t>(j0 / 4));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = j0 + i;
          if (j < n && kept.keeps(x[j], j))
            own = better(own, {__fadd_rn(x[j] / t, gumbel(words.word[i])), j});
        }
      }
      // One candidate a thread.
      __shared__ Best candidate[kThreads];
      candidate[threadIdx.x] = own;
      __syncthreads();
      for (int half = kThreads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half)
          candidate[threadIdx.x] = better(candidate[threadIdx.x], candidate[threadIdx.x + half]);
        __syncthreads();
      }
      chosen = min(candidate[0].index, n - 1);
    } else {
      const double u = static_cast<double>(uniform_open(philox(k, c, 0).word[0]));
      chosen = inverse_cdf<kThreads>(n, weight, static_cast<Weight>(u * static_cast<double>(total())));
    }
  }
  float sum = 0;
  for (int j = threadIdx.x; j < n; j += kThreads) sum += expf(x[j] - max);
  const double all = block_sum<kThreads>(static_cast<double>(sum));
  if (threadIdx.x == 0) {
    token[row] = chosen;
    logp[row] = static_cast<float>(static_cast<double>(x[chosen] - max) - log(all));
  }
}

}  // namespace gantrain::cuda
