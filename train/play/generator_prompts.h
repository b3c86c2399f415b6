// Prompts made by a generator: features of the inputs from the frozen model, noise, one forward of the
// network.
#pragma once

#include "model/runner.h"
#include "train/networks/generator.h"
#include "train/play/prompts.h"

namespace gantrain {

class GeneratorPrompts : public PromptMaker {
 public:
  GeneratorPrompts(Runner& runner, Generator& generator, const GeneratorConfig& config)
      : runner_(runner), generator_(generator), feature_layer_(config.feature_layer) {}

  Prompts make(ExampleSpan inputs, uint64_t noise_key) override { return make(inputs, noise_key, {}); }
  // The noise of inputs[i] is that of place places[i] in a larger call; without places it is i.
  Prompts make(ExampleSpan inputs, uint64_t noise_key, std::span<const int64_t> places);
  // From dL/d(prompt rows of the last make()), (R, C), to the generator's parameter gradients.
  void backward(ConstTensor dprompt) { generator_.backward(input_, dprompt); }
  Generator& generator() { return generator_; }

 private:
  Runner& runner_;
  Generator& generator_;
  int64_t feature_layer_;
  GeneratorInput input_;
  OwnedTensor features_, noise_;
};

// The tokens that a hard prompt is made of: a text's, repeated or cut to `length`; or tokens drawn by `key`.
std::vector<int32_t> text_tokens(const std::vector<int32_t>& text, int64_t length);
std::vector<int32_t> vocabulary_tokens(const Llama& llama, int64_t length, uint64_t key);
// The keys and values of these tokens in every layer, at positions 0, 1, ...: (P, 2 L, K D) on the host, what
// a prefix starts from. In front of any text it then is what these tokens would be.
std::vector<float> keys_and_values(Device& device, const Llama& llama, const std::vector<int32_t>& ids);

}  // namespace gantrain
