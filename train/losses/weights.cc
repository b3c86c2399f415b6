#include "train/losses/weights.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace gantrain {
namespace {

int64_t groups_of(const char* what, size_t count, int64_t samples) {
  GT_CHECK(samples >= 2, "{}: a baseline from the other samples needs at least 2 of them, got {}", what,
           samples);
  GT_CHECK(count > 0 && static_cast<int64_t>(count) % samples == 0, "{}: {} rewards are not groups of {}",
           what, count, samples);
  return static_cast<int64_t>(count) / samples;
}

int64_t total_length(const char* what, std::span<const int32_t> lengths, int64_t max_length) {
  int64_t total = 0;
  for (int32_t n : lengths) {
    GT_CHECK(n >= 1 && n <= max_length, "{}: a sample of {} tokens, expected 1 to {}", what, n, max_length);
    total += n;
  }
  return total;
}

}  // namespace

std::vector<float> leave_one_out_advantages(std::span<const float> rewards, int64_t samples) {
  const int64_t groups = groups_of("leave_one_out_advantages", rewards.size(), samples);
  std::vector<float> out(rewards.size());
  for (int64_t b = 0; b < groups; ++b) {
    const auto group = rewards.subspan(static_cast<size_t>(b * samples), static_cast<size_t>(samples));
    double sum = 0.0;
    for (float r : group) sum += static_cast<double>(r);
    for (size_t i = 0; i < group.size(); ++i) {
      const double r = static_cast<double>(group[i]);
      out[static_cast<size_t>(b * samples) + i] =
          static_cast<float>(r - (sum - r) / static_cast<double>(samples - 1));
    }
  }
  return out;
}

std::vector<float> softmax_advantages(std::span<const float> rewards, int64_t samples, double temperature) {
  const int64_t groups = groups_of("softmax_advantages", rewards.size(), samples);
  GT_CHECK(temperature > 0.0, "softmax_advantages: temperature {} must be above 0", temperature);
  std::vector<float> out(rewards.size());
  std::vector<double> e(static_cast<size_t>(samples));
  for (int64_t b = 0; b < groups; ++b) {
    const auto group = rewards.subspan(static_cast<size_t>(b * samples), static_cast<size_t>(samples));
    const double top = static_cast<double>(*std::max_element(group.begin(), group.end()));
    double sum = 0.0;
    for (size_t i = 0; i < group.size(); ++i)
      sum += e[i] = std::exp((static_cast<double>(group[i]) - top) / temperature);
    for (size_t i = 0; i < group.size(); ++i)
      out[static_cast<size_t>(b * samples) + i] =
          static_cast<float>(static_cast<double>(samples) * e[i] / sum - 1.0);
  }
  return out;
}

std::vector<float> rloo_weights(std::span<const float> advantages, std::span<const int32_t> lengths,
                                int64_t samples, int64_t max_length) {
  groups_of("rloo_weights", advantages.size(), samples);
  GT_CHECK(lengths.size() == advantages.size(), "rloo_weights: {} lengths for {} samples", lengths.size(),
           advantages.size());
  std::vector<float> out;
  out.reserve(static_cast<size_t>(total_length("rloo_weights", lengths, max_length)));
  // advantages.size() = B N
  const double share = 1.0 / (static_cast<double>(advantages.size()) * static_cast<double>(max_length));
  for (size_t i = 0; i < advantages.size(); ++i)
    out.insert(out.end(), static_cast<size_t>(lengths[i]),
               static_cast<float>(static_cast<double>(advantages[i]) * share));
  return out;
}

std::vector<float> token_rloo_weights(std::span<const float> token_logits, std::span<const int32_t> lengths,
                                      int64_t samples, int64_t max_length) {
  const int64_t groups = groups_of("token_rloo_weights", lengths.size(), samples);
  const int64_t total = total_length("token_rloo_weights", lengths, max_length);
  GT_CHECK(static_cast<int64_t>(token_logits.size()) == total, "token_rloo_weights: {} logits for {} tokens",
           token_logits.size(), total);
  const double share = 1.0 / (static_cast<double>(lengths.size()) * static_cast<double>(max_length));
  std::vector<float> out(token_logits.size());
  size_t begin = 0;
  std::vector<std::vector<double>> to_go(static_cast<size_t>(samples));
  for (int64_t b = 0; b < groups; ++b) {
    size_t longest = 0, at = begin;
    for (size_t i = 0; i < to_go.size(); ++i) {
      const size_t n = static_cast<size_t>(lengths[static_cast<size_t>(b * samples) + i]);
      to_go[i].assign(n, 0.0);
      double sum = 0.0;
      for (size_t t = n; t-- > 0;) {
        sum += static_cast<double>(token_logits[at + t]);
        to_go[i][t] = sum / static_cast<double>(n);
      }
      longest = std::max(longest, n);
      at += n;
    }
    std::vector<double> column(longest, 0.0);
    for (const auto& g : to_go)
      for (size_t t = 0; t < g.size(); ++t) column[t] += g[t];
    for (const auto& g : to_go) {
      for (size_t t = 0; t < g.size(); ++t)
        out[begin + t] =
            static_cast<float>((g[t] - (column[t] - g[t]) / static_cast<double>(samples - 1)) * share);
      begin += g.size();
    }
  }
  return out;
}

std::vector<float> logits_of_samples(std::span<const float> logits, std::span<const int32_t> text,
                                     std::span<const int32_t> sampled, size_t length) {
  GT_CHECK(!logits.empty() && logits.size() <= text.size() && length > 0 && length <= sampled.size(),
           "logits_of_samples: {} logits of {} tokens for {} of {} sampled ones", logits.size(), text.size(),
           length, sampled.size());
  const size_t shorter = std::min(text.size(), sampled.size());
  size_t front = 0, back = 0;
  while (front < shorter && text[front] == sampled[front]) ++front;
  while (front + back < shorter && text[text.size() - 1 - back] == sampled[sampled.size() - 1 - back]) ++back;
  const size_t between_end = sampled.size() - back;  // of the sampled tokens
  std::vector<double> sums(length, 0.0);
  for (size_t s = 0; s < logits.size(); ++s) {
    size_t t = s;
    if (s >= text.size() - back)
      t = s + sampled.size() - text.size();
    else if (s >= front)
      t = between_end > 0 ? between_end - 1 : 0;
    sums[std::min(t, length - 1)] += static_cast<double>(logits[s]);
  }
  std::vector<float> out;
  for (const double sum : sums)
    out.push_back(static_cast<float>(sum * static_cast<double>(length) / static_cast<double>(logits.size())));
  return out;
}

ContrastiveWeights contrastive_weights(std::span<const double> logp_reference,
                                       std::span<const double> logp0_reference,
                                       std::span<const double> logp_sampled,
                                       std::span<const double> logp0_sampled, double beta) {
  const size_t pairs = logp_reference.size();
  GT_CHECK(pairs > 0 && logp0_reference.size() == pairs && logp_sampled.size() == pairs &&
               logp0_sampled.size() == pairs,
           "contrastive_weights: {}, {}, {} and {} log-probabilities, expected equal counts above 0", pairs,
           logp0_reference.size(), logp_sampled.size(), logp0_sampled.size());
  GT_CHECK(beta > 0.0, "contrastive_weights: beta {} must be above 0", beta);
  ContrastiveWeights out;
  const double share = 1.0 / static_cast<double>(pairs);
  for (size_t i = 0; i < pairs; ++i) {
    const double margin = (logp_reference[i] - logp0_reference[i]) - (logp_sampled[i] - logp0_sampled[i]);
    const double x = -beta * margin, e = std::exp(-std::abs(x));
    out.loss += share * ((x > 0.0 ? x : 0.0) + std::log1p(e));
    out.accuracy += margin > 0.0 ? share : 0.0;
    const double slope = beta * (x >= 0.0 ? 1.0 : e) / (1.0 + e) * share;
    out.reference.push_back(static_cast<float>(slope));
    out.sampled.push_back(static_cast<float>(-slope));
  }
  return out;
}

double pair_accuracy(std::span<const float> reference_scores, std::span<const float> fake_scores) {
  GT_CHECK(!reference_scores.empty() && reference_scores.size() == fake_scores.size(),
           "pair_accuracy: {} and {} scores, expected equal counts above 0", reference_scores.size(),
           fake_scores.size());
  double right = 0.0;
  for (size_t i = 0; i < reference_scores.size(); ++i)
    right += reference_scores[i] > fake_scores[i] ? 1.0 : reference_scores[i] == fake_scores[i] ? 0.5 : 0.0;
  return right / static_cast<double>(reference_scores.size());
}

}  // namespace gantrain
