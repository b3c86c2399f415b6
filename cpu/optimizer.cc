#include "core/ops/optimizer.h"

#include <atomic>
#include <cmath>
#include <vector>

#include "cpu/cpu_ops.h"

namespace gantrain {
namespace {

constexpr int64_t kGrain = 8192;  // elements of one chunk

}  // namespace

void CpuOps::gradient_norm(const GradientNorm& p) {
  double square = 0.0;
  std::vector<double> partial;
  for (const Tensor& grad : p.grads) {
    const int64_t count = grad.count();
    const float* g = grad.data<float>();
    partial.assign(static_cast<size_t>((count + kGrain - 1) / kGrain), 0.0);
    pool_.parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
      double sum = 0.0;
      for (int64_t i = begin; i < end; ++i) sum += static_cast<double>(g[i]) * static_cast<double>(g[i]);
      partial[static_cast<size_t>(begin / kGrain)] = sum;
    });
    for (double sum : partial) square += sum;
  }
  p.out.data<float>()[0] = static_cast<float>(std::sqrt(square));
}

void CpuOps::adamw(const AdamW& p) {
  const float norm = p.norm.empty() ? 0.0f : p.norm.data<float>()[0];
  if (!std::isfinite(norm)) return;
  const float scale = p.clip > 0.0f && norm > p.clip ? p.clip / norm : 1.0f;
  // The corrections are taken in double: 1 - beta^step loses all its digits in f32 when beta is near 1.
  const double step = static_cast<double>(p.step);
  const float correct1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(p.beta1), step)));
  const float correct2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(p.beta2), step)));
  const float keep1 = p.beta1, take1 = static_cast<float>(1.0 - static_cast<double>(p.beta1));
  const float keep2 = p.beta2, take2 = static_cast<float>(1.0 - static_cast<double>(p.beta2));
  for (size_t t = 0; t < p.params.size(); ++t) {
    float *param = p.params[t].data<float>(), *m = p.m[t].data<float>(), *v = p.v[t].data<float>();
    const float* grad = p.grads[t].data<float>();
    pool_.parallel_ranges(p.params[t].count(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float g = grad[i] * scale;
        m[i] = keep1 * m[i] + take1 * g;
        v[i] = keep2 * v[i] + take2 * g * g;
        const float direction = m[i] * correct1 / (std::sqrt(v[i] * correct2) + p.eps);
        param[i] -= p.lr * (direction + p.weight_decay * param[i]);
      }
    });
  }
}

void CpuOps::ema(const Ema& p) {
  if (!p.norm.empty() && !std::isfinite(p.norm.data<float>()[0])) return;
  const float take = static_cast<float>(1.0 - static_cast<double>(p.decay));
  for (size_t t = 0; t < p.ema.size(); ++t) {
    const float* x = p.x[t].data<float>();
    float* mean = p.ema[t].data<float>();
    pool_.parallel_ranges(p.ema[t].count(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) mean[i] = p.decay * mean[i] + take * x[i];
    });
  }
}

bool CpuOps::all_finite(ConstTensor t) {
  std::atomic<bool> finite{true};
  pool_.parallel_ranges(t.count(), kGrain, [&](int64_t begin, int64_t end) {
    // An exponent of all ones is an infinity or a NaN, in every format.
    bool good = true;
    if (t.dtype() == DType::kF32) {
      const auto* bits = static_cast<const uint32_t*>(t.raw());
      for (int64_t i = begin; i < end; ++i) good &= (bits[i] & 0x7f800000u) != 0x7f800000u;
    } else {
      const auto* bits = static_cast<const uint16_t*>(t.raw());
      const uint32_t exponent = t.dtype() == DType::kBF16 ? 0x7f80u : 0x7c00u;
      for (int64_t i = begin; i < end; ++i) good &= (bits[i] & exponent) != exponent;
    }
    if (!good) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

}  // namespace gantrain
