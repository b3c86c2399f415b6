// Soft prompts for inputs, whatever makes them, and their place in a packed batch.
#pragma once

#include <map>
#include <memory>
#include <span>

#include "model/adapters/owned.h"
#include "model/context_cache.h"
#include "train/config.h"
#include "train/data/tokenized.h"

namespace gantrain {

using ExampleSpan = std::span<const TokenizedExample* const>;

// Prompts of some inputs: `count` rows each; input b's begin at row first[b] of `rows`. Inputs may share
// their rows.
struct Prompts {
  OwnedTensor rows;  // (R, C) f32; empty if count is 0
  std::vector<int64_t> first;
  int64_t count = 0;
  Adapters adapter;  // what the model reads and answers with, besides
  // With the prompt behind the inputs: where these are cached, and adapter.contexts is their view.
  ContextCache::Front contexts;
  ConstTensor view() const { return rows.view(); }
};

// Makes prompts without a gradient: for evaluation, generation and rollouts.
class PromptMaker {
 public:
  virtual ~PromptMaker() = default;
  virtual Prompts make(ExampleSpan inputs, uint64_t noise_key) = 0;
};

// The base model as it is.
class NoPrompt : public PromptMaker {
 public:
  Prompts make(ExampleSpan inputs, uint64_t noise_key) override;
};

// What a PEFT folder holds: one prompt for all inputs, or an adapter on the model.
class PeftPrompts : public PromptMaker {
 public:
  PeftPrompts(Device& device, const LlamaConfig& config, const PeftAdapter& adapter);
  Prompts make(ExampleSpan inputs, uint64_t noise_key) override;

 private:
  Device& device_;
  OwnedTensor prompt_;
  std::unique_ptr<OwnedAdapter> adapter_;
};

// Adds prompt and input of example b to the batch; returns the segment that an answer continues. Prefix
// placement: the prompt is a root segment (once for all inputs that share it), the input its child. Suffix:
// input, then prompt rows.
class ContextBuilder {
 public:
  ContextBuilder(PackedBatch& batch, const Prompts& prompts, Placement placement)
      : batch_(batch), prompts_(prompts), placement_(placement) {}
  int32_t add(size_t b, const TokenizedExample& example);

 private:
  PackedBatch& batch_;
  const Prompts& prompts_;
  Placement placement_;
  std::map<int64_t, int32_t> segments_;  // first prompt row -> segment
};

// The tokens of input and prompt as one generation request understands them; those that are cached are not
// among them.
struct RequestContext {
  int64_t prompt_first = 0, prompt_count = 0;
  KvSpan cached = {};
  std::vector<int32_t> tokens;
};
RequestContext request_context(const Prompts& prompts, size_t b, const TokenizedExample& example,
                               Placement placement);

}  // namespace gantrain
