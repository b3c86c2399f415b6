// Pairs for the discriminator: a reference answer beside the model's own answer to the same input.
//
// The shortcuts a discriminator would take are closed here (docs/method.md): end tokens are removed from both
// sides, both sides are cut to the same number of tokens, the cut is before the shorter one's own ending, and
// the model's answer is read in canonical tokenisation, as references are.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "model/generate.h"
#include "model/tokenizer/tokenizer.h"
#include "train/play/prompts.h"

namespace gantrain {

// One sampled answer.
struct Rollout {
  size_t input = 0;             // index into the inputs of the call
  uint64_t key = 0;             // its draws: Philox(key)(t, ...)
  std::vector<int32_t> tokens;  // as sampled, end token included if it came
  bool ended = false;           // by an end token
  std::vector<int32_t> text;    // canonical tokens of the decoded answer, no end token
  bool canonical = false;       // text == tokens without the end token
};

// A run of inputs and the answers wanted for each: sample i of input begin + b draws by
// derive_key(key, first + b, i). Results do not depend on which groups are decoded together.
struct RolloutGroup {
  size_t begin = 0, end = 0;  // inputs [begin, end)
  int64_t samples = 1;
  uint64_t key = 0;
  size_t first = 0;  // not 0: these are the inputs from there on of a larger group
};
// The groups' answers, nothing cut, all decoded together; group after group, input after input. Training
// samples at temperature 1; 0 is greedy.
std::vector<Rollout> roll_out(Device& device, const Llama& llama, const Tokenizer& tokenizer,
                              const Prompts& prompts, ExampleSpan inputs, Placement placement,
                              std::span<const RolloutGroup> groups, int64_t max_new, bool gumbel,
                              double temperature = 1.0);

// The tokens a tokenizer gives for the text of `tokens` inside a longer text; nullopt if that text is not
// valid UTF-8.
std::optional<std::vector<int32_t>> canonical_tokens(const Tokenizer& tokenizer,
                                                     const std::vector<int32_t>& tokens);

// The same of each of `answers`, and the answer itself where its text is not valid UTF-8: what a
// discriminator is asked about.
std::vector<std::vector<int32_t>> canonical_answers(const Tokenizer& tokenizer,
                                                    std::span<const std::vector<int32_t>> answers);

// A pair as the discriminator reads it: the first `length` tokens of both answers to input `input`.
struct AnswerPair {
  size_t input = 0;
  size_t rollout = 0;               // index of the fake among the rollouts; replayed fakes: SIZE_MAX
  std::vector<int32_t> real, fake;  // equally long, at least one token
};

// Tokens of a reference without its end tokens.
std::vector<int32_t> strip_end(const std::vector<int32_t>& tokens, const std::vector<int32_t>& end_ids);

// Both sides cut to the same length: the shorter one's, less `ending` tokens of its ending where it has more
// than 2 * ending. Empty answers give no pair (nullopt): there is nothing to read.
std::optional<AnswerPair> make_pair(size_t input, size_t rollout, const std::vector<int32_t>& real,
                                    const std::vector<int32_t>& fake, size_t ending = 2);

// All answers of the pairs behind their inputs, unprompted, for the frozen model to read. Inputs stand once;
// so do equal answers to one input, unless `merge` is false (when each fake's own gradient is wanted). Inputs
// that `front` has (a span an input) are no rows of the batch.
struct PairBatch {
  PackedBatch batch;
  std::vector<std::vector<int32_t>> real, fake;  // pair -> rows of the batch, one a token
};
PairBatch pack_pairs(ExampleSpan inputs, const std::vector<AnswerPair>& pairs, bool merge,
                     const ContextCache::Front& front = {});

// Rows of pairs [begin, end) in the discriminator's order: real of each pair, then fake of each; offsets (2n
// + 1).
struct PairRows {
  std::vector<int32_t> rows, offsets;
};
PairRows rows_of_pairs(const PairBatch& batch, size_t begin, size_t end);

}  // namespace gantrain
