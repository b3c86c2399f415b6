#include "train/play/prompts.h"

namespace gantrain {

Prompts NoPrompt::make(ExampleSpan inputs, uint64_t) {
  Prompts p;
  p.first.assign(inputs.size(), 0);
  return p;
}

RequestContext request_context(const Prompts& prompts, size_t b, const TokenizedExample& example,
                               Placement placement) {
  RequestContext r;
  r.tokens = example.prompt;
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
  return batch_.add(parent, r.tokens);
}

}  // namespace gantrain
