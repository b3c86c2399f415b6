// BLEU (Papineni et al. 2002) with sacrebleu's defaults (Post 2018, 1804.08771), and self-BLEU.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gantrain::metrics {

inline constexpr int kMaxBleuOrder = 5;

// What BLEU needs of one segment, and by addition of a corpus. Index n-1 is for n-grams.
struct BleuStatistics {
  int64_t hypothesis_length = 0;  // tokens
  int64_t reference_length =
      0;  // tokens of the reference closest in length, the shorter of two equally close
  std::array<int64_t, kMaxBleuOrder>
      matches{};  // n-grams found in a reference, at most as often as in any one
  std::array<int64_t, kMaxBleuOrder> totals{};  // n-grams of the hypothesis

  BleuStatistics& operator+=(const BleuStatistics& other);
  bool operator==(const BleuStatistics&) const = default;
};

// A BLEU score and its parts; scores and precisions are percentages, 0 to 100.
struct Bleu {
  double score = 0;
  double brevity_penalty = 1;
  std::array<double, kMaxBleuOrder> precisions{};
  BleuStatistics statistics;
};

// Statistics of one hypothesis against its references (at least one; Error otherwise), tokens of `13a`, case
// kept, orders 1 to `order` (at most kMaxBleuOrder).
BleuStatistics bleu_statistics(std::string_view hypothesis, std::span<const std::string> references,
                               int order = 4);

// BLEU = 100 * BP * exp(mean over n of log p_n), BP = min(1, exp(1 - r/c)), p_n = matches_n / totals_n; the
// k-th order without a match counts as p_n = 1 / (2^k totals_n) (`exp` smoothing of mteval-v13a). Nothing
// matched: 0. effective_order: the mean stops before the first order of which the hypothesis has no n-gram.
Bleu bleu_score(const BleuStatistics& statistics, int order = 4, bool effective_order = false);

// Corpus BLEU: sacrebleu.corpus_bleu(hypotheses, references) with its defaults. One list of references a
// hypothesis, their numbers may differ; sizes must agree (Error). An empty corpus scores 0.
Bleu corpus_bleu(std::span<const std::string> hypotheses,
                 std::span<const std::vector<std::string>> references);

// Sentence BLEU: sacrebleu.sentence_bleu(hypothesis, references), that is with effective order.
Bleu sentence_bleu(std::string_view hypothesis, std::span<const std::string> references);

// Self-BLEU-n (Zhu et al. 2018, 1802.01886): the mean over all texts of the sentence BLEU up to n-grams (n
// = 2..5, effective order, exp smoothing) of each against all the others as references; 0 to 100, high means
// the texts repeat each other. Fewer than two texts: 0. Linear in the texts' total length.
double self_bleu(std::span<const std::string> texts, int n);

}  // namespace gantrain::metrics
