// The two players' losses: core/ops/adversarial.h. A handful of values a step, in f64.
#pragma once

#include "cuda/device/reduce.cuh"

namespace gantrain::cuda {

enum class PairLossCode : int { kRelativistic, kBce, kHinge };

// log(1 + exp(x)) without overflow, and its slope.
__device__ inline double softplus(double x) { return (x > 0.0 ? x : 0.0) + log1p(exp(-fabs(x))); }
__device__ inline double logistic(double x) {
  const double e = exp(-fabs(x));
  return x >= 0.0 ? 1.0 / (1.0 + e) : e / (1.0 + e);
}

// y[s] = mean of x over rows [offsets[s], offsets[s + 1]): grid (S, C / kThreads), a thread owns one (s,
// column).
template <int kThreads>
__global__ __launch_bounds__(kThreads) void segment_mean_forward_kernel(const float* __restrict__ x,
                                                                        const int32_t* __restrict__ offsets,
                                                                        float* __restrict__ y, int width) {
  const int64_t s = blockIdx.x;
  const int j = blockIdx.y * kThreads + threadIdx.x;
  if (j >= width) return;
  const int64_t begin = offsets[s], end = offsets[s + 1];
  double sum = 0;
  for (int64_t r = begin; r < end; ++r) sum += x[r * width + j];
  y[s * width + j] = static_cast<float>(sum / static_cast<double>(end - begin));
}
template <int kThreads>
__global__ __launch_bounds__(kThreads) void segment_mean_backward_kernel(const float* __restrict__ dy,
                                                                         const int32_t* __restrict__ offsets,
                                                                         float* __restrict__ dx, int width) {
  const int64_t s = blockIdx.x;
  const int j = blockIdx.y * kThreads + threadIdx.x;
  if (j >= width) return;
  const int64_t begin = offsets[s], end = offsets[s + 1];
  const float share = dy[s * width + j] / static_cast<float>(end - begin);
  for (int64_t r = begin; r < end; ++r) dx[r * width + j] += share;
}

struct PairLossArgs {
  const float *dr, *df, *dr2, *df2;  // (B); the copies may be null
  float lam, center, smooth;
  float *loss, *ddr, *ddf, *ddr2, *ddf2;
  int pairs;
};
// grid (1), block kThreads: one block takes all pairs and sums the losses in a fixed order.
template <PairLossCode kCode, int kThreads>
__global__ __launch_bounds__(kThreads) void pair_loss_kernel(PairLossArgs a) {
  const double share = 1.0 / a.pairs, lam = a.lam, center = a.center, smooth = a.smooth;
  double loss = 0;
  for (int i = threadIdx.x; i < a.pairs; i += kThreads) {
    const double r = a.dr[i], f = a.df[i];
    double seed_r, seed_f;
    if constexpr (kCode == PairLossCode::kRelativistic) {
      loss += softplus(f - r);
      seed_f = logistic(f - r);
      seed_r = -seed_f;
    } else if constexpr (kCode == PairLossCode::kBce) {
      loss += (1.0 - smooth) * softplus(-r) + smooth * softplus(r) + softplus(f);
      seed_r = logistic(r) - (1.0 - smooth);
      seed_f = logistic(f);
    } else {
      loss += (r < 1.0 ? 1.0 - r : 0.0) + (f > -1.0 ? 1.0 + f : 0.0);
      seed_r = r < 1.0 ? -1.0 : 0.0;
      seed_f = f > -1.0 ? 1.0 : 0.0;
    }
    loss += center * (r * r + f * f);
    seed_r += 2.0 * center * r;
    seed_f += 2.0 * center * f;
    if (a.dr2) {
      const double gap_r = r - a.dr2[i], gap_f = f - a.df2[i];
      loss += lam * (gap_r * gap_r + gap_f * gap_f);
      seed_r += 2.0 * lam * gap_r;
      seed_f += 2.0 * lam * gap_f;
      a.ddr2[i] = static_cast<float>(-2.0 * lam * gap_r * share);
      a.ddf2[i] = static_cast<float>(-2.0 * lam * gap_f * share);
    }
    a.ddr[i] = static_cast<float>(seed_r * share);
    a.ddf[i] = static_cast<float>(seed_f * share);
  }
  loss = block_sum<kThreads>(loss);
  if (threadIdx.x == 0) a.loss[0] = static_cast<float>(loss * share);
}

// The generator's side: grid and block as above.
template <PairLossCode kCode, int kThreads>
__global__ __launch_bounds__(kThreads) void generator_pair_loss_kernel(const float* __restrict__ dr,
                                                                       const float* __restrict__ df,
                                                                       float* __restrict__ loss_out,
                                                                       float* __restrict__ ddf, int pairs) {
  const double share = 1.0 / pairs;
  double loss = 0;
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    const double r = dr[i], f = df[i];
    double seed;
    if constexpr (kCode == PairLossCode::kRelativistic) {
      loss += softplus(r - f);
      seed = -logistic(r - f);
    } else if constexpr (kCode == PairLossCode::kBce) {
      loss += softplus(-f);
      seed = -logistic(-f);
    } else {
      loss -= f;
      seed = -1.0;
    }
    ddf[i] = static_cast<float>(seed * share);
  }
  loss = block_sum<kThreads>(loss);
  if (threadIdx.x == 0) loss_out[0] = static_cast<float>(loss * share);
}

// From total = sum of x^2 over the prompt: rms, the penalty, and dx += its gradient. A thread owns an
// element; the first one writes the scalars. A prompt of zeros has no logarithm: the loss is then infinite.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void rms_penalty_kernel(
    const float* __restrict__ x, const double* __restrict__ total, float reference_rms, float weight,
    float* __restrict__ loss, float* __restrict__ rms_out, float* __restrict__ dx, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const double rms = sqrt(total[0] / static_cast<double>(count));
  const double log_ratio = log(rms / static_cast<double>(reference_rms)), w = weight;
  if (i == 0) {
    rms_out[0] = static_cast<float>(rms);
    loss[0] = static_cast<float>(w * log_ratio * log_ratio);
  }
  const double scale = 2.0 * w * log_ratio / (static_cast<double>(count) * rms * rms);
  dx[i] += static_cast<float>(scale * x[i]);
}

}  // namespace gantrain::cuda
