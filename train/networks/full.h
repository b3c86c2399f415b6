// All weights of the model as the player that answers (docs/methods.md): f32 copies of the base's, which
// stays as it is. Gradients come from the model's own backward.
#pragma once

#include "model/llama.h"
#include "train/networks/generator.h"

namespace gantrain {

class FullGenerator : public Generator {
 public:
  // Starts at the weights of `base` as its file has them.
  FullGenerator(Device& device, const Llama& base, bool gradients);
  int64_t prompts(int64_t) const override { return 1; }
  OwnedTensor forward(const GeneratorInput&) override { return {}; }
  void backward(const GeneratorInput&, ConstTensor) override {}
  Adapters adapter() const override { return &weights_; }
  int64_t deployed_parameters() const override { return parameters_.count(); }

 private:
  std::unique_ptr<const Llama> llama_;
  TrainedWeights weights_;
};

}  // namespace gantrain
