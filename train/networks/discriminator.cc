#include "train/networks/discriminator.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"

namespace gantrain {

int feature_layers(const DiscriminatorConfig& config, int64_t model_layers) {
  const int64_t wanted =
      config.feature_layer < 0 ? std::max<int64_t>(1, model_layers / 3) : config.feature_layer;
  if (wanted > model_layers)
    fail_usage("discriminator.feature_layer: the model has {} layers, got {}", model_layers, wanted);
  return static_cast<int>(wanted);
}

Discriminator::Discriminator(Device& device, const DiscriminatorConfig& config, int64_t feature_width,
                             uint64_t key)
    : device_(device), config_(config), parameters_(device) {
  const int64_t w = config.width;
  in_ = std::make_unique<Linear>(parameters_, "in", feature_width, w, derive_key(key, 1));
  block_ = std::make_unique<Block>(parameters_, "block", w, w, w % 8 == 0 ? 4 : 1, derive_key(key, 2));
  norm_ = std::make_unique<Norm>(parameters_, "norm", w);
  logit_ = std::make_unique<Linear>(parameters_, "logit", w, 1, derive_key(key, 3), 0.1f, false);
}

OwnedTensor Discriminator::normalise(Device& device, ConstTensor h) {
  OwnedTensor f(device, DType::kF32, h.shape()), rstd(device, DType::kF32, {h.dim(0)});
  rmsnorm_forward(device, {.x = h, .w = {}, .y = f, .rstd = rstd});
  return f;
}

OwnedTensor Discriminator::forward(ConstTensor f, const std::vector<int32_t>& offsets) {
  GT_CHECK(offsets.size() >= 2 && offsets.front() == 0 && offsets.back() == f.dim(0),
           "offsets do not cover {} rows", f.dim(0));
  plan_ = AttentionPlan();
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    GT_CHECK(offsets[i + 1] > offsets[i], "answer {} is empty", i);
    plan_.segments.push_back({.q_begin = offsets[i],
                              .q_count = offsets[i + 1] - offsets[i],
                              .span_begin = 0,
                              .span_count = 0,
                              .kv_begin = offsets[i]});
  }
  offsets_ = OwnedTensor(device_, DType::kI32, {static_cast<int64_t>(offsets.size())});
  device_.copy_in(offsets_, offsets.data());
  x_ = in_->forward(device_, f);
  block_->forward(device_, x_, {}, plan_);
  normed_ = norm_->forward(device_, x_);
  logits_ = logit_->forward(device_, normed_);
  OwnedTensor scores(device_, DType::kF32, {static_cast<int64_t>(offsets.size()) - 1, 1});
  segment_mean_forward(device_, {.x = logits_, .offsets = offsets_, .y = scores});
  return scores;
}

void Discriminator::backward(ConstTensor f, ConstTensor d_scores, Tensor df) {
  OwnedTensor dlogits = zeros(device_, logits_.view().shape());
  segment_mean_backward(device_,
                        {.dy = d_scores.view({d_scores.count(), 1}), .offsets = offsets_, .dx = dlogits});
  OwnedTensor dn = zeros(device_, normed_.view().shape()), dx = zeros(device_, x_.view().shape());
  logit_->backward(device_, normed_, dlogits, dn);
  norm_->backward(device_, x_, dn, dx);
  block_->backward(device_, dx, {}, plan_, {});
  in_->backward(device_, f, dx, df);
}

void Discriminator::normalise_spectrum() {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor w = parameters_.value(i);
    if (w.rank() != 2 || w.dim(0) < 2) continue;
    const int64_t rows = w.dim(0), cols = w.dim(1);
    std::vector<float> m(static_cast<size_t>(rows * cols));
    device_.copy_out(m.data(), w);
    // From signed row sums, the same start every time: nothing to save. Few fixed iterations from there would
    // never find the leading direction however often this is called, so it goes on until the estimate
    // settles. A matrix that starts at zero stays as it is.
    std::vector<double> v(static_cast<size_t>(cols), 0.0), u(static_cast<size_t>(rows), 0.0);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        v[static_cast<size_t>(c)] +=
            m[static_cast<size_t>(r * cols + c)] * ((r * 2654435761u >> 7 & 1) ? 1.0 : -1.0);
    auto unit = [](std::vector<double>& x) {
      double s = 0.0;
      for (double e : x) s += e * e;
      s = std::sqrt(s);
      if (s > 0.0)
        for (double& e : x) e /= s;
      return s;
    };
    if (unit(v) == 0.0) continue;
    double sigma = 0.0;
    for (int iteration = 0; iteration < 100; ++iteration) {
      const double last = sigma;
      for (int64_t r = 0; r < rows; ++r) {
        u[static_cast<size_t>(r)] = 0.0;
        for (int64_t c = 0; c < cols; ++c)
          u[static_cast<size_t>(r)] += m[static_cast<size_t>(r * cols + c)] * v[static_cast<size_t>(c)];
      }
      sigma = unit(u);
      if (sigma - last <= 1e-5 * sigma) break;
      std::fill(v.begin(), v.end(), 0.0);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
          v[static_cast<size_t>(c)] += m[static_cast<size_t>(r * cols + c)] * u[static_cast<size_t>(r)];
      unit(v);
    }
    if (sigma <= 1.0) continue;
    for (float& x : m) x = static_cast<float>(x / sigma);
    device_.copy_in(w, m.data());
  }
}

}  // namespace gantrain
