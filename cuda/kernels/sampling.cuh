// Drawing tokens: core/ops/sampling.h.
#pragma once

#include "cuda/device/double.cuh"
#include "cuda/device/philox.cuh"
#include "cuda/device/select.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// grid (S), block kThreads: a block owns one row of logits, which it reads a few times from the cache,
// kVector entries a thread at a time: once for the maximum and once for the sum, four or five times for each
// of top-k and top-p, twice for the draw. kVector is 4 where rows are aligned to 16 bytes, else 1.
// Deterministic.
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads,
                             kFullBlocks<kThreads> /
                                 2) void sample_kernel(const float* __restrict__ logits,       // (S, V)
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
  const auto read = [&](int j, auto& v) { load_floats(x + j, v); };
  const Best best = block_argmax<kThreads, kVector>(n, read);
  const float max = best.value, t = temperature[row];
  int chosen = best.index;
  if (t != 0.0f) {
    Cut kept = keep_all();
    if (top_k[row] > 0)
      kept = cut_heaviest<kThreads, kVector>(
          n, read, [](float, int) { return Weight{1}; }, static_cast<Weight>(top_k[row]), shared);
    const float inverse = 1.0f / t;
    const auto weight = [&](float value, int j) {
      return kept.keeps(value, j) ? fixed_weight(expf((value - max) * inverse)) : Weight{0};
    };
    if (top_p[row] < 1.0f) {
      const Weight total = block_weight<kThreads, kVector>(n, read, weight);
      const auto target =
          static_cast<Weight>(ceil(static_cast<double>(top_p[row]) * static_cast<double>(total)));
      kept = cut_heaviest<kThreads, kVector>(n, read, weight, target > 0 ? target : 1, shared);
    }
    const auto k = static_cast<uint64_t>(key[row]), c = static_cast<uint64_t>(counter[row]);
    if (with_gumbel) {
      Best own{-INFINITY, INT_MAX};
      gumbel_each<kThreads, kVector>(
          n, k, c, read, [&]<int kCount>(int j, const float(&v)[kCount], const float(&noise)[kCount]) {
#pragma unroll
            for (int e = 0; e < kCount; ++e)
              if (kept.keeps(v[e], j + e)) own = better(own, {__fadd_rn(v[e] / t, noise[e]), j + e});
          });
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
      const Weight total = block_weight<kThreads, kVector>(n, read, weight);
      chosen = inverse_cdf<kThreads, kVector>(n, read, weight,
                                              static_cast<Weight>(u * static_cast<double>(total)));
    }
  }
  float sum = 0;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < n; j += kThreads * kVector) {
    float v[kVector];
    read(j, v);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum += expf(v[e] - max);
  }
  const double all = block_sum<kThreads>(static_cast<double>(sum));
  if (threadIdx.x == 0) {
    token[row] = chosen;
    logp[row] = static_cast<float>(static_cast<double>(x[chosen] - max) - log_of(all));
  }
}

}  // namespace gantrain::cuda
