#include "train/play/prompts.h"

namespace gantrain {

Prompts NoPrompt::make(ExampleSpan inputs, uint64_t) {
  Prompts p;
  p.first.assign(inputs.size(), 0);
  return p;
}

PeftPrompts::PeftPrompts(Device& device, const LlamaConfig& config, const PeftAdapter& adapter)
    : device_(device) {
  if (adapter.on_model()) {
    adapter_ = std::make_unique<OwnedAdapter>(device, config, adapter, false);
  } else {
    const int64_t c = config.hidden_size;
    prompt_ = OwnedTensor(device, DType::kF32, {static_cast<int64_t>(adapter.prompt.size()) / c, c});
    device.copy_in(prompt_, adapter.prompt.data());
  }
}

Prompts PeftPrompts::make(ExampleSpan inputs, uint64_t) {
  Prompts p;
  p.first.assign(inputs.size(), 0);
  if (adapter_) {
    p.adapter = adapter_->adapters();
  } else {
    p.count = prompt_.view().dim(0);
    p.rows = OwnedTensor(device_, DType::kF32, prompt_.view().shape());
    device_.copy(p.rows, prompt_);
  }
  return p;
}

RequestContext request_context(const Prompts& prompts, size_t b, const TokenizedExample& example,
                               Placement placement) {
  RequestContext r;
  if (!prompts.contexts.spans.empty()) r.cached = prompts.contexts.spans[b];
  if (r.cached.count == 0) r.tokens = example.prompt;
  if (placement == Placement::kPrefix) {
    r.prompt_first = prompts.first[b];
    r.prompt_count = prompts.count;
  } else {
    for (int64_t i = 0; i < prompts.count; ++i) r.tokens.push_back(prompt_token(prompts.first[b] + i));
  }
  return r;
}

int32_t ContextBuilder::add(size_t b, const TokenizedExample& example) {
  const RequestContext r = request_context(prompts_, b, example, placement_);
  int32_t parent = -1;
  if (r.prompt_count > 0) {
    const auto [it, inserted] = segments_.try_emplace(r.prompt_first, -1);
    if (inserted) it->second = batch_.add_prompt(r.prompt_first, r.prompt_count);
    parent = it->second;
  }
  if (r.cached.count > 0) parent = batch_.add_cached(r.cached);
  return batch_.add(parent, r.tokens);
}

}  // namespace gantrain
