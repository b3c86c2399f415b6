// Data that the tests of whole runs train on.
#pragma once

#include <vector>

#include "tests/support/fill.h"
#include "train/data/tokenized.h"

namespace gantrain::testing {

// Inputs of three to six random letters; answers are words over a few letters, of other lengths than what a
// random model says.
inline std::vector<TokenizedExample> letters(int64_t count, uint64_t seed) {
  std::vector<TokenizedExample> out;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t own = 100 * seed + static_cast<uint64_t>(i);
    TokenizedExample e;
    e.prompt = test::random_ints(3 + i % 4, own, 10, 90);
    e.prompt.insert(e.prompt.begin(), 0);
    e.completion = test::random_ints(4 + i % 5, own + 50, 40, 44);
    e.completion.push_back(1);
    out.push_back(std::move(e));
  }
  return out;
}

}  // namespace gantrain::testing
