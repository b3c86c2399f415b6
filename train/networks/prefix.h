// Trained keys and values in front of every layer's own (prefix tuning and P-tuning v2, docs/methods.md), as
// they are or as a table plus an MLP's output:  table = P0 + W2 tanh(W1 seeds + b1) + b2,  W2 and b2 starting
// at zero.
#pragma once

#include "model/config.h"
#include "train/networks/generator.h"

namespace gantrain {

class PrefixGenerator : public Generator {
 public:
  // start: the table's first values, (P, 2 L, K D), or empty: zeros.
  PrefixGenerator(Device& device, const LlamaConfig& model, const PrefixConfig& config,
                  std::vector<float> start, uint64_t key, bool gradients);
  int64_t prompts(int64_t) const override { return 1; }
  // No prompt: makes the table.
  OwnedTensor forward(const GeneratorInput&) override;
  // The table's gradient is where the model's backward left it; with a projection it goes on from there.
  void backward(const GeneratorInput&, ConstTensor) override;
  Adapters adapter() const override { return &adapter_; }
  int64_t deployed_parameters() const override { return parameters_.value(table_).count(); }

 private:
  size_t table_, seeds_ = 0;
  std::unique_ptr<Linear> up_, down_;  // null: no projection
  OwnedTensor hidden_x_, hidden_y_, sum_, dsum_;
  PrefixAdapter adapter_;
};

}  // namespace gantrain
