#include "train/networks/judge.h"

#include <algorithm>

#include "core/ops/trainable.h"
#include "core/rng.h"

namespace gantrain {
namespace {

OwnedTensor on_device(Device& device, const std::vector<int32_t>& values) {
  OwnedTensor t(device, DType::kI32, {static_cast<int64_t>(values.size())});
  device.copy_in(t, values.data());
  return t;
}

}  // namespace

Judge::Judge(Device& device, const DiscriminatorConfig& config, int64_t vocabulary, int64_t max_length,
             uint64_t key)
    : device_(device),
      max_length_(max_length),
      table_(device),
      head_(device, config, config.width, derive_key(key, 1)) {
  if (vocabulary < 1 || max_length < 1)
    fail_usage("a judge of {} tokens and {} positions, expected at least 1 of each", vocabulary, max_length);
  table_.add("embedding", {vocabulary, config.width}, normal_init(derive_key(key, 2), 1.0f));
  // Smaller than the words: a position tells words apart, it does not drown them.
  table_.add("position", {max_length, config.width}, normal_init(derive_key(key, 3), 0.1f));
}

OwnedTensor Judge::forward(const std::vector<int32_t>& tokens, const std::vector<int32_t>& offsets) {
  GT_CHECK(
      offsets.size() >= 2 && offsets.front() == 0 && offsets.back() == static_cast<int64_t>(tokens.size()),
      "offsets do not cover {} tokens", tokens.size());
  std::vector<int32_t> positions;
  positions.reserve(tokens.size());
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    for (int32_t i = 0; i < offsets[s + 1] - offsets[s]; ++i)
      positions.push_back(static_cast<int32_t>(std::min<int64_t>(i, max_length_ - 1)));
  GT_CHECK(positions.size() == tokens.size(), "offsets are not ascending");
  const int64_t n = static_cast<int64_t>(tokens.size()), width = table_.value(0).dim(1);
  tokens_ = on_device(device_, tokens);
  positions_ = on_device(device_, positions);
  features_ = OwnedTensor(device_, DType::kF32, {n, width});
  OwnedTensor place(device_, DType::kF32, {n, width});
  gather_rows(device_, {.x = table_.value(0), .rows = tokens_, .y = features_});
  gather_rows(device_, {.x = table_.value(1), .rows = positions_, .y = place});
  axpy(device_, {.x = place, .a = 1.0f, .y = features_});
  return head_.forward(features_, offsets);
}

void Judge::backward(ConstTensor d_scores) {
  OwnedTensor d_features = zeros(device_, features_.view().shape());
  head_.backward(features_, d_scores, d_features);
  scatter_add_rows(device_, {.dy = d_features, .rows = tokens_, .dx = table_.grad(0)});
  scatter_add_rows(device_, {.dy = d_features, .rows = positions_, .dx = table_.grad(1)});
}

void Judge::zero_grad() {
  table_.zero_grad();
  head_.parameters().zero_grad();
}

void Judge::step(const AdamSettings& settings) {
  table_.step(settings);
  head_.parameters().step(settings);
}

}  // namespace gantrain
