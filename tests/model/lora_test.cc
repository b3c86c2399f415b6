// A Llama with adapters against itself: off is the base, merged weights say the same, and every way to
// compute the same thing gives the same thing.
#include <gtest/gtest.h>

#include <cmath>

#include "core/ops.h"
#include "model/generate.h"
#include "model/runner.h"
#include "tests/reference/lora.h"
#include "tests/support/devices.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"

namespace gantrain {
namespace {

using testing::MemoryWeights;
using testing::tiny_config;

LoraShape all_layers(int64_t rank = 5) {
  LoraShape s;
  s.rank = rank;
  s.alpha = 10.0;
  s.targets.fill(true);
  return s;
}
LoraShape q_and_v(int64_t rank = 8) {
  LoraShape s = all_layers(rank);
  s.targets = {true, false, true, false, false, false, false};
  return s;
}

struct Model {
  std::unique_ptr<Device> device;
  std::shared_ptr<MemoryWeights> weights;
  std::unique_ptr<const Llama> llama;
  explicit Model(DType dtype = DType::kF32, int threads = 2)
      : device(test::make_cpu(threads)),
        weights(std::make_shared<MemoryWeights>(tiny_config())),
        llama(Llama::load(*device, weights, dtype)) {}
};

// Random values; b: the deviation of B's.
std::unique_ptr<OwnedLora> random_adapter(Device& device, const LoraShape& shape, float b) {
  auto lora = std::make_unique<OwnedLora>(device, tiny_config(), shape, true);
  for (size_t l = 0; l < 3; ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      if (!shape.targets[t]) continue;
      const Tensor at = lora->a(l, t), bt = lora->b(l, t);
      const float deviation = 1.0f / std::sqrt(static_cast<float>(at.dim(1)));
      device.copy_in(at, test::random_normal(at.count(), 100 + 10 * l + t, deviation).data());
      device.copy_in(bt, test::random_normal(bt.count(), 200 + 10 * l + t, b).data());
    }
  return lora;
}

std::vector<int32_t> random_tokens(int64_t n, uint64_t seed) { return test::random_ints(n, seed, 0, 96); }
std::vector<std::vector<int32_t>> three_sequences() {
  return {random_tokens(7, 1), random_tokens(19, 2), random_tokens(2, 3)};
}

struct LossAndGradients {
  double loss = 0;
  std::vector<std::vector<float>> gradients;  // da and db of each layer and target
};
std::vector<std::vector<float>> gradients_of(Device& device, const LoraAdapter& lora) {
  std::vector<std::vector<float>> all;
  for (const auto& layer : lora.layers)
    for (const LoraAdapter::Part& p : layer)
      for (const Tensor& g : {p.da, p.db})
        if (!g.empty()) all.push_back(download(device, g.view({g.count()})));
  return all;
}
void clear_gradients(Device& device, const LoraAdapter& lora) {
  for (const auto& layer : lora.layers)
    for (const LoraAdapter::Part& p : layer)
      for (const Tensor& g : {p.da, p.db})
        if (!g.empty()) device.fill_zero(g);
}

// Cross-entropy of the tokens after the first of each sequence over `total` (0: their number).
double add_loss(Runner& runner, const std::vector<std::vector<int32_t>>& sequences, Saving saving,
                const LoraAdapter* lora, double total = 0) {
  PackedBatch batch;
  HeadRequest request;
  for (const auto& tokens : sequences) {
    const int32_t s = batch.add(-1, tokens);
    for (size_t t = 1; t < tokens.size(); ++t) {
      request.rows.push_back(batch.segment(s).row_begin + static_cast<int32_t>(t) - 1);
      request.labels.push_back(tokens[t]);
    }
  }
  if (total == 0) total = static_cast<double>(request.rows.size());
  request.ce_weight.assign(request.rows.size(), static_cast<float>(1.0 / total));
  runner.forward(batch, {}, saving, -1, lora);
  const bool backward = saving != Saving::kNothing;
  if (backward) runner.begin_backward();
  double loss = 0;
  for (const float nll : runner.head(request, backward).nll) loss += nll / total;
  if (backward) runner.backward();
  return loss;
}
LossAndGradients loss_of(Runner& runner, const std::vector<std::vector<int32_t>>& sequences, Saving saving,
                         const LoraAdapter& lora) {
  clear_gradients(runner.device(), lora);
  LossAndGradients out;
  out.loss = add_loss(runner, sequences, saving, &lora);
  out.gradients = gradients_of(runner.device(), lora);
  return out;
}

double largest(const std::vector<float>& v) {
  double m = 0;
  for (const float x : v) m = std::max(m, std::abs(static_cast<double>(x)));
  return m;
}
// f32 throughout; sums of the same terms in another grouping: a few dozen roundings of the largest value.
void expect_close(const std::vector<float>& a, const std::vector<float>& b, double share = 2e-5) {
  ASSERT_EQ(a.size(), b.size());
  const double limit = share * std::max(largest(a), 1e-6);
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_TRUE(std::abs(static_cast<double>(a[i]) - b[i]) <= limit)
        << "index " << i << ": " << a[i] << ", " << b[i];
}

TEST(Lora, ZeroBIsTheBaseExactly) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Model m(dtype);
    Runner runner(*m.device, *m.llama);
    for (const LoraShape& shape : {q_and_v(), all_layers()}) {
      const auto lora = random_adapter(*m.device, shape, 0.0f);
      EXPECT_EQ(add_loss(runner, three_sequences(), Saving::kNothing, nullptr),
                add_loss(runner, three_sequences(), Saving::kNothing, &lora->adapter()));
      const auto other = random_adapter(*m.device, shape, 0.3f);
      EXPECT_NE(add_loss(runner, three_sequences(), Saving::kNothing, nullptr),
                add_loss(runner, three_sequences(), Saving::kNothing, &other->adapter()));
    }
  }
}

TEST(Lora, EqualsMergedWeights) {
  Model m;
  const LoraShape shape = all_layers();
  const auto lora = random_adapter(*m.device, shape, 0.3f);
  auto merged = std::make_shared<MemoryWeights>(tiny_config());
  for (size_t l = 0; l < 3; ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      std::vector<float>& w = merged->values(lora_module(l, t) + ".weight");
      const auto flat = [&](Tensor x) { return test::to_double(download(*m.device, x.view({x.count()}))); };
      const std::vector<double> sum = reference::merged(
          test::to_double(w), flat(lora->a(l, t)), flat(lora->b(l, t)), static_cast<double>(shape.scale()), 0,
          static_cast<size_t>(lora_dims(tiny_config(), t).in), static_cast<size_t>(shape.rank));
      w.assign(sum.begin(), sum.end());
    }
  const auto other = Llama::load(*m.device, merged, DType::kF32);
  Runner with(*m.device, *m.llama), without(*m.device, *other);
  const double a = add_loss(with, three_sequences(), Saving::kNothing, &lora->adapter()),
               b = add_loss(without, three_sequences(), Saving::kNothing, nullptr);
  EXPECT_TRUE(std::abs(a - b) <= 1e-5 * b) << a << ", " << b;
  expect_close(download(*m.device, with.output()), download(*m.device, without.output()));
}

// The loss along a random direction of all of A and B, by central differences in f32: coarse (rounding of the
// loss over the step is some 1e-3 of it), but nothing of the engine's backward is in it.
TEST(Lora, GradientMatchesCentralDifference) {
  Model m;
  Runner runner(*m.device, *m.llama);
  const auto lora = random_adapter(*m.device, all_layers(), 0.3f);
  const LossAndGradients at = loss_of(runner, three_sequences(), Saving::kAll, lora->adapter());
  std::vector<std::vector<float>> values, direction;
  double expected = 0;
  size_t i = 0;
  for (size_t l = 0; l < 3; ++l)
    for (size_t t = 0; t < kLoraTargets; ++t)
      for (const Tensor& x : {lora->a(l, t), lora->b(l, t)}) {
        values.push_back(download(*m.device, x.view({x.count()})));
        direction.push_back(test::random_normal(x.count(), 300 + i, x.dim(0) == 5 ? 0.1f : 0.3f));
        for (size_t j = 0; j < direction[i].size(); ++j)
          expected += static_cast<double>(direction[i][j]) * at.gradients[i][j];
        ++i;
      }
  const float h = 1e-3f;
  double loss[2];
  for (const int side : {0, 1}) {
    i = 0;
    for (size_t l = 0; l < 3; ++l)
      for (size_t t = 0; t < kLoraTargets; ++t)
        for (const Tensor& x : {lora->a(l, t), lora->b(l, t)}) {
          std::vector<float> moved = values[i];
          for (size_t j = 0; j < moved.size(); ++j) moved[j] += (side ? h : -h) * direction[i][j];
          m.device->copy_in(x, moved.data());
          ++i;
        }
    loss[side] = add_loss(runner, three_sequences(), Saving::kNothing, &lora->adapter());
  }
  const double measured = (loss[1] - loss[0]) / (2 * static_cast<double>(h));
  EXPECT_TRUE(std::abs(measured - expected) <= 1e-2 * std::abs(expected)) << measured << " " << expected;
}

TEST(Lora, RecomputeIsBitwiseTheSame) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const LoraShape& shape : {q_and_v(), all_layers()}) {
      Model m(dtype);
      Runner runner(*m.device, *m.llama);
      const auto lora = random_adapter(*m.device, shape, 0.3f);
      const LossAndGradients all = loss_of(runner, three_sequences(), Saving::kAll, lora->adapter());
      for (const Saving saving : {Saving::kButGateUp, Saving::kButMlp, Saving::kLayerInput}) {
        const LossAndGradients again = loss_of(runner, three_sequences(), saving, lora->adapter());
        EXPECT_EQ(all.loss, again.loss);
        EXPECT_EQ(all.gradients, again.gradients);
      }
      for (const auto& g : all.gradients) EXPECT_GT(largest(g), 1e-6);
    }
}

TEST(Lora, OneAndTwoThreadsGiveTheSameBits) {
  std::vector<std::vector<std::vector<float>>> gradients;
  for (const int threads : {1, 2}) {
    Model m(DType::kF32, threads);
    Runner runner(*m.device, *m.llama);
    const auto lora = random_adapter(*m.device, all_layers(), 0.3f);
    gradients.push_back(loss_of(runner, three_sequences(), Saving::kAll, lora->adapter()).gradients);
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

TEST(Lora, PackedEqualsSingleAndAccumulatedEqualsWhole) {
  Model m;
  Runner runner(*m.device, *m.llama);
  const auto lora = random_adapter(*m.device, all_layers(), 0.3f);
  const auto sequences = three_sequences();
  const LossAndGradients whole = loss_of(runner, sequences, Saving::kAll, lora->adapter());
  double tokens = 0, loss = 0;
  for (const auto& s : sequences) tokens += static_cast<double>(s.size()) - 1;
  clear_gradients(*m.device, lora->adapter());
  for (const auto& s : sequences) loss += add_loss(runner, {s}, Saving::kAll, &lora->adapter(), tokens);
  const auto sum = gradients_of(*m.device, lora->adapter());
  EXPECT_TRUE(std::abs(whole.loss - loss) <= 1e-6 * loss);
  for (size_t i = 0; i < sum.size(); ++i) expect_close(whole.gradients[i], sum[i]);
}

TEST(Lora, TeacherForcedLogitsEqualDecodedLogits) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Model m(dtype);
    Runner runner(*m.device, *m.llama);
    const auto lora = random_adapter(*m.device, all_layers(), 0.3f);
    const std::vector<int32_t> context = random_tokens(6, 9);
    const std::vector<GenerationRequest> requests{
        {.prompt_first = 0, .prompt_count = 0, .context = context, .keys = {11, 12, 13}}};
    SamplingParams params;
    params.max_new = 9;
    const auto answers = generate(*m.device, *m.llama, {}, requests, params, 128, {}, &lora->adapter());
    const auto base = generate(*m.device, *m.llama, {}, requests, params);
    EXPECT_NE(answers[0].logp, base[0].logp);
    for (const GeneratedSequence& answer : answers) {
      PackedBatch batch;
      std::vector<int32_t> tokens = context;
      tokens.insert(tokens.end(), answer.tokens.begin(), answer.tokens.end());
      const int32_t s = batch.add(-1, tokens);
      HeadRequest request;
      for (size_t t = 0; t < answer.tokens.size(); ++t) {
        request.rows.push_back(batch.segment(s).row_begin + static_cast<int32_t>(context.size() + t) - 1);
        request.labels.push_back(answer.tokens[t]);
      }
      runner.forward(batch, {}, Saving::kNothing, -1, &lora->adapter());
      const HeadResult result = runner.head(request, false);
      // f32: another order of sums, 1e-5 of a log-probability of ~5. bf16: a rounding of 2^-8 may fall the
      // other way.
      for (size_t t = 0; t < answer.tokens.size(); ++t)
        EXPECT_TRUE(std::abs(result.nll[t] + answer.logp[t]) <= (dtype == DType::kF32 ? 1e-4 : 2e-2))
            << t << ": " << result.nll[t];
    }
  }
}

// A layer more keeps z of its adapters more, R numbers a row each, and nothing else.
TEST(Lora, BackwardSavesRankNumbersARow) {
  Model m;
  PackedBatch batch;
  batch.add(-1, random_tokens(64, 1));
  for (const LoraShape& shape : {q_and_v(8), all_layers(16)}) {
    const OwnedLora lora(*m.device, tiny_config(), shape, true);
    const auto bytes = [&](int layers, const LoraAdapter* adapter) {
      Arena counting;
      take_activations(counting, *m.device, *m.llama, 64, Saving::kAll, layers, batch.plan(), adapter);
      return counting.peak();
    };
    int64_t targets = 0;
    for (const bool t : shape.targets) targets += t;
    EXPECT_EQ(bytes(3, &lora.adapter()) - bytes(1, &lora.adapter()) - (bytes(3, nullptr) - bytes(1, nullptr)),
              2 * targets * 64 * shape.rank * 4);
  }
}

TEST(Lora, NoPathWritesTheBase) {
  Model m;
  Runner runner(*m.device, *m.llama);
  const uint64_t before = m.llama->memory_hash();
  const auto lora = random_adapter(*m.device, all_layers(), 0.3f);
  loss_of(runner, three_sequences(), Saving::kAll, lora->adapter());
  EXPECT_EQ(m.llama->memory_hash(), before);
}

TEST(Lora, Scales) {
  LoraShape s = q_and_v(16);
  s.alpha = 8.0;
  EXPECT_EQ(s.scale(), 0.5f);
  s.rslora = true;
  EXPECT_EQ(s.scale(), 2.0f);
  s.rank = 0;
  EXPECT_THROW(check_lora(s, "here"), Error);
  s.rank = 4;
  s.targets = {};
  EXPECT_THROW(check_lora(s, "here"), Error);
}

}  // namespace
}  // namespace gantrain
