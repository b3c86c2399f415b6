#include "train/networks/lora.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"

namespace gantrain {
LoraGenerator::LoraGenerator(Device& device, const LlamaConfig& model, const LoraShape& shape, uint64_t key,
                             bool gradients)
    : Generator(device, 0, model.hidden_size, gradients) {
  adapter_.shape = shape;
  adapter_.layers.resize(static_cast<size_t>(model.num_layers));
  std::vector<std::array<size_t, kLoraTargets>> a(adapter_.layers.size()), b = a;
  for (size_t l = 0; l < adapter_.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      if (!shape.targets[t]) continue;
      const LoraDims d = lora_dims(model, t);
      const std::string name = lora_module(l, t);
      a[l][t] =
          parameters_.add(name + ".lora_A", {shape.rank, d.in},
                          uniform_init(derive_key(key, l, t), 1.0f / std::sqrt(static_cast<float>(d.in))));
      b[l][t] = parameters_.add(name + ".lora_B", {d.out, shape.rank}, constant_init(0.0f));
    }
  for (size_t l = 0; l < adapter_.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t)
      if (shape.targets[t])
        adapter_.layers[l][t] = {.a = parameters_.value(a[l][t]),
                                 .b = parameters_.value(b[l][t]),
                                 .da = parameters_.grad(a[l][t]),
                                 .db = parameters_.grad(b[l][t])};
}

LoraShape lora_shape(const LoraConfig& config) {
  LoraShape s;
  s.rank = config.rank;
  s.alpha = config.alpha;
  s.rslora = config.rslora;
  for (size_t t = 0; t < kLoraTargets; ++t)
    s.targets[t] = std::any_of(config.targets.begin(), config.targets.end(), [&](const std::string& name) {
      return name == "all" || name == kLoraTargetNames[t];
    });
  return s;
}

}  // namespace gantrain
