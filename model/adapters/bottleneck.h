// Bottleneck adapters as files and as an adapter with its own memory. No other program has this type: the
// folder is this program's own, in PEFT's form (adapter_config.json with peft_type BOTTLENECK,
// adapter_model.safetensors).
#pragma once

#include <string>
#include <vector>

#include "core/buffer.h"
#include "model/adapters/adapters.h"

namespace gantrain {

// "model.layers.3.after_mlp": what stands there has down.weight, down.bias, up.weight and up.bias.
std::string bottleneck_name(size_t layer, size_t place);

// One's tensors on the host.
struct BottleneckValues {
  std::vector<float> down, down_bias, up, up_bias;  // (R, C), (R), (C, R), (C)
};
using BottleneckLayers = std::vector<std::array<BottleneckValues, 2>>;

// Refuses (fail) what cannot be: a width below 1 or above 65536, no place.
void check_bottleneck(const BottleneckShape& shape, const std::string& where);

// With its own memory, and its gradients where they are wanted (set to zero).
class OwnedBottleneck {
 public:
  OwnedBottleneck(Device& device, const LlamaConfig& config, const BottleneckShape& shape,
                  const BottleneckLayers& values, bool gradients);
  OwnedBottleneck(const OwnedBottleneck&) = delete;
  OwnedBottleneck& operator=(const OwnedBottleneck&) = delete;
  const BottleneckAdapter& adapter() const { return adapter_; }

 private:
  BottleneckAdapter adapter_;
  std::vector<OwnedTensor> tensors_;
};

// An adapter's values back from the device.
BottleneckLayers values_of(Device& device, const BottleneckAdapter& adapter);

}  // namespace gantrain
