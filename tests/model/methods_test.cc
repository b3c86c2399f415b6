// A Llama with a prefix, with bottlenecks and with trained weights, against itself: decoding is reading, bf16
// follows f32, packed is apart, and only what is trained changes.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/ops.h"
#include "model/adapters/owned.h"
#include "model/adapters/trained_weights.h"
#include "model/generate.h"
#include "model/runner.h"
#include "tests/support/devices.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"

namespace gantrain {
namespace {

using testing::MemoryWeights;
using testing::tiny_config;

LlamaConfig with_biases(bool tied) {
  LlamaConfig c = tiny_config();
  c.tie_word_embeddings = tied;
  c.attention_bias = c.mlp_bias = !tied;
  return c;
}

struct Model {
  std::unique_ptr<Device> device = test::make_cpu(2);
  std::unique_ptr<const Llama> llama;
  explicit Model(DType dtype = DType::kF32, const LlamaConfig& config = tiny_config())
      : llama(Llama::load(*device, std::make_shared<MemoryWeights>(config), dtype)) {}
};

PeftAdapter prefix(int64_t rows = 5) {
  const LlamaConfig c = tiny_config();
  PeftAdapter a;
  a.type = kPrefixType;
  a.prefix = test::random_normal(rows * 2 * c.num_layers * c.num_kv_heads * c.head_dim, 3, 0.7f);
  return a;
}
PeftAdapter bottleneck() {
  const LlamaConfig c = tiny_config();
  PeftAdapter a;
  a.type = kBottleneckType;
  a.bottleneck = {.width = 7, .activation = Activation::kSilu, .attention = true, .mlp = true};
  a.bottlenecks.resize(static_cast<size_t>(c.num_layers));
  for (size_t l = 0; l < a.bottlenecks.size(); ++l)
    for (size_t place = 0; place < 2; ++place) {
      const uint64_t seed = 40 + 10 * l + 4 * place;
      a.bottlenecks[l][place] = {test::random_normal(7 * c.hidden_size, seed, 0.2f),
                                 test::random_normal(7, seed + 1, 0.2f),
                                 test::random_normal(c.hidden_size * 7, seed + 2, 0.2f),
                                 test::random_normal(c.hidden_size, seed + 3, 0.2f)};
    }
  return a;
}

std::vector<int32_t> random_tokens(int64_t n, uint64_t seed) { return test::random_ints(n, seed, 0, 96); }

// Cross-entropy of the tokens after the first of each sequence, summed over `total`; with Saving::kAll or
// kLayerInput gradients are added to the adapters' own.
double add_loss(Runner& runner, const std::vector<std::vector<int32_t>>& sequences, Saving saving,
                const Adapters& adapters, double total) {
  PackedBatch batch = batch_behind(adapters);
  HeadRequest request;
  for (const auto& tokens : sequences) {
    const int32_t s = batch.add(-1, tokens);
    for (size_t t = 1; t < tokens.size(); ++t) {
      request.rows.push_back(batch.segment(s).row_begin + static_cast<int32_t>(t) - 1);
      request.labels.push_back(tokens[t]);
    }
  }
  request.ce_weight.assign(request.rows.size(), static_cast<float>(1.0 / total));
  runner.forward(batch, {}, saving, -1, adapters);
  const bool backward = saving != Saving::kNothing;
  if (backward) runner.begin_backward();
  double loss = 0;
  for (const float nll : runner.head(request, backward).nll) loss += nll / total;
  if (backward) runner.backward();
  return loss;
}
const std::vector<std::vector<int32_t>>& sequences() {
  static const std::vector<std::vector<int32_t>> three{random_tokens(7, 1), random_tokens(19, 2),
                                                       random_tokens(2, 3)};
  return three;
}
constexpr double kScored = 6 + 18 + 1;

double norm(const std::vector<float>& v) {
  double s = 0;
  for (const float x : v) s += static_cast<double>(x) * x;
  return std::sqrt(s);
}
double distance(std::vector<float> a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b.at(i);
  return norm(a);
}

TEST(Methods, DecodingIsReading) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Model m(dtype);
    const OwnedAdapter keys(*m.device, tiny_config(), prefix(), false),
        narrow(*m.device, tiny_config(), bottleneck(), false);
    const OwnedWeights weights(*m.device, *m.llama);
    for (const Adapters& adapters : {keys.adapters(), narrow.adapters(), Adapters(&weights.weights())}) {
      Runner runner(*m.device, *m.llama);
      const std::vector<int32_t> context = random_tokens(6, 9);
      const std::vector<GenerationRequest> requests{
          {.prompt_first = 0, .prompt_count = 0, .context = context, .keys = {11, 12, 13}},
          {.prompt_first = 0, .prompt_count = 0, .context = random_tokens(3, 10), .keys = {14}}};
      SamplingParams params;
      params.max_new = 9;
      const auto answers = generate(*m.device, *m.llama, {}, requests, params, 128, {}, adapters);
      if (!adapters.weights) {
        EXPECT_NE(answers[0].logp, generate(*m.device, *m.llama, {}, requests, params)[0].logp);
      }
      for (size_t i = 0; i < answers.size(); ++i) {
        const GeneratedSequence& answer = answers[i];
        std::vector<int32_t> tokens = requests[i < 3 ? 0 : 1].context;
        const size_t given = tokens.size();
        tokens.insert(tokens.end(), answer.tokens.begin(), answer.tokens.end());
        PackedBatch batch = batch_behind(adapters);
        const int32_t s = batch.add(-1, tokens);
        HeadRequest request;
        for (size_t t = 0; t < answer.tokens.size(); ++t) {
          request.rows.push_back(batch.segment(s).row_begin + static_cast<int32_t>(given + t) - 1);
          request.labels.push_back(answer.tokens[t]);
        }
        runner.forward(batch, {}, Saving::kNothing, -1, adapters);
        const HeadResult result = runner.head(request, false);
        // f32: another order of sums, 1e-5 of a log-probability of ~5. bf16: a rounding of 2^-8 may fall the
        // other way.
        for (size_t t = 0; t < answer.tokens.size(); ++t)
          EXPECT_TRUE(std::abs(result.nll[t] + answer.logp[t]) <= (dtype == DType::kF32 ? 1e-4 : 2e-2))
              << t << ": " << result.nll[t];
      }
    }
  }
}

// Gradients over a packed batch are the sum of those of its sequences, recomputed layers give the same bits,
// and in bf16 they follow f32.
TEST(Methods, GradientsAreSumsOverTheBatch) {
  std::map<std::string, std::vector<float>> reference;  // f32's
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Model m(dtype);
    Runner runner(*m.device, *m.llama);
    for (const PeftAdapter& file : {prefix(), bottleneck()}) {
      const auto gradients = [&](Saving saving, bool apart) {
        const OwnedAdapter owned(*m.device, tiny_config(), file, true);
        if (apart)
          for (const auto& one : sequences()) add_loss(runner, {one}, saving, owned.adapters(), kScored);
        else
          add_loss(runner, sequences(), saving, owned.adapters(), kScored);
        return owned.gradients(*m.device);
      };
      const auto whole = gradients(Saving::kAll, false), again = gradients(Saving::kLayerInput, false),
                 parts = gradients(Saving::kAll, true);
      ASSERT_EQ(whole.size(), parts.size());
      for (size_t i = 0; i < whole.size(); ++i) {
        EXPECT_EQ(whole[i].values, again[i].values) << whole[i].name;
        EXPECT_GT(norm(whole[i].values), 0) << whole[i].name;
        // f32: sums of the same terms in another grouping. bf16: each row's gradients are rounded to 2^-8 on
        // the way, and a shared key's once more for each grouping.
        EXPECT_LE(distance(whole[i].values, parts[i].values),
                  (dtype == DType::kF32 ? 2e-5 : 2e-2) * norm(whole[i].values))
            << whole[i].name;
        if (dtype == DType::kF32) {
          reference[whole[i].name] = whole[i].values;
          continue;
        }
        // A dozen roundings of 2^-8 in a row.
        EXPECT_LE(distance(whole[i].values, reference.at(whole[i].name)),
                  0.05 * norm(reference.at(whole[i].name)))
            << whole[i].name;
      }
    }
  }
}

// Every weight's gradient along one direction is the loss's slope there: tied heads and others, with biases
// and without.
TEST(Methods, GradientsOfAllWeightsAreTheSlope) {
  for (const bool tied : {true, false}) {
    const LlamaConfig config = with_biases(tied);
    Model m(DType::kF32, config);
    Runner runner(*m.device, *m.llama);
    const OwnedWeights owned(*m.device, *m.llama);
    add_loss(runner, sequences(), Saving::kAll, &owned.weights(), kScored);
    const auto gradients = owned.gradients(*m.device);
    EXPECT_EQ(gradients.size(), MemoryWeights(config).tensors().size());
    for (const auto& g : gradients) {
      // Along the gradient itself, whose slope is its norm: f32 leaves few digits of any other.
      const double size = norm(g.values);
      ASSERT_GT(size, 0) << g.name;
      double loss[2];
      const double step = 0.02 / std::max(1.0, size);
      for (const int side : {0, 1}) {
        auto moved = std::make_shared<MemoryWeights>(config);
        std::vector<float>& w = moved->values(g.name);
        for (size_t i = 0; i < w.size(); ++i)
          w[i] += static_cast<float>((side ? step : -step) * static_cast<double>(g.values[i]) / size);
        const auto llama = Llama::load(*m.device, moved, DType::kF32);
        Runner other(*m.device, *llama);
        loss[side] = add_loss(other, sequences(), Saving::kNothing, {}, kScored);
      }
      // Central differences: the loss, of some 5, is exact to about 1e-6, and the third derivative bends the
      // rest.
      EXPECT_NEAR((loss[1] - loss[0]) / (2 * step), size, 1e-6 / step + 0.01 * size) << g.name;
    }
  }
}

// The same for each tensor of a prefix and of bottlenecks, all of them at a random place.
TEST(Methods, GradientsOfAdaptersAreTheSlope) {
  Model m;
  Runner runner(*m.device, *m.llama);
  for (PeftAdapter file : {prefix(), bottleneck()}) {
    const OwnedAdapter owned(*m.device, tiny_config(), file, true);
    add_loss(runner, sequences(), Saving::kAll, owned.adapters(), kScored);
    std::vector<std::vector<float>*> tensors;  // in the order of the gradients
    if (file.is_prefix()) tensors.push_back(&file.prefix);
    for (auto& layer : file.bottlenecks)
      for (BottleneckValues& v : layer)
        for (std::vector<float>* t : {&v.down, &v.down_bias, &v.up, &v.up_bias}) tensors.push_back(t);
    const auto gradients = owned.gradients(*m.device);
    ASSERT_EQ(gradients.size(), tensors.size());
    for (size_t g = 0; g < tensors.size(); ++g) {
      const std::vector<float> values = *tensors[g], &gradient = gradients[g].values;
      const double size = norm(gradient), step = 0.02 / std::max(1.0, size);
      ASSERT_EQ(values.size(), gradient.size());
      double loss[2];
      for (const int side : {0, 1}) {
        for (size_t i = 0; i < values.size(); ++i)
          (*tensors[g])[i] =
              values[i] + static_cast<float>((side ? step : -step) * static_cast<double>(gradient[i]) / size);
        const OwnedAdapter moved(*m.device, tiny_config(), file, false);
        loss[side] = add_loss(runner, sequences(), Saving::kNothing, moved.adapters(), kScored);
      }
      *tensors[g] = values;
      // As above.
      EXPECT_NEAR((loss[1] - loss[0]) / (2 * step), size, 1e-6 / step + 0.01 * size) << gradients[g].name;
    }
  }
}

TEST(Methods, RecomputedGradientsOfAllWeightsHaveTheSameBits) {
  Model m;
  Runner runner(*m.device, *m.llama);
  const uint64_t before = m.llama->memory_hash();
  const OwnedWeights one(*m.device, *m.llama), two(*m.device, *m.llama);
  const double a = add_loss(runner, sequences(), Saving::kAll, &one.weights(), kScored),
               b = add_loss(runner, sequences(), Saving::kLayerInput, &two.weights(), kScored);
  EXPECT_EQ(a, b);
  EXPECT_EQ(a, add_loss(runner, sequences(), Saving::kNothing, {}, kScored));  // the values are the base's
  const auto all = one.gradients(*m.device), again = two.gradients(*m.device);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i].values, again[i].values) << all[i].name;
  EXPECT_EQ(m.llama->memory_hash(), before);
}

// A prefix makes no row: a batch behind it has as many, later positions, and attends to the prefix from every
// segment.
TEST(Methods, ABatchBehindAPrefix) {
  PackedBatch batch(4);
  const int32_t a = batch.add(-1, random_tokens(3, 1)), b = batch.add(a, random_tokens(2, 2)),
                c = batch.add(-1, random_tokens(5, 3));
  EXPECT_EQ(batch.rows(), 10);
  EXPECT_EQ(batch.end_position(a), 7);
  EXPECT_EQ(batch.segment(b).position_begin, 7);
  EXPECT_EQ(batch.positions()[5], 4);
  EXPECT_EQ(batch.visible_rows(b), (std::vector<KvSpan>{{0, 4}, {4, 3}, {7, 2}}));
  EXPECT_EQ(batch.visible_rows(c), (std::vector<KvSpan>{{0, 4}, {9, 5}}));
  EXPECT_EQ(batch.plan().segments[2].kv_begin, 9);
  EXPECT_EQ(batch.plan().segments[2].q_begin, 5);
  // Another batch than the adapters are for.
  Model m;
  Runner runner(*m.device, *m.llama);
  const OwnedAdapter keys(*m.device, tiny_config(), prefix(5), false);
  EXPECT_THROW(runner.forward(batch, {}, Saving::kNothing, -1, keys.adapters()), Error);
}

}  // namespace
}  // namespace gantrain
