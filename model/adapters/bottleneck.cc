#include "model/adapters/bottleneck.h"

#include "core/check.h"

namespace gantrain {

std::string bottleneck_name(size_t layer, size_t place) {
  return fmt::format("model.layers.{}.after_{}", layer, place == 0 ? "attention" : "mlp");
}

void check_bottleneck(const BottleneckShape& shape, const std::string& where) {
  constexpr int64_t kLargest = 65536;
  if (shape.width < 1 || shape.width > kLargest)
    fail("{}: width: expected 1 to {}, got {}", where, kLargest, shape.width);
  if (!shape.attention && !shape.mlp) fail("{}: no place named; expected attention, mlp or both", where);
}

OwnedBottleneck::OwnedBottleneck(Device& device, const LlamaConfig& config, const BottleneckShape& shape,
                                 const BottleneckLayers& values, bool gradients) {
  const int64_t c = config.hidden_size, r = shape.width;
  adapter_.shape = shape;
  adapter_.layers.resize(static_cast<size_t>(config.num_layers));
  const auto gradient = [&](Shape s) {
    if (!gradients) return Tensor{};
    tensors_.emplace_back(device, DType::kF32, s);
    device.fill_zero(tensors_.back());
    return tensors_.back().view();
  };
  const auto value = [&](Shape s, const std::vector<float>& from) {
    GT_CHECK(static_cast<int64_t>(from.size()) == s.count(), "{} values for {}", from.size(), to_string(s));
    tensors_.emplace_back(device, DType::kF32, s);
    device.copy_in(tensors_.back(), from.data());
    return ConstTensor(tensors_.back().view());
  };
  for (size_t l = 0; l < adapter_.layers.size(); ++l)
    for (size_t place = 0; place < 2; ++place) {
      if (!shape.has(place)) continue;
      const BottleneckValues& v = values.at(l)[place];
      adapter_.layers[l][place] = {.down = value({r, c}, v.down),
                                   .down_bias = value({r}, v.down_bias),
                                   .up = value({c, r}, v.up),
                                   .up_bias = value({c}, v.up_bias),
                                   .ddown = gradient({r, c}),
                                   .ddown_bias = gradient({r}),
                                   .dup = gradient({c, r}),
                                   .dup_bias = gradient({c})};
    }
}

BottleneckLayers values_of(Device& device, const BottleneckAdapter& adapter) {
  const auto host = [&](const ConstTensor& t) {
    std::vector<float> v(static_cast<size_t>(t.count()));
    device.copy_out(v.data(), t);
    return v;
  };
  BottleneckLayers out(adapter.layers.size());
  for (size_t l = 0; l < out.size(); ++l)
    for (size_t place = 0; place < 2; ++place) {
      if (!adapter.shape.has(place)) continue;
      const BottleneckAdapter::Part& p = adapter.layers[l][place];
      out[l][place] = {host(p.down), host(p.down_bias), host(p.up), host(p.up_bias)};
    }
  return out;
}

}  // namespace gantrain
