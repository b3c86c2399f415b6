// Right or wrong: exact match of answers, and classification by the likelihood of each label.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gantrain::metrics {

// Whether the answer equals one of the references after normalize_answer (text.h). No references: false.
bool exact_match(std::string_view answer, std::span<const std::string> references);

// The share of answers that match, 0 to 1; 0 for none. One list of references an answer (Error otherwise).
double exact_match_rate(std::span<const std::string> answers,
                        std::span<const std::vector<std::string>> references);

// The label of the highest score, the first of equals. `scores` (K) are the labels' log-likelihoods, K >= 1;
// NaN is an Error, for it compares with nothing.
size_t most_likely_label(std::span<const double> scores);

// The share of rows whose most likely label is the right one, 0 to 1; 0 for none.
// `scores` (N, K) row by row, `labels` (N) in 0..K-1 (Error otherwise).
double label_accuracy(std::span<const double> scores, std::span<const int64_t> labels, size_t label_count);

}  // namespace gantrain::metrics
