// Bottleneck adapters as the player that answers (docs/methods.md): gradients come from the model's own
// backward.
#pragma once

#include "model/config.h"
#include "train/networks/generator.h"

namespace gantrain {

class BottleneckGenerator : public Generator {
 public:
  // The way down uniform in +-1 / sqrt(C), drawn from `key`; the way up and both biases zero.
  BottleneckGenerator(Device& device, const LlamaConfig& model, const BottleneckShape& shape, uint64_t key,
                      bool gradients);
  int64_t prompts(int64_t) const override { return 1; }
  OwnedTensor forward(const GeneratorInput&) override { return {}; }
  void backward(const GeneratorInput&, ConstTensor) override {}
  Adapters adapter() const override { return &adapter_; }
  int64_t deployed_parameters() const override { return parameters_.count(); }

 private:
  BottleneckAdapter adapter_;
};

BottleneckShape bottleneck_shape(const BottleneckConfig& config);

}  // namespace gantrain
