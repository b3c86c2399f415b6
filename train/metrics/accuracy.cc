#include "train/metrics/accuracy.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "train/metrics/text.h"

namespace gantrain::metrics {

bool exact_match(std::string_view answer, std::span<const std::string> references) {
  const std::string wanted = normalize_answer(answer);
  return std::any_of(references.begin(), references.end(),
                     [&](const std::string& reference) { return normalize_answer(reference) == wanted; });
}

double exact_match_rate(std::span<const std::string> answers,
                        std::span<const std::vector<std::string>> references) {
  GT_CHECK(answers.size() == references.size(), "{} answers, but references for {}", answers.size(),
           references.size());
  size_t right = 0;
  for (size_t i = 0; i < answers.size(); ++i) right += exact_match(answers[i], references[i]);
  return answers.empty() ? 0 : static_cast<double>(right) / static_cast<double>(answers.size());
}

size_t most_likely_label(std::span<const double> scores) {
  GT_CHECK(!scores.empty(), "no label to choose from");
  for (size_t i = 0; i < scores.size(); ++i)
    GT_CHECK(!std::isnan(scores[i]), "the score of label {} is not a number", i);
  return static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

double label_accuracy(std::span<const double> scores, std::span<const int64_t> labels, size_t label_count) {
  GT_CHECK(scores.size() == labels.size() * label_count, "{} scores for {} rows of {} labels", scores.size(),
           labels.size(), label_count);
  size_t right = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    GT_CHECK(labels[i] >= 0 && static_cast<size_t>(labels[i]) < label_count, "row {}: label {} of {}", i,
             labels[i], label_count);
    right +=
        most_likely_label(scores.subspan(i * label_count, label_count)) == static_cast<size_t>(labels[i]);
  }
  return labels.empty() ? 0 : static_cast<double>(right) / static_cast<double>(labels.size());
}

}  // namespace gantrain::metrics
