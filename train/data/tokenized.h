// Examples to token ids: templates, the boundary between prompt and completion, limits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/tokenizer/tokenizer.h"
#include "train/config.h"
#include "train/data/example.h"
#include "train/data/report.h"

namespace gantrain {

struct TokenizedExample {
  std::vector<int32_t> prompt;          // with BOS and chat template, where there are any
  std::vector<int32_t> completion;      // with the end token, unless it was cut or data.append_eos is false
  std::vector<std::string> references;  // the completion's text first, then Example::references
  std::string prompt_text;              // as it stands in the file, for people; a chat's last turn
  int64_t line = 0;
};

// The ids of every example. The boundary: spaces at the end of a prompt are moved to the start of the
// completion ("Sentiment: " + "good" -> "Sentiment:" + " good"), because vocabularies glue a space to the
// word behind it; then the completion's ids are what follows the prompt's ids in the encoding of the whole
// text, so that no completion is spelled in a way the tokenizer never would. Where a token of the whole text
// spans the boundary, the two sides are encoded apart, and the item is counted as changed. Adds to `report`:
// kept, dropped, changed and token counts. max_positions: longest prompt and completion together; <= 0: no
// limit. Throws Error when the tokenizer lacks a token that the configuration asks for.
std::vector<TokenizedExample> tokenize_examples(const std::vector<Example>& examples,
                                                const Tokenizer& tokenizer, const DataConfig& config,
                                                int64_t max_positions, DataReport& report);

// The ids of a prompt that a person typed, as training would have them: BOS as configured; with a chat
// template the text is a user's turn.
std::vector<int32_t> tokenize_prompt(const std::string& text, const Tokenizer& tokenizer,
                                     const DataConfig& config);

}  // namespace gantrain
