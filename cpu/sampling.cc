#include <algorithm>
#include <cmath>
#include <limits>

#include "core/rng.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "cpu/select.h"
#include "cpu/vec_math.h"

namespace gantrain {
namespace {

// The first kept entry at which the running sum of weights, in index order, exceeds u times their total.
int64_t inverse_cdf(const float* x, const float* weight, int64_t n, const Cut& kept, float u) {
  constexpr int64_t kBlock = 256;
  const auto block_sum = [&](int64_t begin) {
    double sum = 0;
    for (int64_t j = begin; j < std::min(n, begin + kBlock); ++j)
      if (kept.keeps(x[j], j)) sum += static_cast<double>(weight[j]);
    return sum;
  };
  double total = 0;
  for (int64_t b = 0; b < n; b += kBlock) total += block_sum(b);
  const double target = static_cast<double>(u) * total;
  double before = 0;
  int64_t last = 0;
  for (int64_t b = 0; b < n; b += kBlock) {
    const double sum = block_sum(b);
    if (before + sum > target || b + kBlock >= n) {
      for (int64_t j = b; j < std::min(n, b + kBlock); ++j) {
        if (!kept.keeps(x[j], j) || weight[j] == 0.0f) continue;
        last = j;
        before += static_cast<double>(weight[j]);
        if (before > target) return j;
      }
    } else {
      before += sum;
    }
  }
  return last;  // rounding left the sum just short of the target
}

int64_t draw(const Sample& a, int64_t s, const float* x, int64_t n, float* work) {
  const float temperature = a.temperature.data<float>()[s], top_p = a.top_p.data<float>()[s];
  const int32_t top_k = a.top_k.data<int32_t>()[s];
  const auto key = static_cast<uint64_t>(a.key.data<int64_t>()[s]);
  const auto counter = static_cast<uint64_t>(a.counter.data<int64_t>()[s]);
  if (temperature == 0.0f) return row_argmax(x, n);
  Cut kept = top_k > 0 ? cut_top_k(x, n, top_k) : keep_all();
  if (!a.gumbel || top_p < 1.0f) exp_sum(x, n, row_max(x, n), 1.0f / temperature, work);
  if (top_p < 1.0f) {
    double total = 0;
    for (int64_t j = 0; j < n; ++j)
      if (kept.keeps(x[j], j)) total += static_cast<double>(work[j]);
    kept = cut_top_p(x, work, n, static_cast<double>(top_p) * total, kept);
  }
  if (!a.gumbel) return inverse_cdf(x, work, n, kept, uniform_open(Philox{key}(counter, 0)[0]));
  gumbel_noise(key, counter, n, work);
  const float low = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < n; ++j) work[j] = kept.keeps(x[j], j) ? x[j] / temperature + work[j] : low;
  return row_argmax(work, n);
}

}  // namespace

int64_t CpuOps::scratch(const Sample& a) const { return a.logits.dim(0) * a.logits.dim(1) * 4; }

void CpuOps::sample(const Sample& a) {
  const int64_t n = a.logits.dim(1);
  pool_.parallel_for(a.logits.dim(0), [&](int64_t s) {
    const float* x = a.logits.data<float>() + s * n;
    const int64_t token = draw(a, s, x, n, static_cast<float*>(a.scratch.raw()) + s * n);
    const float max = row_max(x, n);
    a.token.data<int32_t>()[s] = static_cast<int32_t>(token);
    a.logp.data<float>()[s] =
        static_cast<float>(static_cast<double>(x[token] - max) - std::log(exp_sum(x, n, max, 1.0f)));
  });
}

}  // namespace gantrain
