#include "train/play/judging.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "core/ops/adversarial.h"
#include "core/rng.h"
#include "train/metrics/statistics.h"
#include "train/networks/judge.h"

namespace gantrain {
namespace {

using Order = std::vector<size_t>;

// D of the pairs named by order[begin, end): the real ones' values first.
std::vector<float> score(Device& device, Judge& judge, const std::vector<AnswerPair>& pairs,
                         const Order& order, size_t begin, size_t end, OwnedTensor* on_device) {
  std::vector<int32_t> tokens, offsets{0};
  for (const bool real : {true, false})
    for (size_t i = begin; i < end; ++i) {
      const std::vector<int32_t>& side = real ? pairs[order[i]].real : pairs[order[i]].fake;
      tokens.insert(tokens.end(), side.begin(), side.end());
      offsets.push_back(static_cast<int32_t>(tokens.size()));
    }
  OwnedTensor d = judge.forward(tokens, offsets);
  std::vector<float> values(2 * (end - begin));
  device.copy_out(values.data(), d.view());
  if (on_device) *on_device = std::move(d);
  return values;
}

// Of each pair the share of its two answers that the judge names rightly: 0, 1/2 or 1.
std::vector<double> rightness(Device& device, Judge& judge, const std::vector<AnswerPair>& pairs,
                              const Order& order, size_t batch) {
  std::vector<double> right;
  for (size_t begin = 0; begin < order.size(); begin += batch) {
    const size_t end = std::min(order.size(), begin + batch), n = end - begin;
    const std::vector<float> d = score(device, judge, pairs, order, begin, end, nullptr);
    // A value of exactly 0 is a coin's throw.
    const auto named = [](float towards) { return towards > 0 ? 1.0 : towards < 0 ? 0.0 : 0.5; };
    for (size_t i = 0; i < n; ++i) right.push_back(0.5 * (named(d[i]) + named(-d[n + i])));
  }
  return right;
}

void shuffle(Order& order, uint64_t key) {
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[derive_key(key, i) % i]);
}

}  // namespace

Verdict judge_answers(Device& device, int64_t vocabulary, const std::vector<AnswerPair>& train,
                      const std::vector<AnswerPair>& held_out, const JudgeSettings& settings) {
  constexpr size_t kFewest = 20;
  if (train.size() < kFewest || held_out.empty())
    fail(
        "a judge needs {} pairs of a reference and an answer to learn from and some held out; there are {} "
        "and {}",
        kFewest, train.size(), held_out.size());
  Verdict verdict;
  size_t longest = 1;
  for (const AnswerPair& p : train) longest = std::max(longest, p.real.size());
  for (const AnswerPair& p : held_out) longest = std::max(longest, p.real.size());
  DiscriminatorConfig config;
  config.width = settings.width;
  const auto batch = static_cast<size_t>(settings.batch);
  Order asked(held_out.size());
  std::iota(asked.begin(), asked.end(), size_t{0});

  std::vector<std::vector<double>> rights;  // of each judge, of each held-out pair
  for (int64_t j = 0; j < settings.judges; ++j) {
    const uint64_t key = derive_key(settings.seed, 17, static_cast<uint64_t>(j));
    Judge judge(device, config, vocabulary, static_cast<int64_t>(longest), derive_key(key, 1));
    Order order(train.size());
    std::iota(order.begin(), order.end(), size_t{0});
    shuffle(order, derive_key(key, 2));
    const size_t aside = std::max<size_t>(1, train.size() / 10);
    const Order choosing(order.end() - static_cast<std::ptrdiff_t>(aside), order.end());
    order.resize(order.size() - aside);
    verdict.train_pairs = static_cast<int64_t>(order.size());

    double best = -1;
    int64_t epoch = 0, waited = 0;
    std::vector<double> right;
    for (; epoch < settings.epochs && waited < settings.patience; ++epoch) {
      shuffle(order, derive_key(key, 3, static_cast<uint64_t>(epoch)));
      for (size_t begin = 0; begin < order.size(); begin += batch) {
        const size_t end = std::min(order.size(), begin + batch);
        const auto n = static_cast<int64_t>(end - begin);
        OwnedTensor d;
        judge.zero_grad();
        score(device, judge, train, order, begin, end, &d);
        OwnedTensor seeds(device, DType::kF32, {2 * n}), loss(device, DType::kF32, {1});
        const ConstTensor scores = d.view().view({2 * n});
        const Tensor all = seeds.view();
        pair_loss(device, {.dr = scores.rows(0, n),
                           .df = scores.rows(n, n),
                           .dr2 = {},
                           .df2 = {},
                           .kind = PairLossKind::kBce,
                           .center = 0.0f,
                           .loss = loss,
                           .ddr = all.rows(0, n),
                           .ddf = all.rows(n, n),
                           .ddr2 = {},
                           .ddf2 = {}});
        judge.backward(seeds);
        judge.step({.lr = static_cast<float>(settings.lr), .weight_decay = 0.01f});
      }
      const double chosen = metrics::mean(rightness(device, judge, train, choosing, batch));
      ++waited;
      if (chosen <= best) continue;
      best = chosen;
      waited = 0;
      right = rightness(device, judge, held_out, asked, batch);
    }
    verdict.epochs.push_back(epoch);
    verdict.accuracies.push_back(metrics::mean(right));
    rights.push_back(std::move(right));
  }
  verdict.held_out_pairs = static_cast<int64_t>(held_out.size());
  verdict.accuracy = metrics::median(verdict.accuracies);
  // The judge nearest to the median: its pairs' spread is the error that more pairs would make smaller.
  size_t middle = 0;
  for (size_t j = 1; j < rights.size(); ++j)
    if (std::abs(verdict.accuracies[j] - verdict.accuracy) <
        std::abs(verdict.accuracies[middle] - verdict.accuracy))
      middle = j;
  const double mean = verdict.accuracies[middle];
  double squares = 0;
  for (const double r : rights[middle]) squares += (r - mean) * (r - mean);
  const auto n = static_cast<double>(rights[middle].size());
  verdict.standard_error = n > 1 ? std::sqrt(squares / (n - 1) / n) : 0.5;
  return verdict;
}

std::vector<AnswerPair> answer_pairs(Runner& runner, const Tokenizer& tokenizer, PromptMaker& maker,
                                     ExampleSpan inputs, Placement placement, int64_t count, int64_t max_new,
                                     double temperature, uint64_t seed) {
  constexpr size_t kTogether = 64;  // inputs whose prompts are made together
  std::vector<AnswerPair> pairs;
  if (inputs.empty() || count <= 0) return pairs;
  const auto wanted = static_cast<size_t>(count);
  const size_t samples = (wanted + inputs.size() - 1) / inputs.size();
  const size_t used = std::min(inputs.size(), (wanted + samples - 1) / samples);
  std::vector<const TokenizedExample*> chosen;
  for (size_t i = 0; i < used; ++i) chosen.push_back(inputs[i * inputs.size() / used]);
  for (size_t at = 0; at < used; at += kTogether) {
    const ExampleSpan part(chosen.data() + at, std::min(used - at, kTogether));
    const Prompts prompts = maker.make(part, derive_key(seed, 4, at));
    const RolloutGroup all{0, part.size(), static_cast<int64_t>(samples), derive_key(seed, 5, at)};
    const std::vector<Rollout> rollouts = roll_out(runner.device(), runner.llama(), tokenizer, prompts, part,
                                                   placement, {&all, 1}, max_new, false, temperature);
    for (size_t i = 0; i < rollouts.size(); ++i)
      if (auto pair = make_pair(at + rollouts[i].input, i,
                                strip_end(part[rollouts[i].input]->completion, tokenizer.end_ids()),
                                rollouts[i].text))
        pairs.push_back(std::move(*pair));
  }
  return pairs;
}

}  // namespace gantrain
