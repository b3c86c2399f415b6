#include "core/ops/adversarial.h"

#include <cmath>
#include <vector>

#include "cpu/cpu_ops.h"

namespace gantrain {
namespace {

// log(1 + exp(x)) without overflow, and its slope. A handful of values a step: in double.
double softplus(double x) { return (x > 0.0 ? x : 0.0) + std::log1p(std::exp(-std::abs(x))); }
double sigmoid(double x) {
  const double e = std::exp(-std::abs(x));
  return x >= 0.0 ? 1.0 / (1.0 + e) : e / (1.0 + e);
}

void check_offsets(const char* op, ConstTensor offsets, int64_t rows) {
  const int32_t* o = offsets.data<int32_t>();
  const int64_t last = offsets.count() - 1;
  GT_CHECK(o[0] >= 0 && o[last] <= rows, "{}: offsets run from {} to {}, the tensor has {} rows", op, o[0],
           o[last], rows);
  for (int64_t s = 0; s < last; ++s)
    GT_CHECK(o[s] < o[s + 1], "{}: segment {} is [{}, {}), expected at least one row", op, s, o[s], o[s + 1]);
}

}  // namespace

void CpuOps::segment_mean_forward(const SegmentMeanForward& p) {
  check_offsets("segment_mean_forward", p.offsets, p.x.dim(0));
  const int64_t width = p.x.dim(1);
  const float* x = p.x.data<float>();
  const int32_t* offsets = p.offsets.data<int32_t>();
  float* y = p.y.data<float>();
  pool_.parallel_for(p.y.dim(0), [&](int64_t s) {
    for (int64_t j = 0; j < width; ++j) {
      double sum = 0.0;
      for (int64_t r = offsets[s]; r < offsets[s + 1]; ++r) sum += x[r * width + j];
      y[s * width + j] = static_cast<float>(sum / (offsets[s + 1] - offsets[s]));
    }
  });
}

void CpuOps::segment_mean_backward(const SegmentMeanBackward& p) {
  check_offsets("segment_mean_backward", p.offsets, p.dx.dim(0));
  const int64_t width = p.dx.dim(1);
  const float* dy = p.dy.data<float>();
  const int32_t* offsets = p.offsets.data<int32_t>();
  float* dx = p.dx.data<float>();
  pool_.parallel_for(p.dy.dim(0), [&](int64_t s) {
    const float count = static_cast<float>(offsets[s + 1] - offsets[s]);
    for (int64_t r = offsets[s]; r < offsets[s + 1]; ++r)
      for (int64_t j = 0; j < width; ++j) dx[r * width + j] += dy[s * width + j] / count;
  });
}

void CpuOps::pair_loss(const PairLoss& p) {
  const int64_t pairs = p.dr.count();
  const float *dr = p.dr.data<float>(), *df = p.df.data<float>();
  const bool copies = !p.dr2.empty();
  const double share = 1.0 / static_cast<double>(pairs), lam = p.lam, center = p.center, smooth = p.smooth;
  double loss = 0.0;
  for (int64_t i = 0; i < pairs; ++i) {
    const double r = dr[i], f = df[i];
    double seed_r = 0.0, seed_f = 0.0;
    switch (p.kind) {
      case PairLossKind::kRelativistic: {
        const double a = sigmoid(f - r);
        loss += softplus(f - r);
        seed_r = -a;
        seed_f = a;
        break;
      }
      case PairLossKind::kBce:
        loss += (1.0 - smooth) * softplus(-r) + smooth * softplus(r) + softplus(f);
        seed_r = sigmoid(r) - (1.0 - smooth);
        seed_f = sigmoid(f);
        break;
      case PairLossKind::kHinge:
        loss += (r < 1.0 ? 1.0 - r : 0.0) + (f > -1.0 ? 1.0 + f : 0.0);
        seed_r = r < 1.0 ? -1.0 : 0.0;
        seed_f = f > -1.0 ? 1.0 : 0.0;
        break;
    }
    loss += center * (r * r + f * f);
    seed_r += 2.0 * center * r;
    seed_f += 2.0 * center * f;
    if (copies) {
      const double gap_r = r - p.dr2.data<float>()[i], gap_f = f - p.df2.data<float>()[i];
      loss += lam * (gap_r * gap_r + gap_f * gap_f);
      seed_r += 2.0 * lam * gap_r;
      seed_f += 2.0 * lam * gap_f;
      p.ddr2.data<float>()[i] = static_cast<float>(-2.0 * lam * gap_r * share);
      p.ddf2.data<float>()[i] = static_cast<float>(-2.0 * lam * gap_f * share);
    }
    p.ddr.data<float>()[i] = static_cast<float>(seed_r * share);
    p.ddf.data<float>()[i] = static_cast<float>(seed_f * share);
  }
  p.loss.data<float>()[0] = static_cast<float>(loss * share);
}

void CpuOps::generator_pair_loss(const GeneratorPairLoss& p) {
  const int64_t pairs = p.df.count();
  const double share = 1.0 / static_cast<double>(pairs);
  double loss = 0.0;
  for (int64_t i = 0; i < pairs; ++i) {
    const double r = p.dr.data<float>()[i], f = p.df.data<float>()[i];
    double seed = 0.0;
    switch (p.kind) {
      case PairLossKind::kRelativistic:
        loss += softplus(r - f);
        seed = -sigmoid(r - f);
        break;
      case PairLossKind::kBce:
        loss += softplus(-f);
        seed = -sigmoid(-f);
        break;
      case PairLossKind::kHinge:
        loss += -f;
        seed = -1.0;
        break;
    }
    p.ddf.data<float>()[i] = static_cast<float>(seed * share);
  }
  p.loss.data<float>()[0] = static_cast<float>(loss * share);
}

void CpuOps::rms_penalty(const RmsPenalty& p) {
  constexpr int64_t kGrain = 8192;
  const int64_t count = p.prompt.count();
  const float* x = p.prompt.data<float>();
  std::vector<double> partial(static_cast<size_t>((count + kGrain - 1) / kGrain), 0.0);
  pool_.parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t i = begin; i < end; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    partial[static_cast<size_t>(begin / kGrain)] = sum;
  });
  double square = 0.0;
  for (double sum : partial) square += sum;
  const double rms = std::sqrt(square / static_cast<double>(count));
  GT_CHECK(rms > 0.0, "rms_penalty: the prompt is all zeros, its rms has no logarithm");
  const double log_ratio = std::log(rms / p.reference_rms), weight = p.weight;
  p.rms.data<float>()[0] = static_cast<float>(rms);
  p.loss.data<float>()[0] = static_cast<float>(weight * log_ratio * log_ratio);
  // d rms / dx_i = x_i / (count * rms)
  const double scale = 2.0 * weight * log_ratio / (static_cast<double>(count) * rms * rms);
  float* dx = p.dprompt.data<float>();
  pool_.parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dx[i] += static_cast<float>(scale * x[i]);
  });
}

}  // namespace gantrain
