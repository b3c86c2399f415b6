// A door to the metrics for the outside witness: one JSON request a line in, one JSON answer a line out.
// Requests: {"metric": NAME, ...}; see witness_metrics.py for each one's fields.
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/metrics/accuracy.h"
#include "train/metrics/bleu.h"
#include "train/metrics/diversity.h"
#include "train/metrics/rouge.h"
#include "train/metrics/statistics.h"
#include "train/metrics/text.h"

namespace {

using nlohmann::json;
using namespace gantrain::metrics;
using Strings = std::vector<std::string>;

json bleu_answer(const Bleu& bleu, int order = 4) {
  const auto first = [&](const auto& values) {
    return json(std::vector(values.begin(), values.begin() + order));
  };
  return {{"score", bleu.score},
          {"bp", bleu.brevity_penalty},
          {"precisions", first(bleu.precisions)},
          {"matches", first(bleu.statistics.matches)},
          {"totals", first(bleu.statistics.totals)},
          {"lengths", {bleu.statistics.hypothesis_length, bleu.statistics.reference_length}}};
}

json answer(const json& request) {
  const std::string metric = request.at("metric");
  const auto strings = [&](const char* key) { return request.at(key).get<Strings>(); };
  const auto numbers = [&](const char* key) { return request.at(key).get<std::vector<double>>(); };
  if (metric == "tokenize_13a") return tokenize_13a(request.at("text").get<std::string>()).joined;
  if (metric == "tokenize_rouge") return tokenize_rouge(request.at("text").get<std::string>()).joined;
  if (metric == "corpus_bleu")
    return bleu_answer(
        corpus_bleu(strings("hypotheses"), request.at("references").get<std::vector<Strings>>()));
  if (metric == "sentence_bleu")
    return bleu_answer(sentence_bleu(request.at("hypothesis").get<std::string>(), strings("references")));
  if (metric == "self_bleu") return self_bleu(strings("texts"), request.at("n"));
  if (metric == "distinct") return distinct(strings("texts"), request.at("n"));
  if (metric == "rouge_l") {
    const Rouge rouge = rouge_l(request.at("hypothesis").get<std::string>(), strings("references"));
    return {rouge.precision, rouge.recall, rouge.f_measure};
  }
  if (metric == "summary") {
    const Summary s = summarize(numbers("values"));
    return {s.mean, s.minimum, s.lower_quartile, s.median, s.upper_quartile, s.maximum};
  }
  if (metric == "bootstrap") return bootstrap_standard_error(numbers("values"), request.at("resamples"));
  if (metric == "exact_match_rate")
    return exact_match_rate(strings("answers"), request.at("references").get<std::vector<Strings>>());
  if (metric == "label_accuracy")
    return label_accuracy(numbers("scores"), request.at("labels").get<std::vector<int64_t>>(),
                          request.at("label_count"));
  throw std::runtime_error("no metric '" + metric + "'");
}

}  // namespace

int main() {
  std::string line;
  for (int number = 1; std::getline(std::cin, line); ++number) {
    try {
      std::cout << answer(json::parse(line)).dump() << '\n';
    } catch (const std::exception& error) {
      std::cerr << "metrics_door: line " << number << ": " << error.what() << '\n';
      return 1;
    }
  }
}
