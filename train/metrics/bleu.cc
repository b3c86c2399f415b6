#include "train/metrics/bleu.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <unordered_map>

#include "core/check.h"
#include "train/metrics/text.h"

namespace gantrain::metrics {
namespace {

using Counts = std::unordered_map<std::string_view, int64_t>;

void check_order(int order) {
  GT_CHECK(order >= 1 && order <= kMaxBleuOrder, "BLEU of order {}: expected 1 to {}", order, kMaxBleuOrder);
}

// How often each n-gram of one order occurs. The keys point into `tokens`.
Counts count_ngrams(const Tokens& tokens, size_t n) {
  Counts counts;
  for (size_t i = 0; i + n <= tokens.size(); ++i) ++counts[tokens.ngram(i, n)];
  return counts;
}

}  // namespace

BleuStatistics& BleuStatistics::operator+=(const BleuStatistics& other) {
  hypothesis_length += other.hypothesis_length;
  reference_length += other.reference_length;
  for (int n = 0; n < kMaxBleuOrder; ++n) {
    matches[n] += other.matches[n];
    totals[n] += other.totals[n];
  }
  return *this;
}

BleuStatistics bleu_statistics(std::string_view hypothesis, std::span<const std::string> references,
                               int order) {
  check_order(order);
  GT_CHECK(!references.empty(), "BLEU needs at least one reference a hypothesis");
  const Tokens tokens = tokenize_13a(hypothesis);
  std::vector<Tokens> reference_tokens;
  reference_tokens.reserve(references.size());
  for (const std::string& reference : references) reference_tokens.push_back(tokenize_13a(reference));

  BleuStatistics statistics;
  statistics.hypothesis_length = static_cast<int64_t>(tokens.size());
  int64_t closest = -1;
  for (const Tokens& reference : reference_tokens) {
    const int64_t length = static_cast<int64_t>(reference.size());
    const int64_t distance = std::abs(length - statistics.hypothesis_length);
    if (closest < 0 || distance < closest || (distance == closest && length < statistics.reference_length)) {
      closest = distance;
      statistics.reference_length = length;
    }
  }
  for (int n = 1; n <= order; ++n) {
    Counts most;  // the most often any one reference holds an n-gram
    for (const Tokens& reference : reference_tokens)
      for (const auto& [ngram, count] : count_ngrams(reference, n)) {
        int64_t& best = most[ngram];
        best = std::max(best, count);
      }
    for (const auto& [ngram, count] : count_ngrams(tokens, n)) {
      statistics.totals[n - 1] += count;
      if (const auto found = most.find(ngram); found != most.end())
        statistics.matches[n - 1] += std::min(count, found->second);
    }
  }
  return statistics;
}

Bleu bleu_score(const BleuStatistics& statistics, int order, bool effective_order) {
  check_order(order);
  Bleu bleu;
  bleu.statistics = statistics;
  const double length = static_cast<double>(statistics.hypothesis_length);
  const double wanted = static_cast<double>(statistics.reference_length);
  if (length < wanted) bleu.brevity_penalty = length > 0 ? std::exp(1 - wanted / length) : 0;
  if (std::all_of(statistics.matches.begin(), statistics.matches.begin() + order,
                  [](int64_t count) { return count == 0; }))
    return bleu;

  int orders = order;
  double halvings = 1;
  for (int n = 0; n < order && statistics.totals[n] > 0; ++n) {
    if (effective_order) orders = n + 1;
    const double total = static_cast<double>(statistics.totals[n]);
    if (statistics.matches[n] == 0) halvings *= 2;
    bleu.precisions[n] = statistics.matches[n] == 0
                             ? 100 / (halvings * total)
                             : 100 * static_cast<double>(statistics.matches[n]) / total;
  }
  double logs = 0;
  for (int n = 0; n < orders; ++n) {
    if (bleu.precisions[n] == 0) return bleu;  // an order with no n-gram at all: the geometric mean is zero
    logs += std::log(bleu.precisions[n]);
  }
  bleu.score = bleu.brevity_penalty * std::exp(logs / orders);
  return bleu;
}

Bleu corpus_bleu(std::span<const std::string> hypotheses,
                 std::span<const std::vector<std::string>> references) {
  GT_CHECK(hypotheses.size() == references.size(), "{} hypotheses, but references for {}", hypotheses.size(),
           references.size());
  BleuStatistics sum;
  for (size_t i = 0; i < hypotheses.size(); ++i) sum += bleu_statistics(hypotheses[i], references[i]);
  return bleu_score(sum);
}

Bleu sentence_bleu(std::string_view hypothesis, std::span<const std::string> references) {
  return bleu_score(bleu_statistics(hypothesis, references), 4, true);
}

double self_bleu(std::span<const std::string> texts, int n) {
  check_order(n);
  if (texts.size() < 2) return 0;
  std::vector<Tokens> tokens;
  tokens.reserve(texts.size());
  for (const std::string& text : texts) tokens.push_back(tokenize_13a(text));

  // All other texts are the references of each, so one pass is enough: of every n-gram keep the highest
  // count, who has it, and the highest count of anyone else.
  struct Highest {
    int64_t count = 0, other = 0;
    size_t owner = 0;
  };
  std::vector<BleuStatistics> statistics(texts.size());
  for (int order = 1; order <= n; ++order) {
    std::unordered_map<std::string_view, Highest> highest;
    std::vector<Counts> counts;
    counts.reserve(texts.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      counts.push_back(count_ngrams(tokens[i], order));
      for (const auto& [ngram, count] : counts.back()) {
        Highest& top = highest[ngram];
        if (count > top.count) {
          top = {.count = count, .other = top.count, .owner = i};
        } else {
          top.other = std::max(top.other, count);
        }
      }
    }
    for (size_t i = 0; i < tokens.size(); ++i)
      for (const auto& [ngram, count] : counts[i]) {
        const Highest& top = highest[ngram];
        statistics[i].totals[order - 1] += count;
        statistics[i].matches[order - 1] += std::min(count, top.owner == i ? top.other : top.count);
      }
  }

  // The closest length among the others: this text's neighbours in the sorted lengths.
  std::vector<int64_t> lengths;
  for (const Tokens& text : tokens) lengths.push_back(static_cast<int64_t>(text.size()));
  std::vector<int64_t> sorted = lengths;
  std::sort(sorted.begin(), sorted.end());
  double sum = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto at = std::lower_bound(sorted.begin(), sorted.end(), lengths[i]);  // this text or one as long
    const bool has_shorter = at != sorted.begin(), has_longer = at + 1 != sorted.end();
    int64_t closest = has_shorter ? *(at - 1) : *(at + 1);
    if (has_longer && *(at + 1) - lengths[i] < std::abs(closest - lengths[i])) closest = *(at + 1);
    statistics[i].hypothesis_length = lengths[i];
    statistics[i].reference_length = closest;
    sum += bleu_score(statistics[i], n, true).score;
  }
  return sum / static_cast<double>(texts.size());
}

}  // namespace gantrain::metrics
