// What the discriminator is given to read: pairs without shortcuts, rows that hold the right tokens.
#include "train/play/pairs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/ops.h"
#include "tests/support/devices.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"
#include "train/losses/weights.h"
#include "train/networks/discriminator.h"
#include "train/play/judging.h"

namespace gantrain {
namespace {

using Ids = std::vector<int32_t>;
using testing::FakeTokenizer;

TEST(MakePair, CutsBothSidesToOneLengthBeforeTheShorterEnding) {
  const Ids ten{10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, seven{20, 21, 22, 23, 24, 25, 26};
  for (const bool longer_is_real : {true, false}) {
    const auto pair = longer_is_real ? make_pair(4, 9, ten, seven) : make_pair(4, 9, seven, ten);
    ASSERT_TRUE(pair.has_value());
    EXPECT_EQ(pair->input, 4u);
    EXPECT_EQ(pair->rollout, 9u);
    // 7 tokens less the 2 of its ending.
    EXPECT_EQ(longer_is_real ? pair->real : pair->fake, Ids({10, 11, 12, 13, 14}));
    EXPECT_EQ(longer_is_real ? pair->fake : pair->real, Ids({20, 21, 22, 23, 24}));
  }
  // Equal lengths lose their endings as well; answers of 2 * ending tokens and below are read whole.
  EXPECT_EQ(make_pair(0, 0, seven, seven)->real.size(), 5u);
  EXPECT_EQ(make_pair(0, 0, ten, seven, 0)->fake.size(), 7u);
  EXPECT_EQ(make_pair(0, 0, {1, 2, 3, 4, 5}, ten)->fake.size(), 3u);
  EXPECT_EQ(make_pair(0, 0, {1, 2, 3, 4}, ten)->fake.size(), 4u);
  EXPECT_EQ(make_pair(0, 0, {1}, ten)->fake, Ids({10}));
}

TEST(MakePair, EmptyAnswersGiveNoPair) {
  EXPECT_FALSE(make_pair(0, 0, {}, {1, 2}).has_value());
  EXPECT_FALSE(make_pair(0, 0, {1, 2}, {}).has_value());
  EXPECT_FALSE(make_pair(0, 0, {}, {}).has_value());
}

TEST(StripEnd, RemovesTrailingEndTokensOnly) {
  EXPECT_EQ(strip_end({5, 1, 6, 1, 2, 1}, {1, 2}), Ids({5, 1, 6}));
  EXPECT_EQ(strip_end({5, 6}, {1, 2}), Ids({5, 6}));
  EXPECT_EQ(strip_end({1, 2}, {1, 2}), Ids());
  EXPECT_EQ(strip_end({}, {1}), Ids());
  EXPECT_EQ(strip_end({5, 1}, {}), Ids({5, 1}));
}

TEST(CanonicalTokens, RoundTrip) {
  const FakeTokenizer tokenizer;
  const int32_t a = *tokenizer.find_token("a"), b = *tokenizer.find_token("b"),
                c = *tokenizer.find_token("c");
  // What the tokenizer writes comes back as it is; again as well.
  for (const std::string text : {"abcab", "hello there", " a  b", "x\ny", "\xc3\xa9 ab"}) {
    const Ids ids = tokenizer.encode(text);
    EXPECT_EQ(canonical_tokens(tokenizer, ids), ids) << text;
  }
  EXPECT_EQ(canonical_tokens(tokenizer, {}), Ids());
  // Another spelling of the same text is brought to the tokenizer's own.
  const std::optional<Ids> got = canonical_tokens(tokenizer, {c, a, b, c, FakeTokenizer::kAb});
  EXPECT_EQ(got, Ids({c, FakeTokenizer::kAb, c, FakeTokenizer::kAb}));
  EXPECT_EQ(canonical_tokens(tokenizer, *got), got);
  // Half a character has no text.
  EXPECT_EQ(canonical_tokens(tokenizer, {a, FakeTokenizer::kHalf}), std::nullopt);
}

std::vector<TokenizedExample> some_inputs() {
  std::vector<TokenizedExample> out(3);
  out[0].prompt = {70, 71, 72};
  out[1].prompt = {80};
  out[2].prompt = {90, 91};
  return out;
}
std::vector<const TokenizedExample*> pointers_to(const std::vector<TokenizedExample>& examples) {
  std::vector<const TokenizedExample*> out;
  for (const TokenizedExample& e : examples) out.push_back(&e);
  return out;
}
AnswerPair pair_of(size_t input, const Ids& real, const Ids& fake) {
  AnswerPair p;
  p.input = input;
  p.real = real;
  p.fake = fake;
  return p;
}

// All that row `row` sees, itself included, read off the attention plan: the text that its state stands for.
Ids seen_by(const PackedBatch& batch, int32_t row) {
  int32_t segment = -1;
  for (int32_t s = 0; s < batch.segments(); ++s)
    if (row >= batch.segment(s).row_begin && row < batch.segment(s).row_begin + batch.segment(s).rows)
      segment = s;
  if (segment < 0) return {};
  const int32_t parent = batch.segment(segment).parent;
  Ids out;
  if (parent >= 0) out = seen_by(batch, batch.last_row(parent));
  for (int32_t r = batch.segment(segment).row_begin; r <= row; ++r)
    out.push_back(batch.tokens()[static_cast<size_t>(r)]);
  return out;
}

// Every row of every pair stands for its input and the answer up to there, whether rows are shared or not.
void expect_right_rows(const std::vector<TokenizedExample>& inputs, const std::vector<AnswerPair>& pairs,
                       const PairBatch& packed) {
  ASSERT_EQ(packed.real.size(), pairs.size());
  ASSERT_EQ(packed.fake.size(), pairs.size());
  for (size_t i = 0; i < pairs.size(); ++i)
    for (const bool real : {true, false}) {
      const Ids& tokens = real ? pairs[i].real : pairs[i].fake;
      const Ids& rows = real ? packed.real[i] : packed.fake[i];
      ASSERT_EQ(rows.size(), tokens.size());
      Ids want = inputs[pairs[i].input].prompt;
      for (size_t t = 0; t < tokens.size(); ++t) {
        want.push_back(tokens[t]);
        EXPECT_EQ(seen_by(packed.batch, rows[t]), want) << "pair " << i << (real ? " real " : " fake ") << t;
        EXPECT_EQ(packed.batch.positions()[static_cast<size_t>(rows[t])],
                  static_cast<int32_t>(want.size()) - 1);
      }
    }
}

TEST(PackPairs, RowsHoldTheTokensAndEqualAnswersShareThem) {
  const auto inputs = some_inputs();
  const auto pointers = pointers_to(inputs);
  const std::vector<AnswerPair> pairs{
      pair_of(0, {10, 11, 12}, {20, 21, 22}),          // 3 + 3
      pair_of(0, {10, 11}, {20, 21}),                  // both are the beginnings of what stands there
      pair_of(0, {10, 11, 12, 13}, {20, 21, 23, 24}),  // one longer reference; a fake that parts ways: 1 + 4
      pair_of(1, {10, 11, 12}, {10, 11, 12}),          // another input; a fake that equals its reference: 3
      pair_of(2, {30}, {31})};
  const PairBatch merged = pack_pairs(pointers, pairs, true);
  expect_right_rows(inputs, pairs, merged);
  EXPECT_EQ(merged.batch.rows(), 3 + 1 + 2 + (4 + 3 + 4) + 3 + 2);
  EXPECT_EQ(merged.real[0][0], merged.real[1][0]);
  EXPECT_EQ(merged.fake[0][1], merged.fake[1][1]);
  EXPECT_EQ(merged.real[3], merged.fake[3]);
  EXPECT_NE(merged.real[0][0], merged.real[3][0]);

  // Apart: references may still share rows, but every fake has its own.
  const PairBatch apart = pack_pairs(pointers, pairs, false);
  expect_right_rows(inputs, pairs, apart);
  EXPECT_EQ(apart.batch.rows(), 3 + 1 + 2 + (4 + 3 + 2 + 4) + (3 + 3) + 2);
  EXPECT_EQ(apart.real[0][0], apart.real[1][0]);
  std::vector<int32_t> uses(static_cast<size_t>(apart.batch.rows()), 0);
  for (const Ids& rows : apart.fake)
    for (int32_t r : rows) ++uses[static_cast<size_t>(r)];
  for (const Ids& rows : apart.real)
    for (int32_t r : rows) EXPECT_EQ(uses[static_cast<size_t>(r)], 0);
  EXPECT_EQ(*std::max_element(uses.begin(), uses.end()), 1);
}

TEST(PackPairs, TheDiscriminatorsOrderIsRealsThenFakes) {
  const auto inputs = some_inputs();
  const std::vector<AnswerPair> pairs{pair_of(0, {10, 11}, {20, 21}), pair_of(1, {12}, {22}),
                                      pair_of(2, {13, 14, 15}, {23, 24, 25})};
  const PairBatch packed = pack_pairs(pointers_to(inputs), pairs, true);
  const PairRows rows = rows_of_pairs(packed, 1, 3);
  EXPECT_EQ(rows.offsets, Ids({0, 1, 4, 5, 8}));
  Ids tokens;
  for (int32_t r : rows.rows) tokens.push_back(packed.batch.tokens()[static_cast<size_t>(r)]);
  EXPECT_EQ(tokens, Ids({12, 13, 14, 15, 22, 23, 24, 25}));
}

// A model on the CPU, and inputs for it to read.
struct TinyReader {
  std::unique_ptr<Device> device = test::make_cpu();
  std::unique_ptr<const Llama> llama =
      Llama::load(*device, std::make_shared<testing::MemoryWeights>(testing::tiny_config()), DType::kF32);
  Runner runner{*device, *llama};
  std::vector<TokenizedExample> inputs = some_inputs();
  std::vector<const TokenizedExample*> pointers = pointers_to(inputs);
};

// What the discriminator reads of an answer: behind its input, unprompted, and nothing else in the batch.
OwnedTensor features_alone(Runner& runner, const Ids& input, const Ids& answer, int layers) {
  Ids text = input, rows;
  for (const int32_t token : answer) {
    rows.push_back(static_cast<int32_t>(text.size()));
    text.push_back(token);
  }
  PackedBatch batch;
  batch.add(-1, text);
  runner.forward(batch, {}, Saving::kNothing, layers);
  return Discriminator::normalise(runner.device(), runner.output_rows(rows));
}

// Each row of a pair's features is what its input and answer alone, read without a prompt, come to; whatever
// stands in the same batch.
TEST(AnswerFeatures, AreThoseOfEachAnswerBehindItsInput) {
  TinyReader tiny;
  auto& [device, llama, runner, inputs, pointers] = tiny;
  const std::vector<AnswerPair> pairs{pair_of(2, {10, 11, 12}, {10, 21, 22}), pair_of(0, {13}, {13}),
                                      pair_of(2, {10, 11}, {23, 24})};
  const int layers = 1;
  ASSERT_LT(layers, llama->config().num_layers);
  const int64_t width = llama->config().hidden_size;
  for (const int64_t batch : {1, 2, 8}) {
    const AnswerFeatures got = answer_features(runner, pointers, pairs, layers, batch);
    EXPECT_EQ(got.begin, Ids({0, 3, 6, 7, 8, 10}));
    ASSERT_EQ(got.rows.view().shape(), (Shape{12, width}));
    std::vector<float> rows(static_cast<size_t>(12 * width));
    device->copy_out(rows.data(), got.rows.view());
    for (size_t i = 0; i < pairs.size(); ++i)
      for (const size_t side : {size_t{0}, size_t{1}}) {
        const Ids& answer = side == 0 ? pairs[i].real : pairs[i].fake;
        const OwnedTensor f = features_alone(runner, inputs[pairs[i].input].prompt, answer, layers);
        std::vector<float> want(answer.size() * static_cast<size_t>(width));
        device->copy_out(want.data(), f.view());
        const size_t first = static_cast<size_t>(got.begin[2 * i + side] * width);
        for (size_t k = 0; k < want.size(); ++k)
          ASSERT_NEAR(rows[first + k], want[k], 1e-5)
              << "pair " << i << (side == 0 ? " reference" : " answer") << ", value " << k;
      }
  }
}

// The answer that is chosen is the one whose own reading by the discriminator is the highest, of each
// input's.
TEST(Chooser, TakesTheHighestScoreOrDrawsByItsOdds) {
  TinyReader tiny;
  auto& [device, llama, runner, inputs, pointers] = tiny;
  DiscriminatorConfig config;
  config.width = 16;
  Discriminator d(*device, config, llama->config().hidden_size, 5);
  const std::vector<size_t> input_of{2, 2, 2, 0, 0, 0, 1, 1, 1};
  const std::vector<Ids> answers{{10, 11, 12, 13, 14, 15},
                                 {10},
                                 {21, 22, 23},
                                 {30, 31, 32, 33, 34},
                                 {},
                                 {30, 31, 32, 40, 41},
                                 {},
                                 {},
                                 {}};
  std::vector<float> want;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (answers[i].empty()) {
      want.push_back(-std::numeric_limits<float>::infinity());
      continue;
    }
    Ids answer = answers[i];
    if (answer.size() > 4) answer.resize(answer.size() - 2);  // its ending
    const OwnedTensor score = d.forward(features_alone(runner, inputs[input_of[i]].prompt, answer, 1),
                                        {0, static_cast<int32_t>(answer.size())});
    want.emplace_back();
    device->copy_out(&want.back(), score.view());
  }
  for (const int64_t batch : {1, 2, 32}) {
    Chooser chooser(runner, d, 1, 3, batch);
    const std::vector<float> got = chooser.scores(pointers, input_of, answers);
    for (size_t i = 0; i < want.size(); ++i)
      if (std::isfinite(want[i]))
        EXPECT_NEAR(got[i], want[i], 1e-5) << i;
      else
        EXPECT_EQ(got[i], want[i]) << i;
    std::vector<size_t> best;
    for (const size_t begin : {0, 3, 6})
      best.push_back(
          static_cast<size_t>(std::max_element(want.begin() + static_cast<std::ptrdiff_t>(begin),
                                               want.begin() + static_cast<std::ptrdiff_t>(begin + 3)) -
                              want.begin()));
    EXPECT_EQ(chooser.choose(pointers, input_of, answers, 1), best);
    EXPECT_EQ(best[2], 6u);  // all empty: the first
  }
  // At a temperature: drawn with odds exp(D / temperature), an empty answer never beside one that is not.
  for (const double temperature : {0.05, 1.0}) {
    Chooser chooser(runner, d, 1, 3, 32, temperature);
    constexpr int kDraws = 500;
    std::vector<double> share(answers.size());
    for (uint64_t key = 0; key < kDraws; ++key) {
      const std::vector<size_t> taken = chooser.choose(pointers, input_of, answers, key);
      if (key < 5) {
        EXPECT_EQ(taken, chooser.choose(pointers, input_of, answers, key));
      }
      for (const size_t i : taken) share[i] += 1.0 / kDraws;
    }
    for (const size_t begin : {0u, 3u}) {
      double total = 0;
      const double top = *std::max_element(want.begin() + begin, want.begin() + begin + 3);
      for (size_t i = begin; i < begin + 3; ++i) total += std::exp((want[i] - top) / temperature);
      for (size_t i = begin; i < begin + 3; ++i)
        EXPECT_NEAR(share[i], std::exp((want[i] - top) / temperature) / total, 4.0 * 0.5 / std::sqrt(kDraws))
            << i;
    }
    EXPECT_EQ(share[4], 0.0);
  }
}

// Three answers with probabilities p and scores D, two or three drawn, one taken: how often each is taken, by
// going through all draws, is p times the mean of exp(gain), and log(q / p) is at least the mean of the gain.
TEST(Chooser, ReferenceGainBoundsHowMuchLikelierAReferenceBecomes) {
  TinyReader tiny;
  DiscriminatorConfig config;
  config.width = 16;
  Discriminator discriminator(*tiny.device, config, tiny.llama->config().hidden_size, 5);
  const double p[] = {0.5, 0.3, 0.2};
  const float d[] = {-1.0f, 0.25f, 2.0f};
  for (const double temperature : {0.5, 1.0})
    for (const int n : {2, 3}) {
      const Chooser chooser(tiny.runner, discriminator, 1, n, 4, temperature);
      const int draws = n == 2 ? 9 : 27;
      double q[3] = {0, 0, 0}, mean[3] = {0, 0, 0}, mean_exp[3] = {0, 0, 0};
      for (int code = 0; code < draws; ++code) {
        const int all[] = {code % 3, code / 3 % 3, code / 9};
        double chance = 1, sum = 0;
        for (int i = 0; i < n; ++i) {
          chance *= p[all[i]];
          sum += std::exp(d[all[i]] / temperature);
        }
        for (int i = 0; i < n; ++i) q[all[i]] += chance * std::exp(d[all[i]] / temperature) / sum;
        if (code >= draws / 3) continue;  // the others: one fewer, the last of `all` being 0
        std::vector<float> others;
        double of_others = 1;
        for (int i = 0; i + 1 < n; ++i) {
          others.push_back(d[all[i]]);
          of_others *= p[all[i]];
        }
        for (int y = 0; y < 3; ++y) {
          const double gain = chooser.reference_gain(d[y], others);
          mean[y] += of_others * gain;
          mean_exp[y] += of_others * std::exp(gain);
        }
      }
      for (int y = 0; y < 3; ++y) {
        EXPECT_NEAR(q[y], p[y] * mean_exp[y], 1e-6) << y << " of " << n;
        EXPECT_LE(mean[y], std::log(q[y] / p[y]) + 1e-6);
        EXPECT_GE(mean[y], std::log(q[y] / p[y]) - 1.5);  // of two or three a loose bound, no empty one
      }
    }
}

// ---- shortcuts

constexpr int64_t kWidth = 8;
constexpr int64_t kHeldOut = 800;
// Four standard errors of a share around a half.
const double kFourErrors = 4.0 * 0.5 / std::sqrt(static_cast<double>(kHeldOut));

// An answer of random letters, `length` of them, the last two replaced by the side's own ending.
Ids answer(int64_t length, int32_t ending, uint64_t seed) {
  Ids out = test::random_ints(length, seed, 10, 90);
  out[static_cast<size_t>(length - 2)] = ending;
  out[static_cast<size_t>(length - 1)] = ending + 1;
  return out;
}

// What the discriminator is shown of an answer: a row a token that says nothing but what is asked about.
enum class Shown { kLength, kLastPosition, kEnding };
std::vector<float> shown(const Ids& tokens, Shown what) {
  const size_t n = tokens.size();
  std::vector<float> out(n * static_cast<size_t>(kWidth), 0.0f);
  for (size_t t = 0; t < n; ++t) {
    float* row = out.data() + t * static_cast<size_t>(kWidth);
    row[0] = 1.0f;
    // A row that is scaled to unit size: the second number must stay beside a first one that is never 0.
    if (what == Shown::kLength) row[1] = 0.2f * static_cast<float>(n);
    if (what == Shown::kLastPosition) row[1] = t + 1 == n ? 0.3f * static_cast<float>(t) : 0.0f;
    if (what == Shown::kEnding) {
      row[1] = tokens[t] == 91 || tokens[t] == 92 ? 3.0f : 0.0f;
      row[2] = tokens[t] == 93 || tokens[t] == 94 ? 3.0f : 0.0f;
    }
  }
  return out;
}

struct Rows {
  std::vector<float> features;
  std::vector<int32_t> offsets = {0};
};

// References are longer than fakes and end otherwise; beyond that nothing tells them apart. cut: as make_pair
// would.
Rows draw(int64_t pairs, uint64_t seed, Shown what, bool cut) {
  const auto lengths = test::random_ints(2 * pairs, seed, 6, 12);
  std::vector<AnswerPair> drawn;
  for (int64_t i = 0; i < pairs; ++i) {
    const uint64_t own = seed + 1 + 2 * static_cast<uint64_t>(i);
    const Ids real = answer(lengths[static_cast<size_t>(2 * i)] + 6, 91, own),
              fake = answer(lengths[static_cast<size_t>(2 * i + 1)], 93, own + 1);
    drawn.push_back(cut ? *make_pair(0, 0, real, fake) : pair_of(0, real, fake));
  }
  Rows out;
  for (const bool real : {true, false})
    for (const AnswerPair& p : drawn) {
      const std::vector<float> f = shown(real ? p.real : p.fake, what);
      out.features.insert(out.features.end(), f.begin(), f.end());
      out.offsets.push_back(static_cast<int32_t>(out.features.size()) / static_cast<int32_t>(kWidth));
    }
  return out;
}

// Held-out pair accuracy, ties a half, after some training.
double learned(Shown what, bool cut) {
  const auto device = test::make_cpu();
  Device& d = *device;
  DiscriminatorConfig config;
  config.width = 16;
  Discriminator net(d, config, kWidth, 7);
  auto features = [&](const Rows& rows) {
    OwnedTensor h(d, DType::kF32, {rows.offsets.back(), kWidth});
    d.copy_in(h, rows.features.data());
    return Discriminator::normalise(d, h);
  };
  constexpr int64_t kPairs = 64;
  const Rows train = draw(kPairs, 1000, what, cut), held = draw(kHeldOut, 500000, what, cut);
  const OwnedTensor f = features(train);
  OwnedTensor loss = zeros(d, {1}), seeds = zeros(d, {2 * kPairs});
  for (int step = 0; step < 60; ++step) {
    const OwnedTensor scores = net.forward(f, train.offsets);
    const ConstTensor s = scores.view().view({2 * kPairs});
    pair_loss(d, {.dr = s.rows(0, kPairs),
                  .df = s.rows(kPairs, kPairs),
                  .dr2 = {},
                  .df2 = {},
                  .loss = loss,
                  .ddr = seeds.view().rows(0, kPairs),
                  .ddf = seeds.view().rows(kPairs, kPairs),
                  .ddr2 = {},
                  .ddf2 = {}});
    net.parameters().zero_grad();
    net.backward(f, seeds, {});
    net.parameters().step({.lr = 1e-2f, .beta1 = 0.0f, .beta2 = 0.99f});
  }
  const std::vector<float> all = download(d, net.forward(features(held), held.offsets));
  return pair_accuracy({all.data(), kHeldOut}, {all.data() + kHeldOut, kHeldOut});
}

TEST(Shortcuts, LengthLastPositionAndEndingAreClosedByTheCut) {
  for (const Shown what : {Shown::kLength, Shown::kLastPosition, Shown::kEnding}) {
    EXPECT_GT(learned(what, false), 0.9)
        << "without the cut it is easily learned: " << static_cast<int>(what);
    EXPECT_NEAR(learned(what, true), 0.5, kFourErrors) << "shown " << static_cast<int>(what);
  }
}

// The same groups in one call, each in a call of its own, and in the other order: the same bits of every
// answer. Decoding them together is what makes a step cheaper, and it may not change what is sampled.
TEST(RollOut, AnswersDoNotDependOnWhatIsDecodedWithThem) {
  const auto device = test::make_cpu();
  const auto llama =
      Llama::load(*device, std::make_shared<testing::MemoryWeights>(testing::tiny_config()), DType::kF32);
  const FakeTokenizer tokenizer;
  std::vector<TokenizedExample> items(5);
  std::vector<const TokenizedExample*> inputs;
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].prompt = test::random_ints(static_cast<int64_t>(3 + 2 * i), 10 + i, 6, 96);
    inputs.push_back(&items[i]);
  }
  const int64_t width = llama->config().hidden_size;
  const std::vector<float> rows = test::random_normal(5 * 2 * width, 3, 0.5f);
  Prompts prompts;
  prompts.rows = OwnedTensor(*device, DType::kF32, {5 * 2, width});
  device->copy_in(prompts.rows, rows.data());
  prompts.count = 2;
  for (int64_t i = 0; i < 5; ++i) prompts.first.push_back(2 * i);
  const RolloutGroup training{0, 3, 4, 77}, heldout{3, 5, 1, 78};
  for (const bool gumbel : {false, true}) {
    const auto run = [&](std::vector<RolloutGroup> groups) {
      return roll_out(*device, *llama, tokenizer, prompts, ExampleSpan(inputs.data(), inputs.size()),
                      Placement::kPrefix, groups, 12, gumbel);
    };
    const std::vector<Rollout> together = run({training, heldout}), turned = run({heldout, training}),
                               a = run({training}), b = run({heldout});
    ASSERT_EQ(together.size(), 3u * 4 + 2);
    ASSERT_EQ(a.size() + b.size(), together.size());
    size_t tokens = 0;
    for (size_t i = 0; i < together.size(); ++i) {
      const Rollout& want = together[i];
      const Rollout& apart = i < a.size() ? a[i] : b[i - a.size()];
      const Rollout& other = turned[i < a.size() ? i + b.size() : i - a.size()];
      for (const Rollout* got : {&apart, &other}) {
        EXPECT_EQ(got->input, want.input);
        EXPECT_EQ(got->key, want.key);
        EXPECT_EQ(got->tokens, want.tokens) << "answer " << i;
        EXPECT_EQ(got->text, want.text);
      }
      tokens += want.tokens.size();
    }
    // Four samples of one input that are all alike would prove nothing.
    EXPECT_NE(together[0].tokens, together[1].tokens);
    EXPECT_GT(tokens, together.size());
  }
}

}  // namespace
}  // namespace gantrain
