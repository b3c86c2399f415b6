// What is left out at both ends of the layers changes nothing: the same losses and gradients as with every
// row taken through.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "model/adapters/owned.h"
#include "model/adapters/trained_weights.h"
#include "model/runner.h"
#include "tests/support/devices.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"

namespace gantrain {
namespace {

using testing::MemoryWeights;
using testing::tiny_config;

class EndsOfLayers : public test::OpsTest {};

std::vector<int32_t> random_tokens(int64_t n, uint64_t seed) { return test::random_ints(n, seed, 0, 96); }
std::vector<int32_t> range(int32_t begin, int32_t count) {
  std::vector<int32_t> rows;
  for (int32_t i = 0; i < count; ++i) rows.push_back(begin + i);
  return rows;
}

constexpr int64_t kPrompt = 4;

// Two inputs behind one prompt, the first with two answers; one behind its own; and one whose prompt stands
// in the middle of its segment. Of the answers all rows are scored but one in the middle. Without `prompts`
// the inputs stand alone.
struct Forest {
  PackedBatch batch;
  std::vector<int32_t> scored;
  Forest(bool prompts, int32_t prefix) : batch(prefix) {
    const auto answer = [&](int32_t context, int64_t n, uint64_t seed) {
      const int32_t s = batch.add(context, random_tokens(n, seed));
      scored.push_back(batch.last_row(context));
      for (const int32_t row : range(batch.segment(s).row_begin, batch.segment(s).rows))
        if (row != batch.segment(s).row_begin + n / 2) scored.push_back(row);
    };
    const int32_t shared = prompts ? batch.add_prompt(0, kPrompt) : -1;
    const int32_t first = batch.add(shared, random_tokens(9, 1)),
                  second = batch.add(shared, random_tokens(3, 2));
    answer(first, 7, 3);
    answer(second, 70, 4);
    answer(first, 2, 5);
    answer(batch.add(prompts ? batch.add_prompt(kPrompt, kPrompt) : -1, random_tokens(5, 6)), 6, 7);
    std::vector<int32_t> mixed = random_tokens(4, 8);
    if (prompts)
      for (int64_t r = 0; r < kPrompt; ++r) mixed.push_back(prompt_token(2 * kPrompt + r));
    mixed.push_back(11);
    answer(batch.add(-1, mixed), 5, 9);
  }
};

enum class On { kPrompt, kLora, kPrefix, kBottleneck, kWeights };

using Results = std::map<std::string, std::vector<float>>;

Results run(Device& device, const LlamaConfig& config, DType dtype, int layers, On on, Saving saving,
            bool some) {
  const auto llama = Llama::load(device, std::make_shared<MemoryWeights>(config), dtype);
  std::unique_ptr<OwnedLora> lora;
  std::unique_ptr<OwnedAdapter> owned;
  std::unique_ptr<OwnedWeights> weights;
  Adapters adapters;
  PeftAdapter file;
  if (on == On::kLora) {
    LoraShape shape;
    shape.rank = 5;
    shape.alpha = 10.0;
    shape.targets.fill(true);
    lora = std::make_unique<OwnedLora>(device, config, shape, true);
    for (size_t l = 0; l < static_cast<size_t>(config.num_layers); ++l)
      for (size_t t = 0; t < kLoraTargets; ++t) {
        device.copy_in(lora->a(l, t),
                       test::random_normal(lora->a(l, t).count(), 100 + 10 * l + t, 0.1f).data());
        device.copy_in(lora->b(l, t),
                       test::random_normal(lora->b(l, t).count(), 200 + 10 * l + t, 0.3f).data());
      }
    adapters = &lora->adapter();
  } else if (on == On::kPrefix) {
    file.type = kPrefixType;
    file.prefix =
        test::random_normal(5 * 2 * config.num_layers * config.num_kv_heads * config.head_dim, 3, 0.7f);
  } else if (on == On::kBottleneck) {
    file.type = kBottleneckType;
    file.bottleneck = {.width = 7, .activation = Activation::kSilu, .attention = true, .mlp = true};
    file.bottlenecks.resize(static_cast<size_t>(config.num_layers));
    for (auto& layer : file.bottlenecks)
      for (BottleneckValues& v : layer)
        v = {test::random_normal(7 * config.hidden_size, 40, 0.2f), test::random_normal(7, 41, 0.2f),
             test::random_normal(config.hidden_size * 7, 42, 0.2f),
             test::random_normal(config.hidden_size, 43, 0.2f)};
  } else if (on == On::kWeights) {
    weights = std::make_unique<OwnedWeights>(device, *llama);
    adapters = &weights->weights();
  }
  if (!file.type.empty()) {
    owned = std::make_unique<OwnedAdapter>(device, config, file, true);
    adapters = owned->adapters();
  }
  const bool prompts = on == On::kPrompt;
  const Forest f(prompts, adapters.prefix_rows());
  OwnedTensor prompt;
  if (prompts) {
    prompt = OwnedTensor(device, DType::kF32, {3 * kPrompt, config.hidden_size});
    device.copy_in(prompt, test::random_normal(prompt.view().count(), 5, 0.5f).data());
  }
  BatchRows rows;  // all of them, at both ends
  rows.gradient = range(0, static_cast<int32_t>(f.batch.rows()));
  if (some) rows = {.read = f.scored, .gradient = {}};
  Runner runner(device, *llama);
  runner.forward(f.batch, prompt.view(), saving, layers, adapters, rows);
  Results out;
  HeadRequest request;
  request.rows = f.scored;
  request.labels = random_tokens(std::ssize(f.scored), 20);
  request.ce_weight.assign(f.scored.size(), 0.05f);
  if (saving == Saving::kNothing) {
    out["logits"] = runner.logits(f.scored);
    out["nll"] = runner.head(request, false).nll;
    return out;
  }
  runner.begin_backward();
  out["nll"] = runner.head(request, true).nll;
  // A seed of another kind, on rows in another order and twice.
  const std::vector<int32_t> seeded{f.scored[4], f.scored[1], f.scored[4]};
  OwnedTensor seed(device, DType::kF32, {3, config.hidden_size});
  device.copy_in(seed, test::random_normal(seed.view().count(), 21, 0.1f).data());
  runner.add_output_gradient(seed.view(), seeded);
  runner.backward();
  if (prompts) {
    OwnedTensor gradient(device, DType::kF32, prompt.view().shape());
    device.fill_zero(gradient);
    runner.add_prompt_gradient(gradient);
    out["prompt"] = download(device, gradient);
    out["rows"] = download(device, runner.input_gradient_rows({f.batch.segment(0).row_begin + 2}));
  }
  if (lora)
    for (size_t l = 0; l < static_cast<size_t>(layers); ++l)
      for (size_t t = 0; t < kLoraTargets; ++t) {
        const LoraAdapter::Part& p = lora->adapter().layers[l][t];
        out[fmt::format("layer {} target {} da", l, t)] = download(device, p.da);
        out[fmt::format("layer {} target {} db", l, t)] = download(device, p.db);
      }
  if (owned)
    for (const auto& g : owned->gradients(device)) out[g.name] = g.values;
  if (weights)
    for (const auto& g : weights->gradients(device)) out[g.name] = g.values;
  return out;
}

double norm(const std::vector<float>& v) {
  double s = 0;
  for (const float x : v) s += static_cast<double>(x) * x;
  return std::sqrt(s);
}
void expect_same(const Results& some, const Results& all, double share) {
  ASSERT_EQ(some.size(), all.size());
  for (const auto& [name, want] : all) {
    const std::vector<float>& got = some.at(name);
    ASSERT_EQ(got.size(), want.size()) << name;
    std::vector<float> apart = got;
    for (size_t i = 0; i < apart.size(); ++i) apart[i] -= want[i];
    EXPECT_TRUE(norm(apart) <= share * norm(want)) << name << ": " << norm(apart) << " of " << norm(want);
  }
}

// However little is kept, backward has what it needs to the bit.
void expect_recomputed_bits(const Results& kept, const std::function<Results(Saving)>& results) {
  for (const Saving saving : {Saving::kButGateUp, Saving::kButMlp, Saving::kLayerInput})
    for (const auto& [name, values] : results(saving))
      EXPECT_TRUE(test::bitwise_equal(fmt::format("{}, saving {}", name, static_cast<int>(saving)), values,
                                      kept.at(name)));
}

// Heads that tensor cores take where there are any.
LlamaConfig wide_heads(int64_t layers) {
  LlamaConfig c = tiny_config();
  c.hidden_size = 64;
  c.head_dim = 64;
  c.num_heads = 3;
  c.num_kv_heads = 1;
  c.num_layers = layers;
  return c;
}
// f32: the same terms in another grouping. bf16: a row's attention may be cut elsewhere, and what follows is
// rounded to 2^-8 a dozen times.
double share_of(DType dtype) { return dtype == DType::kF32 ? 2e-5 : 3e-2; }

TEST_P(EndsOfLayers, ScoredRowsAndPromptRowsAloneGiveTheSame) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const bool bias : {false, true})
      for (const int layers : {1, 2}) {
        SCOPED_TRACE(fmt::format("{}, {} layers, bias {}", dtype_name(dtype), layers, bias));
        LlamaConfig config = wide_heads(2);
        config.attention_bias = config.mlp_bias = bias;
        const auto results = [&](Saving saving, bool some) {
          return run(device(), config, dtype, layers, On::kPrompt, saving, some);
        };
        const Results all = results(Saving::kAll, false), some = results(Saving::kAll, true);
        expect_same(some, all, share_of(dtype));
        EXPECT_GT(norm(all.at("prompt")), 1e-3);
        if (bias) continue;
        expect_recomputed_bits(some, [&](Saving saving) { return results(saving, true); });
        expect_same(results(Saving::kNothing, true), results(Saving::kNothing, false), share_of(dtype));
      }
}

TEST_P(EndsOfLayers, AdaptersGetTheSameGradients) {
  for (const On on : {On::kLora, On::kPrefix, On::kBottleneck, On::kWeights})
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      if (on == On::kWeights && dtype == DType::kBF16) continue;  // those are f32
      SCOPED_TRACE(fmt::format("adapter {}, {}", static_cast<int>(on), dtype_name(dtype)));
      LlamaConfig config = tiny_config();
      config.num_layers = 2;
      const auto results = [&](Saving saving, bool some) {
        return run(device(), config, dtype, 2, on, saving, some);
      };
      const Results some = results(Saving::kAll, true);
      expect_same(some, results(Saving::kAll, false), share_of(dtype));
      expect_recomputed_bits(some, [&](Saving saving) { return results(saving, true); });
    }
}

INSTANTIATE_TEST_SUITE_P(On, EndsOfLayers, ::testing::ValuesIn(test::device_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(EndsOfBatches, AttentionOfSomeQueriesAndOfSomeKeys) {
  PackedBatch batch;
  const int32_t p = batch.add_prompt(0, 3), x = batch.add(p, random_tokens(4, 1));  // rows 0-2, 3-6
  batch.add(x, random_tokens(3, 2));                                                // 7-9
  const AttentionPlan queries = attention_of_queries(batch.plan(), std::vector<int32_t>{6, 7, 9}, 10);
  const std::vector<AttentionSegment> runs{
      {.q_begin = 6, .q_count = 1, .span_begin = 0, .span_count = 2, .kv_begin = 6},
      {.q_begin = 7, .q_count = 1, .span_begin = 2, .span_count = 2, .kv_begin = 7},
      {.q_begin = 9, .q_count = 1, .span_begin = 4, .span_count = 3, .kv_begin = 9}};
  EXPECT_EQ(queries.segments, runs);
  EXPECT_EQ(queries.spans, (std::vector<KvSpan>{{0, 3}, {3, 3}, {0, 3}, {3, 4}, {0, 3}, {3, 4}, {7, 2}}));
  EXPECT_EQ(attention_of_queries(batch.plan(), std::vector<int32_t>{4}, 10).spans,
            (std::vector<KvSpan>{{0, 3}, {3, 1}}));
  const AttentionPlan keys = attention_of_keys(batch.plan(), std::vector<int32_t>{0, 2}, 10, 0);
  const std::vector<AttentionSegment> seen{
      {.q_begin = 0, .q_count = 3, .span_begin = 0, .span_count = 0, .kv_begin = 0},
      {.q_begin = 3, .q_count = 4, .span_begin = 0, .span_count = 2, .kv_begin = -1},
      {.q_begin = 7, .q_count = 3, .span_begin = 2, .span_count = 2, .kv_begin = -1}};
  EXPECT_EQ(keys.segments, seen);
  EXPECT_EQ(keys.spans, (std::vector<KvSpan>{{0, 1}, {2, 1}, {0, 1}, {2, 1}}));
  // The first layer, if it is the last one too; and nobody who sees none of them.
  const AttentionPlan both = attention_of_keys(queries, std::vector<int32_t>{4}, 10, 0);
  EXPECT_EQ(both.segments.size(), 3u);
  EXPECT_EQ(both.spans, (std::vector<KvSpan>{{4, 1}, {4, 1}, {4, 1}}));
  EXPECT_EQ(attention_of_keys(batch.plan(), std::vector<int32_t>{8}, 10, 0).segments.size(), 1u);
}

TEST(EndsOfBatches, RowsThatForwardWasNotToldOfThrow) {
  const auto device = test::make_cpu(1);
  const auto llama = Llama::load(*device, std::make_shared<MemoryWeights>(tiny_config()), DType::kF32);
  PackedBatch batch;
  batch.add(-1, random_tokens(6, 1));
  Runner runner(*device, *llama);
  runner.forward(batch, {}, Saving::kNothing, -1, {}, {.read = {5, 3, 5}, .gradient = {}});
  EXPECT_EQ(runner.output().dim(0), 2);
  EXPECT_NO_THROW(runner.output_rows({5, 3, 3}));
  EXPECT_THROW(runner.output_rows({4}), Error);
  EXPECT_THROW(runner.logits({0}), Error);
  EXPECT_THROW(runner.forward(batch, {}, Saving::kNothing, -1, {}, {.read = {6}, .gradient = {}}), Error);
}

}  // namespace
}  // namespace gantrain
