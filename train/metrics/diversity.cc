#include "train/metrics/diversity.h"

#include <string_view>
#include <unordered_set>
#include <vector>

#include "core/check.h"
#include "train/metrics/text.h"

namespace gantrain::metrics {

double distinct(std::span<const std::string> texts, int n) {
  GT_CHECK(n >= 1, "distinct-{}: expected at least 1", n);
  std::vector<Tokens> tokens;
  tokens.reserve(texts.size());
  std::unordered_set<std::string_view> seen;
  size_t all = 0;
  for (const std::string& text : texts) {
    const Tokens& cut = tokens.emplace_back(tokenize_13a(text));
    for (size_t i = 0; i + static_cast<size_t>(n) <= cut.size(); ++i, ++all)
      seen.insert(cut.ngram(i, static_cast<size_t>(n)));
  }
  return all == 0 ? 0 : static_cast<double>(seen.size()) / static_cast<double>(all);
}

Summary length_summary(std::span<const std::string> texts) {
  std::vector<double> lengths;
  for (const std::string& text : texts) lengths.push_back(static_cast<double>(tokenize_13a(text).size()));
  return summarize(lengths);
}

}  // namespace gantrain::metrics
