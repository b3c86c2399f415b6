#include "model/adapters/lora.h"

#include <cmath>

#include "core/check.h"

namespace gantrain {

float LoraShape::scale() const {
  const double r = static_cast<double>(rank);
  return static_cast<float>(alpha / (rslora ? std::sqrt(r) : r));
}

LoraDims lora_dims(const LlamaConfig& c, size_t target) {
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  switch (static_cast<LoraTarget>(target)) {
    case LoraTarget::kQ:
      return {c.hidden_size, q, 0};
    case LoraTarget::kK:
      return {c.hidden_size, kv, q};
    case LoraTarget::kV:
      return {c.hidden_size, kv, q + kv};
    case LoraTarget::kO:
      return {q, c.hidden_size, 0};
    case LoraTarget::kGate:
      return {c.hidden_size, c.intermediate_size, 0};
    case LoraTarget::kUp:
      return {c.hidden_size, c.intermediate_size, c.intermediate_size};
    case LoraTarget::kDown:
      return {c.intermediate_size, c.hidden_size, 0};
  }
  GT_CHECK(false, "no linear layer {}", target);
}

std::string lora_module(size_t layer, size_t target) {
  return fmt::format("model.layers.{}.{}", layer, kLoraModules.at(target));
}

void check_lora(const LoraShape& s, const std::string& where) {
  constexpr int64_t kLargestRank = 4096;
  if (s.rank < 1 || s.rank > kLargestRank)
    fail("{}: rank: expected 1 to {}, got {}", where, kLargestRank, s.rank);
  bool any = false;
  for (const bool t : s.targets) any = any || t;
  if (!any) fail("{}: no linear layer named; expected some of q, k, v, o, gate, up, down", where);
  if (!std::isfinite(s.scale())) fail("{}: alpha: expected a finite number, got {}", where, s.alpha);
}

OwnedLora::OwnedLora(Device& device, const LlamaConfig& config, const LoraShape& shape, bool gradients) {
  adapter_.shape = shape;
  adapter_.layers.resize(static_cast<size_t>(config.num_layers));
  first_.resize(adapter_.layers.size());
  for (size_t l = 0; l < adapter_.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      first_[l][t] = tensors_.size();
      if (!shape.targets[t]) continue;
      const LoraDims d = lora_dims(config, t);
      LoraAdapter::Part& part = adapter_.layers[l][t];
      const auto make = [&](Shape s) {
        tensors_.emplace_back(device, DType::kF32, s);
        device.fill_zero(tensors_.back());
        return tensors_.back().view();
      };
      part.a = make({shape.rank, d.in});
      part.b = make({d.out, shape.rank});
      if (!gradients) continue;
      part.da = make({shape.rank, d.in});
      part.db = make({d.out, shape.rank});
    }
}

}  // namespace gantrain
