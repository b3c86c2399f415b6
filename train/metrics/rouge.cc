#include "train/metrics/rouge.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "train/metrics/text.h"

namespace gantrain::metrics {
namespace {

Rouge compare(const Tokens& hypothesis, const Tokens& reference) {
  if (hypothesis.size() == 0 || reference.size() == 0) return {};
  // longest[j]: longest common subsequence of the hypothesis so far and the first j tokens of the reference.
  std::vector<int64_t> longest(reference.size() + 1, 0);
  for (size_t i = 0; i < hypothesis.size(); ++i) {
    int64_t diagonal = 0;
    for (size_t j = 0; j < reference.size(); ++j) {
      const int64_t above = longest[j + 1];
      longest[j + 1] = hypothesis[i] == reference[j] ? diagonal + 1 : std::max(above, longest[j]);
      diagonal = above;
    }
  }
  const double common = static_cast<double>(longest.back());
  Rouge rouge;
  rouge.precision = common / static_cast<double>(hypothesis.size());
  rouge.recall = common / static_cast<double>(reference.size());
  if (common > 0) rouge.f_measure = 2 * rouge.precision * rouge.recall / (rouge.precision + rouge.recall);
  return rouge;
}

}  // namespace

Rouge rouge_l(std::string_view hypothesis, std::string_view reference) {
  return compare(tokenize_rouge(hypothesis), tokenize_rouge(reference));
}

Rouge rouge_l(std::string_view hypothesis, std::span<const std::string> references) {
  GT_CHECK(!references.empty(), "ROUGE-L needs at least one reference a hypothesis");
  const Tokens tokens = tokenize_rouge(hypothesis);
  Rouge best = compare(tokens, tokenize_rouge(references[0]));
  for (const std::string& reference : references.subspan(1)) {
    const Rouge rouge = compare(tokens, tokenize_rouge(reference));
    if (rouge.f_measure > best.f_measure) best = rouge;
  }
  return best;
}

}  // namespace gantrain::metrics
