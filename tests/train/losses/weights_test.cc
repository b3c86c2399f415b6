#include "train/losses/weights.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "tests/reference/scalar.h"
#include "tests/support/compare.h"
#include "tests/support/complex_step.h"
#include "tests/support/fill.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;

TEST(Advantages, LeaveOneOutByHand) {
  const std::vector<float> rewards = {1.0f, 2.0f, 6.0f, -1.0f, -1.0f, -1.0f};
  EXPECT_TRUE(within("A", leave_one_out_advantages(rewards, 3), V{1 - 4.0, 2 - 3.5, 6 - 1.5, 0, 0, 0}, 1e-6));
  EXPECT_THROW(leave_one_out_advantages(rewards, 1), Error);
  EXPECT_THROW(leave_one_out_advantages(rewards, 4), Error);
}

TEST(Advantages, SoftmaxByHandAndForHugeRewards) {
  const std::vector<float> rewards = {0.0f, std::log(3.0f)};
  EXPECT_TRUE(within("A", softmax_advantages(rewards, 2, 1.0), V{2 * 0.25 - 1, 2 * 0.75 - 1}, 1e-6));
  // sqrt(3) : 1 at twice the temperature
  const double q = 1.0 / (1.0 + std::sqrt(3.0));
  EXPECT_TRUE(within("A", softmax_advantages(rewards, 2, 2.0), V{2 * q - 1, 2 * (1 - q) - 1}, 1e-6));
  EXPECT_TRUE(within("A", softmax_advantages(std::vector<float>{1e6f, -1e6f}, 2, 1.0), V{1, -1}, 1e-6));
  EXPECT_THROW(softmax_advantages(rewards, 2, 0.0), Error);
}

TEST(RlooWeights, OneATokenInOrderOfTheSamples) {
  const auto w = rloo_weights(std::vector<float>{1.0f, -1.0f}, std::vector<int32_t>{3, 1}, 2, 4);
  EXPECT_TRUE(within("w", w, V{0.125, 0.125, 0.125, -0.125}, 1e-7));
  EXPECT_THROW(rloo_weights(std::vector<float>{1.0f, -1.0f}, std::vector<int32_t>{5, 1}, 2, 4), Error);
  EXPECT_THROW(rloo_weights(std::vector<float>{1.0f, -1.0f}, std::vector<int32_t>{0, 1}, 2, 4), Error);
  EXPECT_THROW(rloo_weights(std::vector<float>{1.0f, -1.0f}, std::vector<int32_t>{1}, 2, 4), Error);
}

TEST(TokenRlooWeights, CreditsWhatIsStillToCome) {
  // G of sample 0: (1+2+3)/3, 5/3, 1;  of sample 1: 4, ended after its first token.
  const auto w =
      token_rloo_weights(std::vector<float>{1.0f, 2.0f, 3.0f, 4.0f}, std::vector<int32_t>{3, 1}, 2, 5);
  const double share = 1.0 / (2 * 5);
  EXPECT_TRUE(
      within("w", w, V{(2.0 - 4.0) * share, 5.0 / 3.0 * share, 1.0 * share, (4.0 - 2.0) * share}, 1e-7));
  EXPECT_THROW(token_rloo_weights(std::vector<float>{1.0f}, std::vector<int32_t>{3, 1}, 2, 5), Error);
}

TEST(LogitsOfSamples, EveryLogitIsAtOrBehindTheTokensThatItDependsOn) {
  const std::vector<float> logits = {1.0f, 2.0f, 4.0f, 8.0f, 16.0f};
  const auto of = [&](std::vector<int32_t> text, std::vector<int32_t> sampled, size_t read, size_t length) {
    return logits_of_samples(std::span(logits).first(read), text, sampled, length);
  };
  // One writing: each token its own; what D did not read is not there.
  EXPECT_TRUE(within("same", of({1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}, 5, 5), V{1, 2, 4, 8, 16}, 1e-6));
  EXPECT_TRUE(within("cut", of({1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}, 3, 3), V{1, 2, 4}, 1e-6));
  // 2 was sampled as 7 8: its logit is at 8, what follows one token later; six values, the same mean.
  EXPECT_TRUE(within("longer", of({1, 2, 3, 4, 5}, {1, 7, 8, 3, 4, 5}, 5, 6),
                     V{1 * 1.2, 0, 2 * 1.2, 4 * 1.2, 8 * 1.2, 16 * 1.2}, 1e-5));
  // 2 3 was sampled as 9.
  EXPECT_TRUE(within("shorter", of({1, 2, 3, 4, 5}, {1, 9, 4, 5}, 5, 4),
                     V{0.8 * 1, 0.8 * 6, 0.8 * 8, 0.8 * 16}, 1e-5));
  // Nothing agrees: all at the last one. Behind `length`: at its last one.
  EXPECT_TRUE(within("apart", of({1, 2, 3}, {7, 8}, 3, 2), V{0, 7 * 2.0 / 3}, 1e-5));
  EXPECT_TRUE(within("short", of({1, 2, 3, 4, 5}, {1, 7, 8, 3, 4, 5}, 5, 2), V{0.4, 0.4 * 30}, 1e-5));
  // Two writings of one text where all of the shorter one agrees: its last token bears what is left over.
  EXPECT_TRUE(within("all", of({1, 1, 1}, {1, 1}, 3, 2), V{2.0 / 3, 2.0 / 3 * 6}, 1e-5));
  EXPECT_THROW(of({1, 2}, {1, 2}, 3, 2), Error);
  EXPECT_THROW(of({1, 2}, {1, 2}, 2, 3), Error);
}

// A softmax model over V = 5 words and T = 3 positions whose logits depend on the word before: theta (V + 1,
// V), row 0 for the start.
constexpr size_t kWords = 5, kLength = 3;
V probabilities(const V& theta, size_t row) {
  V p(kWords);
  double sum = 0.0;
  for (size_t j = 0; j < kWords; ++j) sum += p[j] = std::exp(theta[row * kWords + j]);
  for (double& x : p) x /= sum;
  return p;
}
using Sentence = std::array<size_t, kLength>;
// The reward of a sentence is the mean of three per-token logits, the t-th a function of words 0..t alone
// (causal).
double token_reward(const Sentence& y, size_t t) {
  double x = 0.3 * static_cast<double>(t);
  for (size_t s = 0; s <= t; ++s)
    x += static_cast<double>((y[s] * 7 + s * 3 + 1) % 5) * (s == t ? 0.9 : -0.4);
  return x;
}
double reward(const Sentence& y) {
  return (token_reward(y, 0) + token_reward(y, 1) + token_reward(y, 2)) / 3.0;
}

// Gradient of -E[reward] / T by enumeration of all 125 sentences.
V exact_gradient(const V& theta) {
  V g(theta.size(), 0.0);
  for (size_t a = 0; a < kWords; ++a)
    for (size_t b = 0; b < kWords; ++b)
      for (size_t c = 0; c < kWords; ++c) {
        const Sentence y = {a, b, c};
        double p = 1.0;
        for (size_t t = 0; t < kLength; ++t) p *= probabilities(theta, t == 0 ? 0 : y[t - 1] + 1)[y[t]];
        for (size_t t = 0; t < kLength; ++t) {
          const size_t row = t == 0 ? 0 : y[t - 1] + 1;
          const V q = probabilities(theta, row);
          for (size_t j = 0; j < kWords; ++j)
            g[row * kWords + j] -= p * reward(y) * ((j == y[t] ? 1.0 : 0.0) - q[j]) / kLength;
        }
      }
  return g;
}

// The estimate of C1, seeded as the engine seeds it (weight * (p - onehot)), averaged over many groups of N.
// Every coordinate must lie within five standard errors of the enumeration.
void expect_unbiased(bool per_token) {
  const V theta = to_double(random_normal(static_cast<int64_t>((kWords + 1) * kWords), 11, 0.7f));
  const V exact = exact_gradient(theta);
  constexpr int64_t kSamples = 4, kGroups = 400000;
  V sum(theta.size(), 0.0), square(theta.size(), 0.0);
  std::vector<V> table;
  for (size_t r = 0; r <= kWords; ++r) table.push_back(probabilities(theta, r));
  for (int64_t group = 0; group < kGroups; ++group) {
    std::vector<float> rewards, token_rewards;
    std::vector<Sentence> sentences;
    for (int64_t i = 0; i < kSamples; ++i) {
      Sentence y{};
      const auto words = Philox{77}(static_cast<uint64_t>(group), static_cast<uint64_t>(i));
      for (size_t t = 0; t < kLength; ++t) {
        double u = static_cast<double>(words[t]) * 0x1p-32;
        const V& p = table[t == 0 ? 0 : y[t - 1] + 1];
        size_t j = 0;
        while (j + 1 < kWords && u >= p[j]) u -= p[j++];
        y[t] = j;
      }
      sentences.push_back(y);
      rewards.push_back(static_cast<float>(reward(y)));
      for (size_t t = 0; t < kLength; ++t) token_rewards.push_back(static_cast<float>(token_reward(y, t)));
    }
    const std::vector<int32_t> lengths(kSamples, static_cast<int32_t>(kLength));
    const auto weights =
        per_token ? token_rloo_weights(token_rewards, lengths, kSamples, kLength)
                  : rloo_weights(leave_one_out_advantages(rewards, kSamples), lengths, kSamples, kLength);
    V g(theta.size(), 0.0);
    for (size_t i = 0; i < sentences.size(); ++i)
      for (size_t t = 0; t < kLength; ++t) {
        const size_t row = t == 0 ? 0 : sentences[i][t - 1] + 1;
        for (size_t j = 0; j < kWords; ++j)
          g[row * kWords + j] += static_cast<double>(weights[i * kLength + t]) *
                                 (table[row][j] - (j == sentences[i][t] ? 1.0 : 0.0));
      }
    for (size_t k = 0; k < g.size(); ++k) sum[k] += g[k], square[k] += g[k] * g[k];
  }
  V mean(theta.size()), limits(theta.size());
  double largest = 0.0;
  for (size_t k = 0; k < mean.size(); ++k) {
    mean[k] = sum[k] / kGroups;
    limits[k] = 5.0 * std::sqrt((square[k] / kGroups - mean[k] * mean[k]) / kGroups);
    largest = std::max(largest, std::abs(exact[k]) / limits[k]);
  }
  EXPECT_TRUE(within("C1 gradient", mean, exact, limits));
  EXPECT_GT(largest, 20.0) << "too few samples to tell the gradient from zero";
}

TEST(RlooWeights, AveragedGradientApproachesTheEnumeration) { expect_unbiased(false); }
TEST(TokenRlooWeights, AveragedGradientApproachesTheEnumeration) { expect_unbiased(true); }

TEST(ContrastiveWeights, AreTheGradientInEachLogProbability) {
  const double beta = 0.1;
  const size_t pairs = 5;
  auto y = to_double(random_normal(5, 1, 20.0f)), yhat = to_double(random_normal(5, 3, 20.0f));
  const auto y0 = to_double(random_normal(5, 2, 20.0f)), yhat0 = to_double(random_normal(5, 4, 20.0f));
  y[0] += 1e4;  // saturated both ways
  yhat[1] += 1e4;
  const auto got = contrastive_weights(y, y0, yhat, yhat0, beta);
  using VC = std::vector<Complex>;
  const auto loss = [&](const auto& a, const auto& b) {
    auto sum = a[0] * 0.0;
    for (size_t i = 0; i < pairs; ++i)
      sum += reference::softplus(-beta * ((a[i] - y0[i]) - (b[i] - yhat0[i])));
    return sum / static_cast<double>(pairs);
  };
  EXPECT_NEAR(got.loss, loss(y, yhat), 1e-12 * (1.0 + got.loss));
  // A token's weight w seeds w (p - onehot) = -w d logp / d logits, so w = - dL/dlogp.
  V dy = complex_step_gradient(y, [&](const VC& v) { return loss(v, to_complex(yhat)); });
  V dyhat = complex_step_gradient(yhat, [&](const VC& v) { return loss(to_complex(y), v); });
  for (double& g : dy) g = -g;
  for (double& g : dyhat) g = -g;
  EXPECT_TRUE(within("on y", got.reference, dy, beta * kUnitF32));
  EXPECT_TRUE(within("on yhat", got.sampled, dyhat, beta * kUnitF32));
  double right = 0.0;
  for (size_t i = 0; i < pairs; ++i) right += (y[i] - y0[i]) - (yhat[i] - yhat0[i]) > 0.0 ? 0.2 : 0.0;
  EXPECT_NEAR(got.accuracy, right, 1e-12);
  EXPECT_THROW(contrastive_weights(y, y0, yhat, V{1.0}, beta), Error);
  EXPECT_THROW(contrastive_weights(V{}, V{}, V{}, V{}, beta), Error);
}

TEST(PairAccuracy, CountsTiesHalf) {
  EXPECT_EQ(
      pair_accuracy(std::vector<float>{1.0f, 0.0f, 2.0f, 3.0f}, std::vector<float>{0.0f, 1.0f, 2.0f, 0.0f}),
      0.625);
  EXPECT_THROW(pair_accuracy({}, {}), Error);
}

}  // namespace
}  // namespace gantrain
