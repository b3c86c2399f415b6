// What memory a training run takes on its device, before it starts.
#pragma once

#include <string>
#include <vector>

#include "model/llama.h"
#include "train/config.h"
#include "train/data/tokenized.h"

namespace gantrain {

// Bytes, for the longest inputs of the run. A device that reserves memory (core/device.h) reserves all but
// the weights at once.
struct MemoryPlan {
  int64_t weights = 0;  // of the frozen model
  int64_t workspace =
      0;              // activations and scratch of the largest batch, the generator's or the discriminator's
  int64_t cache = 0;  // keys and values of the rollouts
  int64_t rollouts = 0;  // the rest of the rollouts: their activations, logits
  int64_t players = 0;   // parameters, gradients and moments of both, and the averaged and the warm generator
  int64_t networks = 0;  // what the players' forward and backward keep, the features they read
  int64_t total() const { return weights + reserved(); }
  int64_t reserved() const { return workspace + cache + rollouts + players + networks; }
  std::string text() const;  // one line
};
MemoryPlan plan_memory(Device& device, const Llama& llama, const TrainConfig& config,
                       const std::vector<TokenizedExample>& train,
                       const std::vector<TokenizedExample>& valid);

}  // namespace gantrain
