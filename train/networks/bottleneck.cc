#include "train/networks/bottleneck.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "model/adapters/bottleneck.h"

namespace gantrain {

BottleneckGenerator::BottleneckGenerator(Device& device, const LlamaConfig& model,
                                         const BottleneckShape& shape, uint64_t key, bool gradients)
    : Generator(device, 0, model.hidden_size, gradients) {
  const int64_t c = model.hidden_size, r = shape.width;
  const float bound = 1.0f / std::sqrt(static_cast<float>(c));
  const auto layers = static_cast<size_t>(model.num_layers);
  adapter_.shape = shape;
  adapter_.layers.resize(layers);
  for (size_t l = 0; l < layers; ++l)
    for (size_t place = 0; place < 2; ++place) {
      if (!shape.has(place)) continue;
      const std::string name = bottleneck_name(l, place);
      const size_t first =
          parameters_.add(name + ".down.weight", {r, c}, uniform_init(derive_key(key, l, place), bound));
      parameters_.add(name + ".down.bias", {r}, constant_init(0.0f));
      parameters_.add(name + ".up.weight", {c, r}, constant_init(0.0f));
      parameters_.add(name + ".up.bias", {c}, constant_init(0.0f));
      adapter_.layers[l][place] = {.down = parameters_.value(first),
                                   .down_bias = parameters_.value(first + 1),
                                   .up = parameters_.value(first + 2),
                                   .up_bias = parameters_.value(first + 3),
                                   .ddown = parameters_.grad(first),
                                   .ddown_bias = parameters_.grad(first + 1),
                                   .dup = parameters_.grad(first + 2),
                                   .dup_bias = parameters_.grad(first + 3)};
    }
}

BottleneckShape bottleneck_shape(const BottleneckConfig& config) {
  const auto named = [&](const char* place) {
    return std::find(config.places.begin(), config.places.end(), place) != config.places.end();
  };
  return {.width = config.width,
          .activation = config.activation,
          .attention = named("attention"),
          .mlp = named("mlp")};
}

}  // namespace gantrain
