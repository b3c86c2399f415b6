// The two players' networks and the judge: every parameter's and input's gradient against complex step over
// the scalar template, step 0, and what a discriminator can and cannot learn.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/reference/networks.h"
#include "tests/support/complex_step.h"
#include "tests/support/devices.h"
#include "tests/support/fill.h"
#include "train/losses/weights.h"
#include "train/networks/discriminator.h"
#include "train/networks/generator.h"
#include "train/networks/judge.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;
using VC = std::vector<Complex>;

class Networks : public OpsTest {};
GT_ALL_DEVICES(Networks);

std::vector<float> host(Device& d, ConstTensor t) {
  std::vector<float> out(static_cast<size_t>(t.count()));
  d.synchronize();
  d.copy_out(out.data(), t);
  return out;
}
OwnedTensor owned(Device& d, const std::vector<float>& values, Shape shape) {
  OwnedTensor t(d, DType::kF32, shape);
  d.copy_in(t, values.data());
  return t;
}

// Layers that start at zero hide the gradients of those before them: every value becomes random, gains
// near 1.
void randomise(Device& d, ParameterSet& p, uint64_t seed) {
  for (size_t i = 0; i < p.size(); ++i) {
    const Tensor t = p.value(i);
    const bool matrix = t.rank() == 2;
    auto values =
        random_normal(t.count(), seed + i, matrix ? 1.0f / std::sqrt(static_cast<float>(t.dim(1))) : 0.2f);
    if (!matrix && p.name(i).find("bias") == std::string::npos)
      for (float& x : values) x += 1.0f;
    d.copy_in(t, values.data());
  }
}

reference::Parameters<double> values_of(Device& d, ParameterSet& p) {
  reference::Parameters<double> out;
  for (size_t i = 0; i < p.size(); ++i) out[p.name(i)] = to_double(host(d, p.value(i)));
  return out;
}
reference::Parameters<Complex> widened(const reference::Parameters<double>& p) {
  reference::Parameters<Complex> out;
  for (const auto& [name, values] : p) out[name] = to_complex(values);
  return out;
}

// A gradient passes through about 20 ops, each with sums of at most 32 terms. Roundings that add up like a
// random walk make sqrt(20 * 32) = 25 units in the last place of the largest entry; twice and a half that is
// the limit.
double limit_of(const V& want) {
  double largest = 0.0;
  for (double x : want) largest = std::max(largest, std::abs(x));
  return 64.0 * kUnitF32 * std::max(largest, 1e-3);
}

// `loss(parameters)` in complex numbers against the gradients that backward left in `p`.
template <typename Loss>
void check_parameters(Device& d, ParameterSet& p, const Loss& loss) {
  const auto at = values_of(d, p);
  auto varied = widened(at);
  for (size_t i = 0; i < p.size(); ++i) {
    const std::string& name = p.name(i);
    const V want = complex_step_gradient(at.at(name), [&](const VC& v) {
      varied[name] = v;
      return loss(varied);
    });
    varied[name] = to_complex(at.at(name));
    EXPECT_TRUE(within(name, host(d, p.grad(i)), want, limit_of(want)));
    EXPECT_TRUE(std::any_of(want.begin(), want.end(), [](double x) { return std::abs(x) > 1e-6; }))
        << name << ": its gradient is zero here, the comparison says nothing";
  }
}

// Runs two backwards: gradients are accumulated, so twice one is the other.
void expect_accumulates(Device& d, ParameterSet& p, const std::function<void()>& backward) {
  p.zero_grad();
  backward();
  std::vector<std::vector<float>> once;
  for (size_t i = 0; i < p.size(); ++i) once.push_back(host(d, p.grad(i)));
  backward();
  for (size_t i = 0; i < p.size(); ++i) {
    V twice = to_double(once[i]);
    for (double& x : twice) x *= 2.0;
    EXPECT_TRUE(within(p.name(i) + " twice", host(d, p.grad(i)), twice, limit_of(twice)));
  }
  p.zero_grad();
  backward();
}

constexpr int64_t kP = 3, kC = 6, kW = 8, kB = 2;

GeneratorConfig tiny(GeneratorKind kind, int64_t noise) {
  GeneratorConfig c;
  c.kind = kind;
  c.prompt_length = kP;
  c.width = kW;
  c.hidden = 5;
  c.blocks = 2;
  c.noise_dim = noise;
  return c;
}

struct GeneratorFixture {
  std::vector<float> features = random_normal(7 * kC, 21, 3.0f), noise = random_normal(kB * 2, 22);
  OwnedTensor features_d, noise_d;
  GeneratorInput input;
  // Inputs of 4 and 2 rows; row 4 belongs to nobody.
  GeneratorFixture(Device& d, bool with_noise)
      : features_d(owned(d, features, {7, kC})), noise_d(owned(d, noise, {kB, 2})) {
    input.batch = kB;
    input.features = features_d;
    input.spans = {{.begin = 0, .count = 4}, {.begin = 5, .count = 2}};
    if (with_noise) input.noise = noise_d;
  }
  std::vector<reference::Reach> reach() const { return {{0, kP, 0, 4, false}, {kP, kP, 5, 2, false}}; }
};

TEST_P(Networks, StepZeroIsExactlyTheHardPrompt) {
  const auto p0 = random_normal(kP * kC, 5, 0.1f);
  for (const GeneratorKind kind : {GeneratorKind::kStatic, GeneratorKind::kMlp, GeneratorKind::kConditional})
    for (const int64_t noise : {int64_t{0}, int64_t{2}}) {
      const auto g = Generator::make(device(), tiny(kind, noise), kC, p0, 9);
      const GeneratorFixture f(device(), g->noise_dim() > 0);
      const auto prompt = host(device(), g->forward(f.input));
      const int64_t groups = g->prompts(kB);
      ASSERT_EQ(static_cast<int64_t>(prompt.size()), groups * kP * kC);
      for (int64_t b = 0; b < groups; ++b)
        EXPECT_TRUE(bitwise_equal(
            "prompt " + std::to_string(b),
            std::vector<float>(prompt.begin() + b * kP * kC, prompt.begin() + (b + 1) * kP * kC), p0));
    }
}

// The same key gives the same network, another key another one.
TEST_P(Networks, AreDrawnFromTheirKey) {
  const auto p0 = random_normal(kP * kC, 5, 0.1f);
  const auto config = tiny(GeneratorKind::kConditional, 2);
  const auto a = Generator::make(device(), config, kC, p0, 9),
             b = Generator::make(device(), config, kC, p0, 9),
             c = Generator::make(device(), config, kC, p0, 10);
  bool differs = false;
  for (size_t i = 0; i < a->parameters().size(); ++i) {
    const auto x = host(device(), a->parameters().value(i));
    EXPECT_TRUE(bitwise_equal(a->parameters().name(i), x, host(device(), b->parameters().value(i))));
    differs |= x != host(device(), c->parameters().value(i));
  }
  EXPECT_TRUE(differs);
}

TEST_P(Networks, MlpGeneratorMatchesTruthInValueAndGradient) {
  for (const bool noise : {false, true}) {
    auto g = Generator::make(device(), tiny(GeneratorKind::kMlp, noise ? 2 : 0), kC,
                             random_normal(kP * kC, 5, 0.1f), 9);
    randomise(device(), g->parameters(), 100);
    const GeneratorFixture f(device(), noise);
    const size_t groups = noise ? kB : 1;
    const V z = noise ? to_double(f.noise) : V{};
    const auto p = values_of(device(), g->parameters());
    const V want = reference::mlp_generator(p, z, groups, kW);
    EXPECT_TRUE(within("prompt", host(device(), g->forward(f.input)), want, limit_of(want)));
    const auto dy = random_normal(static_cast<int64_t>(want.size()), 31);
    const OwnedTensor dy_d = owned(device(), dy, {static_cast<int64_t>(groups) * kP, kC});
    expect_accumulates(device(), g->parameters(), [&] { g->backward(f.input, dy_d); });
    check_parameters(device(), g->parameters(), [&](const reference::Parameters<Complex>& q) {
      return dot(reference::mlp_generator(q, to_complex(z), groups, kW), to_double(dy));
    });
  }
}

TEST_P(Networks, ConditionalGeneratorMatchesTruthInValueAndGradient) {
  for (const bool noise : {false, true}) {
    auto g = Generator::make(device(), tiny(GeneratorKind::kConditional, noise ? 2 : 0), kC,
                             random_normal(kP * kC, 5, 0.1f), 9);
    randomise(device(), g->parameters(), 200);
    const GeneratorFixture f(device(), noise);
    const V z = noise ? to_double(f.noise) : V{}, features = to_double(f.features);
    const auto forward = [&](const auto& q, const auto& fs, const auto& zs) {
      return reference::conditional_generator(q, fs, zs, f.reach(), kB, kW, kC, 4, 2);
    };
    const V want = forward(values_of(device(), g->parameters()), features, z);
    EXPECT_TRUE(within("prompt", host(device(), g->forward(f.input)), want, limit_of(want)));
    const auto dy = random_normal(kB * kP * kC, 31);
    const OwnedTensor dy_d = owned(device(), dy, {kB * kP, kC});
    expect_accumulates(device(), g->parameters(), [&] { g->backward(f.input, dy_d); });
    check_parameters(device(), g->parameters(), [&](const reference::Parameters<Complex>& q) {
      return dot(forward(q, to_complex(features), to_complex(z)), to_double(dy));
    });
  }
}

TEST_P(Networks, ConditionalPromptDependsOnItsOwnInputOnly) {
  auto g =
      Generator::make(device(), tiny(GeneratorKind::kConditional, 0), kC, random_normal(kP * kC, 5, 0.1f), 9);
  randomise(device(), g->parameters(), 200);
  GeneratorFixture f(device(), false);
  const auto before = host(device(), g->forward(f.input));
  auto changed = f.features;
  for (size_t i = 5 * kC; i < 7 * kC; ++i) changed[i] = -changed[i] + 0.3f;  // the second input's rows
  f.features_d = owned(device(), changed, {7, kC});
  f.input.features = f.features_d;
  const auto after = host(device(), g->forward(f.input));
  for (size_t i = 0; i < kP * kC; ++i) EXPECT_EQ(before[i], after[i]);
  EXPECT_FALSE(std::equal(before.begin() + kP * kC, before.end(), after.begin() + kP * kC));
}

const std::vector<int32_t> kOffsets = {0, 3, 4, 9};
DiscriminatorConfig tiny_discriminator() {
  DiscriminatorConfig c;
  c.width = kW;
  return c;
}

TEST_P(Networks, DiscriminatorMatchesTruthInValueParametersAndFeatures) {
  Discriminator net(device(), tiny_discriminator(), kC, 4);
  randomise(device(), net.parameters(), 300);
  const auto f = random_normal(9 * kC, 41), dd = random_normal(3, 42), df0 = random_normal(9 * kC, 43);
  const std::vector<int> offsets(kOffsets.begin(), kOffsets.end());
  const OwnedTensor f_d = owned(device(), f, {9, kC}), dd_d = owned(device(), dd, {3});
  const V fd = to_double(f);
  const auto truth = [&](const auto& q, const auto& x) {
    return reference::discriminator(q, x, offsets, kW, kC, 4);
  };
  const auto p = values_of(device(), net.parameters());
  const V want = truth(p, fd);
  EXPECT_TRUE(within("D", host(device(), net.forward(f_d, kOffsets)), want, limit_of(want)));
  EXPECT_EQ(net.token_logits().count(), 9);
  expect_accumulates(device(), net.parameters(), [&] { net.backward(f_d, dd_d, {}); });
  check_parameters(device(), net.parameters(), [&](const reference::Parameters<Complex>& q) {
    return dot(truth(q, to_complex(fd)), to_double(dd));
  });
  // The features' gradient is added to what is there; with gradients off it is all that happens.
  OwnedTensor df = owned(device(), df0, {9, kC});
  const auto kept = host(device(), net.parameters().grad(0));
  net.parameters().set_gradients(false);
  net.backward(f_d, dd_d, df);
  net.parameters().set_gradients(true);
  V df_want =
      complex_step_gradient(fd, [&](const VC& v) { return dot(truth(widened(p), v), to_double(dd)); });
  const double limit = limit_of(df_want) + 8.0 * kUnitF32;
  for (size_t i = 0; i < df_want.size(); ++i) df_want[i] += static_cast<double>(df0[i]);
  EXPECT_TRUE(within("df", host(device(), df), df_want, limit));
  EXPECT_TRUE(bitwise_equal("in.weight", host(device(), net.parameters().grad(0)), kept));
}

TEST_P(Networks, DiscriminatorIsCausalAndAnswersDoNotMix) {
  Discriminator net(device(), tiny_discriminator(), kC, 4);
  randomise(device(), net.parameters(), 300);
  auto f = random_normal(9 * kC, 41);
  net.forward(owned(device(), f, {9, kC}), kOffsets);
  const auto before = host(device(), net.token_logits());
  for (size_t j = 0; j < kC; ++j) f[6 * kC + j] += 1.0f;  // the third of the last answer's five rows
  net.forward(owned(device(), f, {9, kC}), kOffsets);
  const auto after = host(device(), net.token_logits());
  for (size_t r = 0; r < 9; ++r) EXPECT_EQ(before[r] == after[r], r < 6) << r;
}

TEST_P(Networks, JudgeMatchesTruthInValueAndGradient) {
  Judge judge(device(), tiny_discriminator(), 5, 4, 8);
  randomise(device(), judge.table(), 400);
  randomise(device(), judge.head().parameters(), 500);
  const std::vector<int32_t> tokens = {4, 0, 0, 2, 1,
                                       1, 3, 1, 4};  // repeats; the last answer outruns 4 positions
  const std::vector<int> places = {0, 1, 2, 0, 0, 1, 2, 3, 3}, offsets(kOffsets.begin(), kOffsets.end());
  const auto dd = random_normal(3, 42);
  const auto truth = [&](const auto& table, const auto& head) {
    const auto f = reference::sum_of(reference::gather_rows(table.at("embedding"), tokens, kW),
                                     reference::gather_rows(table.at("position"), places, kW));
    return reference::discriminator(head, f, offsets, kW, kW, 4);
  };
  const auto table = values_of(device(), judge.table()),
             head = values_of(device(), judge.head().parameters());
  const V want = truth(table, head);
  EXPECT_TRUE(within("D", host(device(), judge.forward(tokens, kOffsets)), want, limit_of(want)));
  judge.zero_grad();
  judge.backward(owned(device(), dd, {3}));
  check_parameters(device(), judge.table(), [&](const reference::Parameters<Complex>& q) {
    return dot(truth(q, widened(head)), to_double(dd));
  });
  check_parameters(device(), judge.head().parameters(), [&](const reference::Parameters<Complex>& q) {
    return dot(truth(widened(table), q), to_double(dd));
  });
  if (!host_sees_values()) return;
  EXPECT_THROW(judge.forward({0, 5}, {0, 2}), Error);
  EXPECT_THROW(judge.forward({0, 1}, {0, 3}), Error);
}

// Pairs of answers of 2 to 6 feature rows. `shift`: how far references lie from fakes; `flip`: labels are
// random.
struct Pairs {
  std::vector<float> features;
  std::vector<int32_t> offsets = {0};  // references, then fakes
};
Pairs draw_pairs(int64_t count, uint64_t seed, float shift, bool flip, bool lengths_only) {
  Pairs p;
  const auto coin = random_ints(count, seed + 1, 0, 1), length = random_ints(2 * count, seed + 2, 2, 6);
  for (int64_t side = 0; side < 2; ++side)
    for (int64_t i = 0; i < count; ++i) {
      const bool reference = flip ? (coin[static_cast<size_t>(i)] == side) : side == 0;
      int64_t n = length[static_cast<size_t>(side * count + i)];
      if (lengths_only) n += reference ? 4 : 0;
      auto rows = lengths_only ? std::vector<float>(static_cast<size_t>(n * kC), 1.0f)
                               : random_normal(n * kC, seed + 10 + static_cast<uint64_t>(side * count + i));
      if (!lengths_only)
        for (size_t r = 0; r < rows.size(); r += kC) rows[r] += reference ? shift : -shift;
      p.features.insert(p.features.end(), rows.begin(), rows.end());
      p.offsets.push_back(p.offsets.back() + static_cast<int32_t>(n));
    }
  return p;
}

struct Scores {
  std::vector<float> reference, fake;
};
Scores score(Device& d, Discriminator& net, const Pairs& p) {
  const OwnedTensor h = owned(d, p.features, {p.offsets.back(), kC});
  const auto all = host(d, net.forward(Discriminator::normalise(d, h), p.offsets));
  const auto half = static_cast<std::ptrdiff_t>(all.size() / 2);
  return {{all.begin(), all.begin() + half}, {all.begin() + half, all.end()}};
}

// Trains a small discriminator on `train` for a while: relativistic loss, noisy copies as in the real thing.
std::unique_ptr<Discriminator> trained(Device& d, const Pairs& train) {
  auto net = std::make_unique<Discriminator>(d, tiny_discriminator(), kC, 4);
  const int64_t pairs = static_cast<int64_t>(train.offsets.size()) / 2, n = train.offsets.back();
  const float sigma = 0.07f;
  // One pass over clean and noisy rows: references, fakes, and both again with noise.
  std::vector<int32_t> offsets = train.offsets;
  for (size_t i = 1; i < train.offsets.size(); ++i) offsets.push_back(n + train.offsets[i]);
  OwnedTensor f(d, DType::kF32, {2 * n, kC}), loss = zeros(d, {1}), seeds = zeros(d, {4 * pairs});
  d.copy(f.view().rows(0, n), Discriminator::normalise(d, owned(d, train.features, {n, kC})));
  const AdamSettings adam{.lr = 1e-2f, .beta1 = 0.0f, .beta2 = 0.99f};
  for (uint64_t step = 0; step < 80; ++step) {
    add_noise(
        d, {.x = f.view().rows(0, n), .sigma = sigma, .key = 5, .counter = step, .y = f.view().rows(n, n)});
    const OwnedTensor scores = net->forward(f, offsets);
    const ConstTensor s = scores.view().view({4 * pairs});
    const Tensor g = seeds.view();
    pair_loss(d, {.dr = s.rows(0, pairs),
                  .df = s.rows(pairs, pairs),
                  .dr2 = s.rows(2 * pairs, pairs),
                  .df2 = s.rows(3 * pairs, pairs),
                  .lam = 0.1f / (2.0f * sigma * sigma),
                  .loss = loss,
                  .ddr = g.rows(0, pairs),
                  .ddf = g.rows(pairs, pairs),
                  .ddr2 = g.rows(2 * pairs, pairs),
                  .ddf2 = g.rows(3 * pairs, pairs)});
    net->parameters().zero_grad();
    net->backward(f, seeds, {});
    net->parameters().step(adam);
  }
  return net;
}

constexpr int64_t kHeldOut = 600;
const double kFourErrors = 4.0 * 0.5 / std::sqrt(static_cast<double>(kHeldOut));

TEST_P(Networks, DiscriminatorLearnsWhatCanBeSeparated) {
  const auto net = trained(device(), draw_pairs(64, 1000, 0.7f, false, false));
  const Scores s = score(device(), *net, draw_pairs(kHeldOut, 90000, 0.7f, false, false));
  EXPECT_GT(pair_accuracy(s.reference, s.fake), 0.9);
}

TEST_P(Networks, DiscriminatorOnShuffledLabelsStaysAtHalf) {
  const auto net = trained(device(), draw_pairs(64, 1000, 0.7f, true, false));
  const Scores s = score(device(), *net, draw_pairs(kHeldOut, 90000, 0.7f, true, false));
  EXPECT_NEAR(pair_accuracy(s.reference, s.fake), 0.5, kFourErrors);
}

// References are four rows longer than fakes and every row is the same: the score is a mean of equal logits,
// so length alone moves it by rounding only, far below what the loss could use.
TEST_P(Networks, DiscriminatorCannotSeeLength) {
  const auto net = trained(device(), draw_pairs(64, 1000, 0.0f, false, true));
  const Scores s = score(device(), *net, draw_pairs(kHeldOut, 90000, 0.0f, false, true));
  double accuracy = 0.0;
  for (size_t i = 0; i < s.reference.size(); ++i) {
    const double gap = static_cast<double>(s.reference[i]) - static_cast<double>(s.fake[i]);
    accuracy += (std::abs(gap) < 1e-4 ? 0.5
                 : gap > 0.0          ? 1.0
                                      : 0.0) /
                static_cast<double>(s.reference.size());
  }
  EXPECT_NEAR(accuracy, 0.5, 1e-9);
}

// Words that only references use: a judge finds them; on shuffled labels it stays at a half.
TEST_P(Networks, JudgeLearnsWordsAndNothingFromShuffledLabels) {
  for (const bool shuffled : {false, true}) {
    Judge judge(device(), tiny_discriminator(), 12, 16, 8);
    const auto draw = [&](int64_t pairs, uint64_t seed, std::vector<int32_t>& tokens,
                          std::vector<int32_t>& offsets) {
      const auto coin = random_ints(pairs, seed, 0, 1), length = random_ints(2 * pairs, seed + 1, 3, 6);
      offsets = {0};
      tokens.clear();
      for (int64_t side = 0; side < 2; ++side)
        for (int64_t i = 0; i < pairs; ++i) {
          const bool reference = shuffled ? coin[static_cast<size_t>(i)] == side : side == 0;
          const int32_t n = length[static_cast<size_t>(side * pairs + i)];
          for (const int32_t w : random_ints(n, seed + 2 + static_cast<uint64_t>(side * pairs + i), 0, 7))
            tokens.push_back(reference ? w + 4 : w);
          offsets.push_back(offsets.back() + n);
        }
    };
    const int64_t pairs = 64;
    std::vector<int32_t> tokens, offsets;
    draw(pairs, 2000, tokens, offsets);
    OwnedTensor loss = zeros(device(), {1}), seeds = zeros(device(), {2 * pairs});
    for (int step = 0; step < 60; ++step) {
      const OwnedTensor scores = judge.forward(tokens, offsets);
      const ConstTensor s = scores.view().view({2 * pairs});
      pair_loss(device(), {.dr = s.rows(0, pairs),
                           .df = s.rows(pairs, pairs),
                           .dr2 = {},
                           .df2 = {},
                           .loss = loss,
                           .ddr = seeds.view().rows(0, pairs),
                           .ddf = seeds.view().rows(pairs, pairs),
                           .ddr2 = {},
                           .ddf2 = {}});
      judge.zero_grad();
      judge.backward(seeds);
      judge.step({.lr = 1e-2f, .beta1 = 0.5f, .beta2 = 0.99f});
    }
    draw(kHeldOut, 700000, tokens, offsets);
    const auto all = host(device(), judge.forward(tokens, offsets));
    const double accuracy = pair_accuracy({all.data(), kHeldOut}, {all.data() + kHeldOut, kHeldOut});
    if (shuffled) {
      EXPECT_NEAR(accuracy, 0.5, kFourErrors);
    } else {
      EXPECT_GT(accuracy, 0.9);
    }
  }
}

TEST_P(Networks, SpectralNormBringsEveryMatrixToOneOrBelow) {
  Discriminator net(device(), tiny_discriminator(), kC, 4);
  randomise(device(), net.parameters(), 300);
  for (size_t i = 0; i < net.parameters().size(); ++i) {  // well above 1, so that every matrix must shrink
    const Tensor w = net.parameters().value(i);
    if (w.rank() == 2)
      axpy(device(), {.x = owned(device(), host(device(), w), w.shape()), .a = 2.0f, .y = w});
  }
  net.normalise_spectrum();
  for (size_t i = 0; i < net.parameters().size(); ++i) {
    const Tensor w = net.parameters().value(i);
    if (w.rank() != 2 || w.dim(0) < 2) continue;
    const auto m = host(device(), w);
    const size_t rows = static_cast<size_t>(w.dim(0)), cols = static_cast<size_t>(w.dim(1));
    V v(cols, 1.0), u(rows);
    double sigma = 0.0;
    for (int k = 0; k < 500; ++k) {  // power iteration to the end
      double square = 0.0;
      for (size_t r = 0; r < rows; ++r) {
        u[r] = 0.0;
        for (size_t c = 0; c < cols; ++c) u[r] += static_cast<double>(m[r * cols + c]) * v[c];
        square += u[r] * u[r];
      }
      sigma = std::sqrt(square);
      double norm = 0.0;
      for (size_t c = 0; c < cols; ++c) {
        v[c] = 0.0;
        for (size_t r = 0; r < rows; ++r) v[c] += static_cast<double>(m[r * cols + c]) * u[r];
        norm += v[c] * v[c];
      }
      for (double& x : v) x /= std::sqrt(norm);
    }
    // Estimates from below by few iterations: 1.1 allows for what they miss, a matrix left alone is at 3 or
    // more.
    EXPECT_LE(sigma, 1.1) << net.parameters().name(i);
  }
}

}  // namespace
}  // namespace gantrain
