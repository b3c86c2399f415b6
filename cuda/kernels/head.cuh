// Between the head's products: losses and seeds of a chunk of rows, and the scatter of dx: core/ops/head.h.
#pragma once

#include "cuda/device/double.cuh"
#include "cuda/device/norm_row.cuh"
#include "cuda/device/select.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

struct HeadRowArgs {
  float* logits;           // (rows, V): replaced by the seeds if they are f32
  const float* reference;  // (rows, V) or null: logits of the reference policy
  float* noisy;            // (rows, V) or null: no Gumbel part
  float* target;           // (rows, V): <embedding, embedding_grad>, replaced by the Gumbel part
  const int32_t* labels;   // (rows), and so on: already moved to the chunk's first row
  const float *ce_weight, *kl_weight;
  const int64_t *key, *counter;
  float inverse_tau;
  int top_k;
  float *nll, *kl;
  int32_t* argmax;
  bool wants_seed;
  int v;
};

// Sum over a row of n entries of f(j), which adds up kVector neighbours: f32 within a thread, f64 across
// threads.
template <int kThreads, int kVector, typename F>
__device__ inline double block_total(int n, F f) {
  float sum = 0;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < n; j += kThreads * kVector) sum += f(j);
  return block_sum<kThreads>(static_cast<double>(sum));
}

// grid (rows), block kThreads: a block owns one row of logits. Writes nll, argmax, kl, and the row of seeds
// (the derivative with respect to the logits) as T. Deterministic. Traffic: the row read three times (five
// with KL, and the reference twice), written once; all but the first time from the cache. kVector: entries a
// thread moves at once, 16 bytes of f32 where rows are aligned to those and V is a multiple of 4, of 8 where
// T has 16 bits; else 1.
template <typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads> / 2) void head_row_kernel(HeadRowArgs a,
                                                                                       T* seeds) {
  __shared__ SelectShared shared;
  const int r = blockIdx.x, n = a.v;
  const int64_t at = static_cast<int64_t>(r) * n;
  float* l = a.logits + at;
  const int label = a.labels[r];
  const auto row = [](const float* p) { return [p](int j, auto& v) { load_floats(p + j, v); }; };
  // Sum of exp(p - shift).
  const auto exp_total = [&](const float* p, float shift) {
    return block_total<kThreads, kVector>(n, [&](int j) {
      float v[kVector], sum = 0;
      load_floats(p + j, v);
#pragma unroll
      for (int e = 0; e < kVector; ++e) sum += expf(v[e] - shift);
      return sum;
    });
  };
  // Read before a barrier: seeds in f32 take the logits' place.
  const double label_logit = l[label];
  const Best best = block_argmax<kThreads, kVector>(n, row(l));
  const float max = best.value;
  const double sum = exp_total(l, max), inverse = reciprocal(sum);
  const double lse = static_cast<double>(max) + log_of(sum);
  if (threadIdx.x == 0) {
    a.nll[r] = static_cast<float>(lse - label_logit);
    if (a.argmax) a.argmax[r] = best.index;
  }
  // The Gumbel part first, into `target`: it still needs the logits. Threads keep to their own entries of
  // `noisy` and `target` but in cut_heaviest, which barriers surround.
  const bool gumbel_part = a.noisy && a.wants_seed;
  if (gumbel_part) {
    float *z = a.noisy + at, *t = a.target + at;
    gumbel_each<kThreads, kVector>(n, static_cast<uint64_t>(a.key[r]), static_cast<uint64_t>(a.counter[r]),
                                   row(l),
                                   [&]<int kCount>(int j, float(&v)[kCount], const float(&noise)[kCount]) {
#pragma unroll
                                     for (int e = 0; e < kCount; ++e) v[e] = __fadd_rn(v[e], noise[e]);
                                     store_floats(z + j, v);
                                   });
    __syncthreads();
    const Cut kept = a.top_k > 0 ? cut_heaviest<kThreads, kVector>(
                                       n, row(z), [](float, int) { return Weight{1}; },
                                       static_cast<Weight>(a.top_k), shared)
                                 : keep_all();
    const float top = block_argmax<kThreads, kVector>(n, row(z)).value;
    const auto share = [&](float value, int j) {
      return kept.keeps(value, j) ? expf((value - top) * a.inverse_tau) : 0.0f;
    };
    const double total = block_total<kThreads, kVector>(n, [&](int j) {
      float v[kVector], own = 0;
      load_floats(z + j, v);
#pragma unroll
      for (int e = 0; e < kVector; ++e) own += share(v[e], j + e);
      return own;
    });
    const double dot = block_total<kThreads, kVector>(n, [&](int j) {
      float v[kVector], g[kVector], own = 0;
      load_floats(z + j, v);
      load_floats(t + j, g);
#pragma unroll
      for (int e = 0; e < kVector; ++e) own += share(v[e], j + e) * g[e];
      return own;
    });
    const double inverse_total = reciprocal(total);
    const float mean = static_cast<float>(dot * inverse_total),
                scale = static_cast<float>(inverse_total) * a.inverse_tau;
#pragma unroll 1
    for (int j = threadIdx.x * kVector; j < n; j += kThreads * kVector) {
      float v[kVector], g[kVector];
      load_floats(z + j, v);
      load_floats(t + j, g);
#pragma unroll
      for (int e = 0; e < kVector; ++e) g[e] = share(v[e], j + e) * scale * (g[e] - mean);
      store_floats(t + j, g);
    }
  }
  const float inverse_sum = static_cast<float>(inverse);
  const float ce = a.ce_weight ? a.ce_weight[r] : 0.0f;
  float kl_weight = 0.0f, kl = 0.0f, shift = 0.0f;
  const float* q = a.reference ? a.reference + at : nullptr;
  if (q) {
    const float q_max = block_argmax<kThreads, kVector>(n, row(q)).value;
    const double q_sum = exp_total(q, q_max);
    shift =
        static_cast<float>(static_cast<double>(q_max) + log_of(q_sum) - lse);  // log(p / q) = l - q + shift
    const double weighted = block_total<kThreads, kVector>(n, [&](int j) {
      float v[kVector], other[kVector], own = 0;
      load_floats(l + j, v);
      load_floats(q + j, other);
#pragma unroll
      for (int e = 0; e < kVector; ++e) own += expf(v[e] - max) * (v[e] - other[e] + shift);
      return own;
    });
    kl = static_cast<float>(weighted * inverse);
    if (threadIdx.x == 0) a.kl[r] = kl;
    if (a.kl_weight) kl_weight = a.kl_weight[r];
  }
  if (!a.wants_seed) return;
  const auto seed = [&](int j, float(&v)[kVector]) {
    load_floats(l + j, v);
    if (kl_weight != 0.0f) {
      float other[kVector];
      load_floats(q + j, other);
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        v[e] = expf(v[e] - max) * inverse_sum * (ce + kl_weight * (v[e] - other[e] + shift - kl));
    } else {
#pragma unroll
      for (int e = 0; e < kVector; ++e) v[e] = expf(v[e] - max) * inverse_sum * ce;
    }
#pragma unroll
    for (int e = 0; e < kVector; ++e)
      if (j + e == label) v[e] -= ce;
    if (gumbel_part) {
      float more[kVector];
      load_floats(a.target + at + j, more);
#pragma unroll
      for (int e = 0; e < kVector; ++e) v[e] += more[e];
    }
  };
  constexpr int kApart = kThreads * kVector;
#pragma unroll 1
  for (int j0 = 0; j0 < n; j0 += 2 * kApart) {
    const int j = j0 + static_cast<int>(threadIdx.x) * kVector;
    const unsigned lanes = __ballot_sync(kAllLanes, j < n);
    if (j >= n) break;
    const bool second = j + kApart < n;
    float v[kVector], w[kVector] = {};
    seed(j, v);
    if (second) seed(j + kApart, w);
    store_quads(seeds + at + j, kApart, second, lanes, v, w);
  }
}

// dx[row[i]] += RMSNorm's backward of dnormed[i], for the `count` rows of a chunk. grid (count), block 32. A
// row that appears several times is done by its first block alone, in order of i. kVector: columns a lane
// moves at once, 4 where all is aligned to 16 bytes, else 1.
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void head_scatter_kernel(
    const float* __restrict__ x,        // (N, C)
    const int32_t* __restrict__ row,    // (count)
    const float* __restrict__ rstd,     // (count)
    const float* __restrict__ gain,     // (C) or null
    const float* __restrict__ dnormed,  // (count, C)
    float* __restrict__ dx,             // (N, C) +=
    int count, int c) {
  static_assert(kThreads == kWarp);
  const RowOwner own{0, static_cast<int>(threadIdx.x), kWarp, kAllLanes};
  const int first = blockIdx.x;
  const int64_t target = row[first];
  for (int i0 = 0; i0 < first; i0 += kWarp) {
    const int i = i0 + static_cast<int>(threadIdx.x);
    if (__any_sync(kAllLanes, i < first && row[i] == target)) return;
  }
  for (int i0 = first / kWarp * kWarp; i0 < count; i0 += kWarp) {
    const int i = i0 + static_cast<int>(threadIdx.x);
    unsigned same = __ballot_sync(kAllLanes, i >= first && i < count && row[i] == target);
    for (; same != 0; same &= same - 1) {
      const int64_t at = i0 + __ffs(same) - 1;
      norm_backward_row<kVector>(x + target * c, rstd[at], gain, dnormed + at * c, dx + target * c, c, own);
    }
  }
}

}  // namespace gantrain::cuda
