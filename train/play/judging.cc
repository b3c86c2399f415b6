#include "train/play/judging.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>

#include "core/check.h"
#include "core/ops/adversarial.h"
#include "core/ops/trainable.h"
#include "core/rng.h"
#include "train/metrics/statistics.h"
#include "train/networks/judge.h"

namespace gantrain {
namespace {

using Order = std::vector<size_t>;

// The pairs named by order[begin, end) as a judge takes them: references first, then answers.
struct Choice {
  const std::vector<AnswerPair>& pairs;
  const AnswerFeatures* features;  // nullptr: tokens are read
  const Order& order;
  size_t begin, end;
};

// One judge, whatever it reads.
class Reader {
 public:
  virtual ~Reader() = default;
  virtual OwnedTensor forward(const Choice& choice) = 0;  // D, (2 n)
  virtual void backward(ConstTensor d_scores) = 0;
  virtual void zero_grad() = 0;
  virtual void step(const AdamSettings& settings) = 0;
};

class TokenReader : public Reader {
 public:
  TokenReader(Device& device, const DiscriminatorConfig& config, int64_t vocabulary, int64_t longest,
              uint64_t key)
      : judge_(device, config, vocabulary, longest, key) {}
  OwnedTensor forward(const Choice& c) override {
    std::vector<int32_t> tokens, offsets{0};
    for (const bool real : {true, false})
      for (size_t i = c.begin; i < c.end; ++i) {
        const AnswerPair& pair = c.pairs[c.order[i]];
        const std::vector<int32_t>& side = real ? pair.real : pair.fake;
        tokens.insert(tokens.end(), side.begin(), side.end());
        offsets.push_back(static_cast<int32_t>(tokens.size()));
      }
    return judge_.forward(tokens, offsets);
  }
  void backward(ConstTensor d_scores) override { judge_.backward(d_scores); }
  void zero_grad() override { judge_.zero_grad(); }
  void step(const AdamSettings& settings) override { judge_.step(settings); }

 private:
  Judge judge_;
};

class FeatureReader : public Reader {
 public:
  FeatureReader(Device& device, const DiscriminatorConfig& config, int64_t feature_width, uint64_t key)
      : device_(device), head_(device, config, feature_width, key) {}
  OwnedTensor forward(const Choice& c) override {
    std::vector<int32_t> rows, offsets{0};
    for (const size_t side : {size_t{0}, size_t{1}})
      for (size_t i = c.begin; i < c.end; ++i) {
        const size_t pair = c.order[i];
        const int32_t first = c.features->begin[2 * pair + side];
        for (size_t t = 0; t < c.pairs[pair].real.size(); ++t)
          rows.push_back(first + static_cast<int32_t>(t));
        offsets.push_back(static_cast<int32_t>(rows.size()));
      }
    OwnedTensor places(device_, DType::kI32, {static_cast<int64_t>(rows.size())});
    device_.copy_in(places, rows.data());
    read_ = OwnedTensor(device_, DType::kF32,
                        {static_cast<int64_t>(rows.size()), c.features->rows.view().dim(1)});
    gather_rows(device_, {.x = c.features->rows, .rows = places, .y = read_});
    return head_.forward(read_, offsets);
  }
  void backward(ConstTensor d_scores) override { head_.backward(read_, d_scores, {}); }
  void zero_grad() override { head_.parameters().zero_grad(); }
  void step(const AdamSettings& settings) override { head_.parameters().step(settings); }

 private:
  Device& device_;
  Discriminator head_;
  OwnedTensor read_;
};

std::vector<float> values_of(Device& device, const OwnedTensor& scores) {
  std::vector<float> values(static_cast<size_t>(scores.view().count()));
  device.copy_out(values.data(), scores.view());
  return values;
}

// Of each pair the share of its two answers that the judge names rightly, 0, 1/2 or 1; and of its ranking.
struct Rightness {
  std::vector<double> named, ranked;
};
Rightness rightness(Device& device, Reader& judge, const std::vector<AnswerPair>& pairs,
                    const AnswerFeatures* features, const Order& order, size_t batch) {
  Rightness right;
  // A value of exactly 0 is a coin's throw.
  const auto sign = [](float towards) { return towards > 0 ? 1.0 : towards < 0 ? 0.0 : 0.5; };
  for (size_t begin = 0; begin < order.size(); begin += batch) {
    const size_t end = std::min(order.size(), begin + batch), n = end - begin;
    const std::vector<float> d = values_of(device, judge.forward({pairs, features, order, begin, end}));
    for (size_t i = 0; i < n; ++i) {
      right.named.push_back(0.5 * (sign(d[i]) + sign(-d[n + i])));
      right.ranked.push_back(sign(d[i] - d[n + i]));
    }
  }
  return right;
}

void shuffle(Order& order, uint64_t key) {
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[derive_key(key, i) % i]);
}

using MakeReader = std::function<std::unique_ptr<Reader>(const DiscriminatorConfig&, uint64_t key)>;

Verdict judge_with(Device& device, const MakeReader& make, const std::vector<AnswerPair>& train,
                   const AnswerFeatures* train_features, const std::vector<AnswerPair>& held_out,
                   const AnswerFeatures* held_out_features, const JudgeSettings& settings) {
  constexpr size_t kFewest = 20;
  if (train.size() < kFewest || held_out.empty())
    fail(
        "a judge needs {} pairs of a reference and an answer to learn from and some held out; there are {} "
        "and {}",
        kFewest, train.size(), held_out.size());
  Verdict verdict;
  DiscriminatorConfig config;
  config.width = settings.width;
  const auto batch = static_cast<size_t>(settings.batch);
  Order asked(held_out.size());
  std::iota(asked.begin(), asked.end(), size_t{0});

  std::vector<std::vector<double>> rights;  // of each judge, of each held-out pair
  std::vector<double> rankings;             // of each judge
  for (int64_t j = 0; j < settings.judges; ++j) {
    const uint64_t key = derive_key(settings.seed, 17, static_cast<uint64_t>(j));
    const std::unique_ptr<Reader> judge = make(config, derive_key(key, 1));
    Order order(train.size());
    std::iota(order.begin(), order.end(), size_t{0});
    shuffle(order, derive_key(key, 2));
    const size_t aside = std::max<size_t>(1, train.size() / 10);
    const Order choosing(order.end() - static_cast<std::ptrdiff_t>(aside), order.end());
    order.resize(order.size() - aside);
    verdict.train_pairs = static_cast<int64_t>(order.size());

    double best = -1;
    int64_t epoch = 0, waited = 0;
    Rightness right;
    for (; epoch < settings.epochs && waited < settings.patience; ++epoch) {
      shuffle(order, derive_key(key, 3, static_cast<uint64_t>(epoch)));
      for (size_t begin = 0; begin < order.size(); begin += batch) {
        const size_t end = std::min(order.size(), begin + batch);
        const auto n = static_cast<int64_t>(end - begin);
        judge->zero_grad();
        const OwnedTensor d = judge->forward({train, train_features, order, begin, end});
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
        judge->backward(seeds);
        judge->step({.lr = static_cast<float>(settings.lr), .weight_decay = 0.01f});
      }
      const double chosen =
          metrics::mean(rightness(device, *judge, train, train_features, choosing, batch).named);
      ++waited;
      if (chosen <= best) continue;
      best = chosen;
      waited = 0;
      right = rightness(device, *judge, held_out, held_out_features, asked, batch);
    }
    verdict.epochs.push_back(epoch);
    verdict.accuracies.push_back(metrics::mean(right.named));
    rankings.push_back(metrics::mean(right.ranked));
    rights.push_back(std::move(right.named));
  }
  verdict.held_out_pairs = static_cast<int64_t>(held_out.size());
  verdict.accuracy = metrics::median(verdict.accuracies);
  verdict.ranking = metrics::median(rankings);
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

}  // namespace

AnswerFeatures answer_features(Runner& runner, ExampleSpan inputs, const std::vector<AnswerPair>& pairs,
                               int layers, int64_t batch) {
  Device& device = runner.device();
  AnswerFeatures out;
  int64_t count = 0;
  for (const AnswerPair& p : pairs) {
    out.begin.push_back(static_cast<int32_t>(count));
    out.begin.push_back(static_cast<int32_t>(count += static_cast<int64_t>(p.real.size())));
    count += static_cast<int64_t>(p.fake.size());
    GT_CHECK(p.real.size() == p.fake.size() && count <= INT32_MAX, "{} rows of features", count);
  }
  out.rows = OwnedTensor(device, DType::kF32, {count, runner.llama().config().hidden_size});
  const auto together = static_cast<size_t>(std::max<int64_t>(1, batch));
  int64_t at = 0;
  for (size_t begin = 0; begin < pairs.size(); begin += together) {
    const std::vector<AnswerPair> part(
        pairs.begin() + static_cast<std::ptrdiff_t>(begin),
        pairs.begin() + static_cast<std::ptrdiff_t>(std::min(pairs.size(), begin + together)));
    const PairBatch packed = pack_pairs(inputs, part, true);
    std::vector<int32_t> rows;  // in the order of `begin`
    for (size_t i = 0; i < part.size(); ++i)
      for (const auto* side : {&packed.real[i], &packed.fake[i]})
        rows.insert(rows.end(), side->begin(), side->end());
    runner.forward(packed.batch, {}, Saving::kNothing, layers, {}, {.read = rows, .gradient = {}});
    const OwnedTensor f = Discriminator::normalise(device, runner.output_rows(rows));
    device.copy(out.rows.view().rows(at, f.view().dim(0)), f);
    at += f.view().dim(0);
  }
  return out;
}

Verdict judge_answers(Device& device, int64_t vocabulary, const std::vector<AnswerPair>& train,
                      const std::vector<AnswerPair>& held_out, const JudgeSettings& settings) {
  size_t longest = 1;
  for (const AnswerPair& p : train) longest = std::max(longest, p.real.size());
  for (const AnswerPair& p : held_out) longest = std::max(longest, p.real.size());
  const MakeReader make = [&](const DiscriminatorConfig& config, uint64_t key) {
    return std::make_unique<TokenReader>(device, config, vocabulary, static_cast<int64_t>(longest), key);
  };
  return judge_with(device, make, train, nullptr, held_out, nullptr, settings);
}

Verdict judge_features(Device& device, const std::vector<AnswerPair>& train,
                       const AnswerFeatures& train_features, const std::vector<AnswerPair>& held_out,
                       const AnswerFeatures& held_out_features, const JudgeSettings& settings) {
  const MakeReader make = [&](const DiscriminatorConfig& config, uint64_t key) {
    return std::make_unique<FeatureReader>(device, config, train_features.rows.view().dim(1), key);
  };
  return judge_with(device, make, train, &train_features, held_out, &held_out_features, settings);
}

std::vector<AnswerPair> answer_pairs(Runner& runner, const Tokenizer& tokenizer, PromptMaker& maker,
                                     ExampleSpan inputs, Placement placement, int64_t count, int64_t max_new,
                                     double temperature, uint64_t seed, Chooser* chooser) {
  constexpr size_t kTogether = 64;  // inputs whose prompts are made together
  std::vector<AnswerPair> pairs;
  if (inputs.empty() || count <= 0) return pairs;
  const auto wanted = static_cast<size_t>(count);
  const size_t samples = (wanted + inputs.size() - 1) / inputs.size();
  const size_t used = std::min(inputs.size(), (wanted + samples - 1) / samples);
  std::vector<const TokenizedExample*> chosen;
  const auto place = [&](size_t i) { return i * inputs.size() / used; };
  for (size_t i = 0; i < used; ++i) chosen.push_back(inputs[place(i)]);
  for (size_t at = 0; at < used; at += kTogether) {
    const ExampleSpan part(chosen.data() + at, std::min(used - at, kTogether));
    const Prompts prompts = maker.make(part, derive_key(seed, 4, at));
    const RolloutGroup all{0, part.size(), static_cast<int64_t>(samples) * (chooser ? chooser->among() : 1),
                           derive_key(seed, 5, at)};
    const std::vector<Rollout> rollouts = roll_out(runner.device(), runner.llama(), tokenizer, prompts, part,
                                                   placement, {&all, 1}, max_new, false, temperature);
    std::vector<size_t> taken(rollouts.size());
    std::iota(taken.begin(), taken.end(), size_t{0});
    if (chooser) {
      std::vector<size_t> input_of;
      std::vector<std::vector<int32_t>> answers;
      for (const Rollout& r : rollouts) {
        input_of.push_back(r.input);
        answers.push_back(r.text);
      }
      taken = chooser->choose(part, input_of, answers, derive_key(seed, 8, at));
    }
    for (const size_t i : taken)
      if (auto pair = make_pair(place(at + rollouts[i].input), i,
                                strip_end(part[rollouts[i].input]->completion, tokenizer.end_ids()),
                                rollouts[i].text))
        pairs.push_back(std::move(*pair));
  }
  return pairs;
}

}  // namespace gantrain
