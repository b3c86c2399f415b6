// Between the head's products: losses and seeds of a chunk of rows, and the scatter of dx: core/ops/head.h.
#pragma once

#include "cuda/device/philox.cuh"
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

// Sum over the block of f(j), j < n: f32 within a thread, f64 across threads.
template <int kThreads, typename F>
__device__ inline double block_total(int n, F f) {
  float sum = 0;
  for (int j = threadIdx.x; j < n; j += kThreads) sum += f(j);
  return block_sum<kThreads>(static_cast<double>(sum));
}

// grid (rows), block kThreads: a block owns one row of logits. Writes nll, argmax, kl, and the row of seeds
// (the derivative with respect to the logits) as T. Deterministic. Traffic: the row read three times (five
// with KL, and the reference twice), written once; all but the first time from the cache.
template <typename T, int kThreads>
__global__ __launch_bounds__(kThreads) void head_row_kernel(HeadRowArgs a, T* seeds) {
  __shared__ SelectShared shared;
  const int r = blockIdx.x, n = a.v;
  const int64_t at = static_cast<int64_t>(r) * n;
  float* l = a.logits + at;
  const int label = a.labels[r];
  // Read before a barrier: seeds in f32 take the logits' place.
  const double label_logit = l[label];
  const Best best = block_argmax<kThreads>(n, [&](int j) { return l[j]; });
  const float max = best.value;
  const double sum = block_total<kThreads>(n, [&](int j) { return expf(l[j] - max); });
  const double lse = static_cast<double>(max) + log(sum);
  if (threadIdx.x == 0) {
    a.nll[r] = static_cast<float>(lse - label_logit);
    if (a.argmax) a.argmax[r] = best.index;
  }
  // The Gumbel part first, into `target`: it still needs the logits. Threads keep to their own entries of
  // `noisy` and `target` but in cut_heaviest, which barriers surround.
  const bool gumbel_part = a.noisy && a.wants_seed;
  if (gumbel_part) {
    float *z = a.noisy + at, *t = a.target + at;
    const auto key = static_cast<uint64_t>(a.key[r]), counter = static_cast<uint64_t>(a.counter[r]);
    for (int j0 = 4 * static_cast<int>(threadIdx.x); j0 < n; j0 += 4 * kThreads) {
      const PhiloxWords words = philox(key, counter, static_cast<uint64_t>(j0 / 4));
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (j0 + i < n) z[j0 + i] = __fadd_rn(l[j0 + i], gumbel(words.word[i]));
    }
    __syncthreads();
    const auto value = [&](int j) { return z[j]; };
    const Cut kept = a.top_k > 0
                         ? cut_heaviest<kThreads>(
                               n, value, [](int) { return Weight{1}; }, static_cast<Weight>(a.top_k), shared)
                         : keep_all();
    const float top = block_argmax<kThreads>(n, value).value;
    const auto share = [&](int j) { return kept.keeps(z[j], j) ? expf((z[j] - top) * a.inverse_tau) : 0.0f; };
    const double total = block_total<kThreads>(n, share);
    const double dot = block_total<kThreads>(n, [&](int j) { return share(j) * t[j]; });
    const float mean = static_cast<float>(dot / total),
                scale = static_cast<float>(1.0 / total) * a.inverse_tau;
    for (int j = threadIdx.x; j < n; j += kThreads) t[j] = share(j) * scale * (t[j] - mean);
  }
  const float inverse_sum = static_cast<float>(1.0 / sum);
  const float ce = a.ce_weight ? a.ce_weight[r] : 0.0f;
  float kl_weight = 0.0f, kl = 0.0f, shift = 0.0f;
  const float* q = a.reference ? a.reference + at : nullptr;
  if (q) {
    const float q_max = block_argmax<kThreads>(n, [&](int j) { return q[j]; }).value;
    const double q_sum = block_total<kThreads>(n, [&](int j) { return expf(q[j] - q_max); });
    shift = static_cast<float>(static_cast<double>(q_max) + log(q_sum) - lse);  // log(p / q) = l - q + shift
    kl = static_cast<float>(
        block_total<kThreads>(n, [&](int j) { return expf(l[j] - max) * (l[j] - q[j] + shift); }) / sum);
    if (threadIdx.x == 0) a.kl[r] = kl;
    if (a.kl_weight) kl_weight = a.kl_weight[r];
  }
  if (!a.wants_seed) return;
  for (int j = threadIdx.x; j < n; j += kThreads) {
    const float p = expf(l[j] - max) * inverse_sum;
    float seed = p * ce;
    if (kl_weight != 0.0f) seed = p * (ce + kl_weight * (l[j] - q[j] + shift - kl));
    if (j == label) seed -= ce;
    if (gumbel_part) seed += a.target[at + j];
    seeds[at + j] = from_float<T>(seed);
  }
}

// dx[row[i]] += RMSNorm's backward of dnormed[i], for the `count` rows of a chunk. grid (count), block 32. A
// row that appears several times is done by its first block alone, in order of i.
static __global__ __launch_bounds__(kWarp) void head_scatter_kernel(
    const float* __restrict__ x,        // (N, C)
    const int32_t* __restrict__ row,    // (count)
    const float* __restrict__ rstd,     // (count)
    const float* __restrict__ gain,     // (C) or null
    const float* __restrict__ dnormed,  // (count, C)
    float* __restrict__ dx,             // (N, C) +=
    int count, int c) {
  const int first = blockIdx.x;
  const int64_t target = row[first];
  for (int i0 = 0; i0 < first; i0 += kWarp) {
    const int i = i0 + static_cast<int>(threadIdx.x);
    if (__any_sync(kAllLanes, i < first && row[i] == target)) return;
  }
  x += target * c;
  dx += target * c;
  for (int i = first; i < count; ++i) {
    if (row[i] != target) continue;
    const float* d = dnormed + static_cast<int64_t>(i) * c;
    const float r = rstd[i];
    float dot = 0;
    for (int j = threadIdx.x; j < c; j += kWarp) dot += d[j] * (gain ? gain[j] : 1.0f) * x[j];
    const float mean = warp_sum(dot) * r / static_cast<float>(c);
    for (int j = threadIdx.x; j < c; j += kWarp)
      dx[j] += r * (d[j] * (gain ? gain[j] : 1.0f) - x[j] * r * mean);
  }
}

}  // namespace gantrain::cuda
