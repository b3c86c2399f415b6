// A judge: a discriminator that shares nothing with training. Its features are its own, token embeddings plus
// positions, so a generator that learned to please the training discriminator's frozen features gains nothing
// here (METHOD, section 6).
#pragma once

#include <memory>
#include <vector>

#include "train/networks/discriminator.h"

namespace gantrain {

class Judge {
 public:
  // vocabulary: tokens are 0 .. vocabulary - 1; positions beyond max_length share the last one.
  Judge(Device& device, const DiscriminatorConfig& config, int64_t vocabulary, int64_t max_length,
        uint64_t key);

  // tokens: packed answers (N); offsets (S + 1) from 0 to N, no answer empty. Returns D (S). Tokens out of
  // range are an Error.
  OwnedTensor forward(const std::vector<int32_t>& tokens, const std::vector<int32_t>& offsets);
  // dD (S), of the last forward. Accumulates all parameters' gradients.
  void backward(ConstTensor d_scores);

  void zero_grad();
  // One AdamW step over both sets; each is clipped on its own.
  void step(const AdamSettings& settings);
  int64_t count() const { return table_.count() + head_.parameters().count(); }
  ParameterSet& table() { return table_; }  // "embedding" (V, w) and "position" (max_length, w)
  Discriminator& head() { return head_; }

 private:
  Device& device_;
  int64_t max_length_;
  ParameterSet table_;
  Discriminator head_;
  OwnedTensor tokens_, positions_, features_;
};

}  // namespace gantrain
