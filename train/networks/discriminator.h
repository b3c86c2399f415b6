// The discriminator D: frozen features of an answer's tokens -> a logit a token, and their mean
// (docs/method.md 2).
//
//   f = RMSNorm(h)  ->  linear to width w  ->  one causal block  ->  norm  ->  a logit a token  ->  mean over
//   the answer
//
// Causal: the logit at token t judges the answer up to t, so a cut answer's logits are a part of the whole
// one's.
#pragma once

#include <memory>

#include "train/config.h"
#include "train/networks/layers.h"

namespace gantrain {

// Frozen layers of a model of so many whose output D reads: discriminator.feature_layer, or by default a
// third of them, at least one. Usage Error where the model has fewer.
int feature_layers(const DiscriminatorConfig& config, int64_t model_layers);

class Discriminator {
 public:
  Discriminator(Device& device, const DiscriminatorConfig& config, int64_t feature_width, uint64_t key);

  ParameterSet& parameters() { return parameters_; }
  const ParameterSet& parameters() const { return parameters_; }

  // f = RMSNorm(h) without a gain: (N, C) -> (N, C). Noise for the penalty is added to f.
  static OwnedTensor normalise(Device& device, ConstTensor h);
  // offsets: (S + 1) row offsets of the answers. Returns D (S).
  OwnedTensor forward(ConstTensor f, const std::vector<int32_t>& offsets);
  // Logits of the last forward, a row a token: (N, 1).
  ConstTensor token_logits() const { return logits_.view(); }
  // dD: (S). Accumulates parameter gradients; df (N, C) += if wanted.
  void backward(ConstTensor f, ConstTensor d_scores, Tensor df);
  // Divides every matrix whose largest singular value is above 1 by it (power iteration until the estimate
  // settles; Miyato et al. 1802.05957). Called after an optimiser step when discriminator.spectral_norm is
  // set.
  void normalise_spectrum();

 private:
  Device& device_;
  DiscriminatorConfig config_;
  ParameterSet parameters_;
  std::unique_ptr<Linear> in_, logit_;
  std::unique_ptr<Block> block_;
  std::unique_ptr<Norm> norm_;
  AttentionPlan plan_;
  OwnedTensor offsets_, x_, normed_, logits_;
};

}  // namespace gantrain
