// The data of a run as tokens.
#pragma once

#include "model/tokenizer/tokenizer.h"
#include "train/data/dataset.h"
#include "train/data/tokenized.h"

namespace gantrain {

struct TokenizedDataset {
  std::vector<TokenizedExample> train, valid, test;
  std::vector<TokenizedExample> valid_merged, test_merged;  // one an input, with all its references
  std::string report;  // what was read, kept, dropped and cut, for people
};
// Reads, splits and tokenises; `max_positions` bounds prompt, input and answer together.
TokenizedDataset open_dataset(const DataConfig& config, uint64_t seed, const Tokenizer& tokenizer,
                              int64_t max_positions);

std::vector<const TokenizedExample*> pointers(const std::vector<TokenizedExample>& items, int64_t most = 0);

}  // namespace gantrain
