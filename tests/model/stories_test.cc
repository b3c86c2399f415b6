// stories260K, a real trained Llama: logits, greedy tokens and losses of an independent double-precision
// forward (golden.json beside the model), from all three file formats.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/ops.h"
#include "model/formats/safetensors.h"
#include "model/generate.h"
#include "model/runner.h"
#include "model/weights.h"
#include "tests/support/devices.h"
#include "tests/support/paths.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;

std::vector<float> last_logits(Runner& runner, const std::vector<int32_t>& ids) {
  Device& device = runner.device();
  const Llama& llama = runner.llama();
  PackedBatch batch;
  const int32_t s = batch.add(-1, ids);
  runner.forward(batch, {}, Saving::kNothing);
  OwnedTensor logits(device, DType::kF32, {1, llama.config().vocab_size});
  const std::vector<int32_t> row{batch.last_row(s)};
  const OwnedTensor rows = upload(device, std::span<const int32_t>(row));
  HeadLogits op{.x = runner.output(),
                .rows = rows,
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

class Stories : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = test::data_folder() / "ci" / "stories260K";
    if (!fs::exists(folder_ / "golden.json")) GTEST_SKIP() << "no " << folder_ << "; set GANTRAIN_DATA";
    golden_ = nlohmann::json::parse(std::ifstream(folder_ / "golden.json"));
    device_ = test::make_cpu(2);
  }
  std::unique_ptr<const Llama> open(const fs::path& path) {
    return Llama::load(*device_, open_weights(path.string()), DType::kF32);
  }
  fs::path folder_;
  nlohmann::json golden_;
  std::unique_ptr<Device> device_;
};

TEST_F(Stories, LogitsAndGreedyTokensEqualTheGoldenOnes) {
  const auto llama = open(folder_ / "stories260K.bin");
  Runner runner(*device_, *llama);
  ASSERT_GE(golden_["cases"].size(), 4u);
  for (const auto& item : golden_["cases"]) {
    const auto ids = item["ids"].get<std::vector<int32_t>>();
    const auto expected = item["last_logits"].get<std::vector<double>>();
    const std::vector<float> logits = last_logits(runner, ids);
    ASSERT_EQ(logits.size(), expected.size());
    double worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) worst = std::max(worst, std::abs(logits[i] - expected[i]));
    EXPECT_TRUE(worst <= 1e-4) << "largest difference " << worst;  // the limit
    const auto greedy = item["greedy_ids"].get<std::vector<int32_t>>();
    ASSERT_GT(greedy.size(), ids.size());
    ASSERT_TRUE(std::equal(ids.begin(), ids.end(), greedy.begin()));
    const std::vector<GenerationRequest> requests{
        {.prompt_first = 0, .prompt_count = 0, .context = ids, .keys = {1}}};
    SamplingParams params;
    params.temperature = 0.0f;
    params.max_new = static_cast<int32_t>(greedy.size() - ids.size());
    const auto answers = generate(*device_, *llama, {}, requests, params);
    EXPECT_EQ(answers[0].tokens,
              std::vector<int32_t>(greedy.begin() + static_cast<std::ptrdiff_t>(ids.size()), greedy.end()));
  }
}

// The same weights as a Hugging Face folder, written here with q and k rows in half-split order: bit for bit
// the same.
TEST_F(Stories, TheSameWeightsAsSafetensorsGiveTheSameLogits) {
  const auto weights = open_weights((folder_ / "stories260K.bin").string());
  const fs::path folder = fs::temp_directory_path() / fmt::format("gantrain_stories_{}", ::getpid());
  fs::create_directories(folder);
  std::vector<std::vector<float>> values;
  std::vector<NamedTensor> tensors;
  values.reserve(weights->tensors().size());
  for (const TensorEntry& e : weights->tensors()) {
    values.emplace_back(static_cast<size_t>(e.shape.count()));
    weights->read_rows(e.name, 0, e.shape.rank == 1 ? 1 : e.shape[0], values.back().data());
    tensors.push_back({e.name, ConstTensor(values.back().data(), DType::kF32, e.shape)});
  }
  write_safetensors((folder / "model.safetensors").string(), tensors);
  const LlamaConfig& c = weights->config();
  std::ofstream(folder / "config.json") << nlohmann::json{
      {"model_type", "llama"},
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"intermediate_size", c.intermediate_size},
      {"num_hidden_layers", c.num_layers},
      {"num_attention_heads", c.num_heads},
      {"num_key_value_heads", c.num_kv_heads},
      {"rms_norm_eps", 1e-5},
      {"tie_word_embeddings", true},
      {"max_position_embeddings",
       c.max_position_embeddings}}.dump();
  const auto a = open(folder_ / "stories260K.bin"), b = open(folder);
  Runner ra(*device_, *a), rb(*device_, *b);
  const auto ids = golden_["cases"][1]["ids"].get<std::vector<int32_t>>();
  EXPECT_EQ(last_logits(ra, ids), last_logits(rb, ids));
  EXPECT_EQ(a->content_hash(), b->content_hash());
  fs::remove_all(folder);
}

// Rollouts of a real model: with one thread and two, in another order, and with other neighbours, every
// answer and every log-probability has the same bits. No two contexts are alike, and the answers have
// different lengths.
TEST_F(Stories, RolloutsKeepTheirBitsWithOtherThreadsOrderAndNeighbours) {
  std::vector<GenerationRequest> requests;
  for (const auto& item : golden_["cases"]) {
    GenerationRequest r;
    r.context = item["ids"].get<std::vector<int32_t>>();
    for (uint64_t k = 0; k < 3; ++k) r.keys.push_back(100 * requests.size() + k);
    requests.push_back(std::move(r));
  }
  SamplingParams params;
  params.max_new = 24;
  params.temperature = 1.5f;
  struct Answer {
    std::vector<int32_t> tokens;
    std::vector<float> logp;
    bool operator==(const Answer&) const = default;
  };
  // By key, whatever the order of the requests.
  const auto sample = [&](int threads, bool reversed, int64_t parallel) {
    device_ = test::make_cpu(threads);
    const auto llama = open(folder_ / "stories260K.bin");
    std::vector<GenerationRequest> asked = requests;
    if (reversed) {
      std::reverse(asked.begin(), asked.end());
      for (GenerationRequest& r : asked) std::reverse(r.keys.begin(), r.keys.end());
    }
    const auto answers = generate(*device_, *llama, {}, asked, params, parallel);
    std::map<uint64_t, Answer> out;
    size_t i = 0;
    for (const GenerationRequest& r : asked)
      for (const uint64_t key : r.keys) {
        out[key] = {answers[i].tokens, answers[i].logp};
        ++i;
      }
    return out;
  };
  const auto expected = sample(1, false, 128);
  ASSERT_EQ(expected.size(), 3 * requests.size());
  std::set<std::vector<int32_t>> texts;
  for (const auto& [key, answer] : expected) texts.insert(answer.tokens);
  EXPECT_EQ(texts.size(), expected.size()) << "the answers are meant to differ";
  EXPECT_EQ(sample(2, false, 128), expected);
  EXPECT_EQ(sample(2, true, 128), expected);
  EXPECT_EQ(sample(1, true, 5), expected);
  EXPECT_EQ(sample(2, false, 1), expected);
}

}  // namespace
}  // namespace gantrain
