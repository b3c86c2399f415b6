// Low-rank adapters as the player that answers (docs/methods.md): the trained thing is on the model and not
// before it, so there is no prompt, and gradients come from the model's own backward.
#pragma once

#include "model/adapters/lora.h"
#include "model/config.h"
#include "train/networks/generator.h"

namespace gantrain {

class LoraGenerator : public Generator {
 public:
  // A as PEFT makes it (Kaiming-uniform with a = sqrt(5): uniform in +-1 / sqrt(I)), drawn from `key`; B
  // zero.
  LoraGenerator(Device& device, const LlamaConfig& model, const LoraShape& shape, uint64_t key,
                bool gradients);
  int64_t prompts(int64_t) const override { return 1; }
  OwnedTensor forward(const GeneratorInput&) override { return {}; }
  void backward(const GeneratorInput&, ConstTensor) override {}
  Adapters adapter() const override { return &adapter_; }
  int64_t deployed_parameters() const override { return parameters_.count(); }

 private:
  LoraAdapter adapter_;
};

// The linear layers that lora.targets names; "all" is every one.
LoraShape lora_shape(const LoraConfig& config);

}  // namespace gantrain
