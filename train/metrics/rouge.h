// ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1).
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace gantrain::metrics {

// The parts of one comparison, 0 to 1.
struct Rouge {
  double precision = 0;
  double recall = 0;
  double f_measure = 0;
};

// With l = tokens of the longest common subsequence: precision = l / |hypothesis|, recall = l / |reference|,
// F = 2PR / (P + R); all 0 when either side has no token. As rouge_score's rougeL without stemming.
// O(|hypothesis| * |reference|) time, O(|reference|) memory.
Rouge rouge_l(std::string_view hypothesis, std::string_view reference);

// Against several references: the comparison of the highest F-measure, the first of equals (score_multi of
// the same package). At least one reference (Error otherwise).
Rouge rouge_l(std::string_view hypothesis, std::span<const std::string> references);

}  // namespace gantrain::metrics
