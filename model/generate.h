// Generation with a KV cache: many sequences of different lengths at once, contexts shared where they are the
// same.
#pragma once

#include <functional>
#include <memory>

#include "model/llama_forward.h"

namespace gantrain {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;        // 1: all
  int32_t max_new = 64;
  std::vector<int32_t> stop;  // tokens that end a sequence; the stop token is part of the output
  bool gumbel = false;        // draw by Gumbel-max, so that training can recompute the noise (HeadLoss)
};

// One context and the answers wanted for it. The samples of answer i depend on keys[i] alone: draw t of it
// uses counter t.
struct GenerationRequest {
  int64_t prompt_first = 0;      // rows of the soft-prompt tensor that precede the context
  int64_t prompt_count = 0;      // 0: no prompt. Requests with the same rows share their computation
  std::vector<int32_t> context;  // vocabulary ids, or prompt_token(r) for prompts placed inside
  KvSpan cached = {};          // what stands before that, of CachedContexts' front rows; then no prompt does
  std::vector<uint64_t> keys;  // one an answer
};

enum class FinishReason { kStop, kLength };

struct GeneratedSequence {
  std::vector<int32_t> tokens;  // the stop token included
  std::vector<float> logp;      // log-probability of each token at temperature 1
  FinishReason finish = FinishReason::kLength;
};

inline constexpr int64_t kDecodedTogether = 128;

// Results in request order, answers in key order: request r's first answer has index sum of earlier key
// counts. max_parallel: how many answers decode at once; it bounds the cache and changes no result.
// on_token(sequence index, token) streams, may be empty.
std::vector<GeneratedSequence> generate(Device& device, const Llama& llama, ConstTensor prompt,
                                        std::span<const GenerationRequest> requests,
                                        const SamplingParams& params, int64_t max_parallel = kDecodedTogether,
                                        const std::function<void(int64_t, int32_t)>& on_token = {},
                                        const Adapters& adapters = {});

}  // namespace gantrain
