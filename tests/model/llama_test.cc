// The whole model against itself: every way to compute the same thing gives the same thing.
#include <gtest/gtest.h>

#include <cmath>

#include "core/ops.h"
#include "model/generate.h"
#include "model/runner.h"
#include "tests/support/devices.h"
#include "tests/support/tiny_llama.h"

namespace gantrain {
namespace {

using testing::MemoryWeights;
using testing::tiny_config;

struct Model {
  std::unique_ptr<Device> device;
  std::unique_ptr<const Llama> llama;
  explicit Model(LlamaConfig config = tiny_config(), DType dtype = DType::kF32, int threads = 2)
      : device(test::make_cpu(threads)),
        llama(Llama::load(*device, std::make_shared<MemoryWeights>(config), dtype)) {}
};

std::vector<int32_t> random_tokens(int64_t n, uint64_t seed, uint64_t vocab = 97) {
  std::vector<int32_t> t;
  for (int64_t i = 0; i < n; ++i)
    t.push_back(static_cast<int32_t>(Philox{seed}(1, static_cast<uint64_t>(i))[0] % vocab));
  return t;
}

OwnedTensor random_prompt(Device& device, int64_t rows, int64_t c, uint64_t seed = 5) {
  std::vector<float> v(static_cast<size_t>(rows * c));
  for (size_t i = 0; i < v.size(); ++i) {
    const auto w = Philox{seed}(2, i);
    v[i] = 0.5f * normal_pair(w[0], w[1])[0];
  }
  OwnedTensor t(device, DType::kF32, {rows, c});
  device.copy_in(t, v.data());
  return t;
}

std::vector<float> logits_of(Runner& runner, const std::vector<int32_t>& rows) {
  Device& device = runner.device();
  const Llama& llama = runner.llama();
  OwnedTensor logits(device, DType::kF32, {static_cast<int64_t>(rows.size()), llama.config().vocab_size});
  const OwnedTensor rows_d = upload(device, std::span<const int32_t>(rows));
  HeadLogits op{.x = runner.output(),
                .rows = rows_d,
                .gain = llama.final_gain(),
                .w = &llama.head(),
                .eps = llama.config().rms_norm_eps,
                .logits = logits,
                .scratch = {}};
  OwnedTensor scratch(device, DType::kU8, {std::max<int64_t>(1, head_logits_scratch(device, op))});
  op.scratch = scratch;
  head_logits(device, op);
  return download(device, logits);
}

std::vector<int32_t> rows_of(const PackedBatch& batch, int32_t segment) {
  std::vector<int32_t> rows;
  for (int32_t i = 0; i < batch.segment(segment).rows; ++i)
    rows.push_back(batch.segment(segment).row_begin + i);
  return rows;
}

double largest(const std::vector<float>& v) {
  double m = 0;
  for (float x : v) m = std::max(m, std::abs(static_cast<double>(x)));
  return m;
}

// f32 throughout; the sums have the same terms in another grouping: a few dozen roundings of the largest
// value.
void expect_close(const std::vector<float>& a, const std::vector<float>& b, double share = 2e-5) {
  ASSERT_EQ(a.size(), b.size());
  const double limit = share * std::max(largest(a), 1e-6);
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_TRUE(std::abs(static_cast<double>(a[i]) - b[i]) <= limit)
        << "index " << i << ": " << a[i] << ", " << b[i];
}

struct LossAndGradient {
  double loss = 0;
  std::vector<float> gradient;
};

// Cross-entropy over the tokens after the first of each sequence, divided by `total` (0: their number), and
// its gradient at the prompt. shared: one prompt segment for all; else sequence b has its own rows.
LossAndGradient loss_of(Runner& runner, OwnedTensor& prompt,
                        const std::vector<std::vector<int32_t>>& sequences, int64_t count, bool shared,
                        Saving saving, double total = 0) {
  PackedBatch batch;
  int32_t shared_segment = -1;
  HeadRequest request;
  for (size_t b = 0; b < sequences.size(); ++b) {
    if (shared && shared_segment < 0) shared_segment = batch.add_prompt(0, count);
    const int32_t parent = shared ? shared_segment : batch.add_prompt(static_cast<int64_t>(b) * count, count);
    const int32_t s = batch.add(parent, sequences[b]);
    for (size_t t = 1; t < sequences[b].size(); ++t) {
      request.rows.push_back(batch.segment(s).row_begin + static_cast<int32_t>(t) - 1);
      request.labels.push_back(sequences[b][t]);
    }
  }
  if (total == 0) total = static_cast<double>(request.rows.size());
  request.ce_weight.assign(request.rows.size(), static_cast<float>(1.0 / total));
  runner.forward(batch, prompt, saving);
  runner.begin_backward();
  const HeadResult result = runner.head(request, true);
  runner.backward();
  OwnedTensor gradient(runner.device(), DType::kF32, prompt.view().shape());
  runner.device().fill_zero(gradient);
  runner.add_prompt_gradient(gradient);
  LossAndGradient out;
  for (float nll : result.nll) out.loss += nll / total;
  out.gradient = download(runner.device(), gradient);
  return out;
}

std::vector<std::vector<int32_t>> three_sequences() {
  return {random_tokens(7, 1), random_tokens(19, 2), random_tokens(2, 3)};
}

TEST(Llama, TeacherForcedLogitsEqualDecodedLogitsWithPromptAndCache) {
  for (const bool bias : {false, true}) {
    LlamaConfig config = tiny_config();
    config.attention_bias = config.mlp_bias = bias;
    config.tie_word_embeddings = !bias;
    Model m(config);
    Runner runner(*m.device, *m.llama);
    OwnedTensor prompt = random_prompt(*m.device, 4, config.hidden_size);
    const std::vector<int32_t> context = random_tokens(6, 9);
    const std::vector<GenerationRequest> requests{
        {.prompt_first = 0, .prompt_count = 4, .context = context, .keys = {11, 12, 13}}};
    SamplingParams params;
    params.max_new = 9;
    const auto answers = generate(*m.device, *m.llama, prompt, requests, params);
    ASSERT_EQ(answers.size(), 3u);
    for (const GeneratedSequence& answer : answers) {
      ASSERT_EQ(answer.tokens.size(), 9u);
      PackedBatch batch;
      std::vector<int32_t> tokens = context;
      tokens.insert(tokens.end(), answer.tokens.begin(), answer.tokens.end());
      const int32_t s = batch.add(batch.add_prompt(0, 4), tokens);
      HeadRequest request;
      for (size_t t = 0; t < answer.tokens.size(); ++t) {
        request.rows.push_back(batch.segment(s).row_begin + static_cast<int32_t>(context.size() + t) - 1);
        request.labels.push_back(answer.tokens[t]);
      }
      runner.forward(batch, prompt, Saving::kNothing);
      const HeadResult result = runner.head(request, false);
      for (size_t t = 0; t < answer.tokens.size();
           ++t)  // f32, another order of sums: 1e-5 of a log-probability of ~5
        EXPECT_TRUE(std::abs(result.nll[t] + answer.logp[t]) <= 1e-4) << t << ": " << result.nll[t];
    }
    EXPECT_NE(answers[0].tokens, answers[1].tokens);
  }
}

TEST(Llama, PromptOfLengthZeroIsTheBaseModel) {
  Model m;
  Runner runner(*m.device, *m.llama);
  PackedBatch plain, empty_prompt;
  const std::vector<int32_t> tokens = random_tokens(13, 4);
  const int32_t a = plain.add(-1, tokens);
  const int32_t b = empty_prompt.add(empty_prompt.add_prompt(0, 0), tokens);
  runner.forward(plain, {}, Saving::kNothing);
  const std::vector<float> expected = logits_of(runner, rows_of(plain, a));
  runner.forward(empty_prompt, {}, Saving::kNothing);
  EXPECT_EQ(logits_of(runner, rows_of(empty_prompt, b)), expected);
}

TEST(Llama, SharedPromptEqualsRepeatedPrompt) {
  Model m;
  Runner runner(*m.device, *m.llama);
  const int64_t c = m.llama->config().hidden_size, p = 5;
  OwnedTensor one = random_prompt(*m.device, p, c);
  const std::vector<float> rows = download(*m.device, one);
  std::vector<float> repeated;
  for (int i = 0; i < 3; ++i) repeated.insert(repeated.end(), rows.begin(), rows.end());
  OwnedTensor three(*m.device, DType::kF32, {3 * p, c});
  m.device->copy_in(three, repeated.data());
  const LossAndGradient shared = loss_of(runner, one, three_sequences(), p, true, Saving::kAll);
  const LossAndGradient each = loss_of(runner, three, three_sequences(), p, false, Saving::kAll);
  EXPECT_TRUE(std::abs(shared.loss - each.loss) <= 1e-6 * shared.loss);
  std::vector<float> summed(shared.gradient.size(), 0.0f);
  for (size_t i = 0; i < each.gradient.size(); ++i) summed[i % summed.size()] += each.gradient[i];
  expect_close(shared.gradient, summed);
  EXPECT_GT(largest(shared.gradient), 1e-4);
}

TEST(Llama, PackedEqualsUnpackedAndAccumulatedEqualsWhole) {
  Model m;
  Runner runner(*m.device, *m.llama);
  OwnedTensor prompt = random_prompt(*m.device, 3, m.llama->config().hidden_size);
  const auto sequences = three_sequences();
  double tokens = 0;
  for (const auto& s : sequences) tokens += static_cast<double>(s.size()) - 1;
  const LossAndGradient whole = loss_of(runner, prompt, sequences, 3, true, Saving::kAll);
  LossAndGradient sum;
  sum.gradient.assign(whole.gradient.size(), 0.0f);
  for (const auto& s : sequences) {
    const LossAndGradient part = loss_of(runner, prompt, {s}, 3, true, Saving::kAll, tokens);
    sum.loss += part.loss;
    for (size_t i = 0; i < sum.gradient.size(); ++i) sum.gradient[i] += part.gradient[i];
  }
  EXPECT_TRUE(std::abs(whole.loss - sum.loss) <= 1e-6 * whole.loss);
  expect_close(whole.gradient, sum.gradient);
}

TEST(Llama, RecomputeIsBitwiseTheSame) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Model m(tiny_config(), dtype);
    Runner runner(*m.device, *m.llama);
    OwnedTensor prompt = random_prompt(*m.device, 3, m.llama->config().hidden_size);
    const LossAndGradient all = loss_of(runner, prompt, three_sequences(), 3, true, Saving::kAll);
    for (const Saving saving : {Saving::kButGateUp, Saving::kButMlp, Saving::kLayerInput}) {
      const LossAndGradient again = loss_of(runner, prompt, three_sequences(), 3, true, saving);
      EXPECT_EQ(all.loss, again.loss);
      EXPECT_EQ(all.gradient, again.gradient);
    }
  }
}

TEST(Llama, OneAndTwoThreadsGiveTheSameBits) {
  std::vector<std::vector<float>> gradients;
  for (const int threads : {1, 2}) {
    Model m(tiny_config(), DType::kF32, threads);
    Runner runner(*m.device, *m.llama);
    OwnedTensor prompt = random_prompt(*m.device, 3, m.llama->config().hidden_size);
    gradients.push_back(loss_of(runner, prompt, three_sequences(), 3, true, Saving::kAll).gradient);
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

// The derivative along a random direction by central differences in f32: coarse (rounding of the loss over
// the step is 1e-3 of it), but it ties forward and backward together without any outside program.
TEST(Llama, GradientMatchesCentralDifference) {
  Model m;
  Runner runner(*m.device, *m.llama);
  const int64_t c = m.llama->config().hidden_size, p = 3;
  OwnedTensor prompt = random_prompt(*m.device, p, c), direction = random_prompt(*m.device, p, c, 77);
  const std::vector<float> x = download(*m.device, prompt), d = download(*m.device, direction);
  const LossAndGradient at = loss_of(runner, prompt, three_sequences(), p, true, Saving::kAll);
  double expected = 0;
  for (size_t i = 0; i < d.size(); ++i) expected += static_cast<double>(at.gradient[i]) * d[i];
  const float h = 1e-2f;
  double loss[2];
  for (const int side : {0, 1}) {
    std::vector<float> moved = x;
    for (size_t i = 0; i < d.size(); ++i) moved[i] += (side ? h : -h) * d[i];
    m.device->copy_in(prompt, moved.data());
    loss[side] = loss_of(runner, prompt, three_sequences(), p, true, Saving::kAll).loss;
  }
  const double measured = (loss[1] - loss[0]) / (2 * static_cast<double>(h));
  EXPECT_TRUE(std::abs(measured - expected) <= 1e-2 * std::abs(expected)) << measured << " " << expected;
}

TEST(Llama, SeveralAnswersToOneInputEqualSeparateSequences) {
  Model m;
  Runner runner(*m.device, *m.llama);
  OwnedTensor prompt = random_prompt(*m.device, 3, m.llama->config().hidden_size);
  const std::vector<int32_t> x = random_tokens(8, 21), y1 = random_tokens(5, 22), y2 = random_tokens(9, 23);
  PackedBatch tree;
  const int32_t p = tree.add_prompt(0, 3), xs = tree.add(p, x), s1 = tree.add(xs, y1), s2 = tree.add(xs, y2);
  runner.forward(tree, prompt, Saving::kNothing);
  const std::vector<float> a = logits_of(runner, rows_of(tree, s1)), b = logits_of(runner, rows_of(tree, s2));
  int which = 0;
  for (const auto* y : {&y1, &y2}) {
    PackedBatch flat;
    std::vector<int32_t> tokens = x;
    tokens.insert(tokens.end(), y->begin(), y->end());
    const int32_t s = flat.add(flat.add_prompt(0, 3), tokens);
    runner.forward(flat, prompt, Saving::kNothing);
    std::vector<int32_t> rows = rows_of(flat, s);
    rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(x.size()));
    expect_close(logits_of(runner, rows), which++ == 0 ? a : b);
  }
}

TEST(Llama, NoPathWritesTheBase) {
  Model m;
  Runner runner(*m.device, *m.llama);
  const uint64_t before = m.llama->memory_hash();
  OwnedTensor prompt = random_prompt(*m.device, 3, m.llama->config().hidden_size);
  loss_of(runner, prompt, three_sequences(), 3, true, Saving::kAll);
  const std::vector<GenerationRequest> requests{
      {.prompt_first = 0, .prompt_count = 3, .context = {1, 2}, .keys = {1}}};
  generate(*m.device, *m.llama, prompt, requests, SamplingParams{});
  EXPECT_EQ(m.llama->memory_hash(), before);
  // And the hash does see a change of one value.
  auto other = std::make_shared<MemoryWeights>(tiny_config());
  other->values("model.layers.1.mlp.up_proj.weight")[17] += 1e-3f;
  const auto changed = Llama::load(*m.device, other, DType::kF32);
  EXPECT_NE(changed->memory_hash(), before);
  EXPECT_NE(changed->content_hash(), m.llama->content_hash());
}

TEST(Generate, SamplesDependOnTheirKeyAlone) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Model two(tiny_config(), dtype, 2), one(tiny_config(), dtype, 1);
    OwnedTensor prompt = random_prompt(*two.device, 3, two.llama->config().hidden_size);
    std::vector<GenerationRequest> requests;
    for (uint64_t i = 0; i < 9; ++i)
      requests.push_back({.prompt_first = 0,
                          .prompt_count = 3,
                          .context = random_tokens(static_cast<int64_t>(1 + 5 * i % 17), 100 + i),
                          .keys = {2 * i, 2 * i + 1}});
    SamplingParams params;
    params.max_new = 24;
    for (int32_t t = 0; t < 12; ++t) params.stop.push_back(t);
    const auto together = generate(*two.device, *two.llama, prompt, requests, params);
    const auto by_three = generate(*two.device, *two.llama, prompt, requests, params, 3);
    const auto one_thread = generate(*one.device, *one.llama, prompt, requests, params);
    ASSERT_EQ(together.size(), 18u);
    bool stopped = false, ran_out = false;
    for (size_t i = 0; i < together.size(); ++i) {
      EXPECT_EQ(together[i].tokens, by_three[i].tokens) << i;
      EXPECT_EQ(together[i].tokens, one_thread[i].tokens) << i;
      EXPECT_EQ(together[i].logp, by_three[i].logp) << i;
      (together[i].finish == FinishReason::kStop ? stopped : ran_out) = true;
      EXPECT_EQ(together[i].finish == FinishReason::kStop, together[i].tokens.back() < 12);
    }
    EXPECT_TRUE(stopped);
    EXPECT_TRUE(ran_out);
  }
}

TEST(Generate, GreedyIgnoresKeysAndGumbelDoesNot) {
  Model m;
  const std::vector<GenerationRequest> requests{
      {.prompt_first = 0, .prompt_count = 0, .context = {1, 2, 3}, .keys = {4, 5}}};
  SamplingParams params;
  params.max_new = 12;
  params.temperature = 0.0f;
  const auto greedy = generate(*m.device, *m.llama, {}, requests, params);
  EXPECT_EQ(greedy[0].tokens, greedy[1].tokens);
  params.temperature = 1.0f;
  params.gumbel = true;
  const auto gumbel = generate(*m.device, *m.llama, {}, requests, params);
  EXPECT_NE(gumbel[0].tokens, gumbel[1].tokens);
}

TEST(Llama, TheFirstNonFiniteValueIsNamed) {
  Model m;
  Runner runner(*m.device, *m.llama);
  OwnedTensor prompt = random_prompt(*m.device, 3, m.llama->config().hidden_size);
  std::vector<float> bad = download(*m.device, prompt);
  bad[5] = std::nanf("");
  m.device->copy_in(prompt, bad.data());
  try {
    loss_of(runner, prompt, three_sequences(), 3, true, Saving::kAll);
    FAIL() << "a NaN in the prompt went unnoticed";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("the soft prompt"), std::string::npos) << e.what();
  }
  auto weights = std::make_shared<MemoryWeights>(tiny_config());
  weights->values("model.layers.1.self_attn.v_proj.weight")[3] = INFINITY;
  EXPECT_THROW(Llama::load(*m.device, weights, DType::kF32), Error);
}

}  // namespace
}  // namespace gantrain
