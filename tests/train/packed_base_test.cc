// Training over a base that stays packed: every method and loss gives the bits of the same run over the
// expanded values, goes on from a checkpoint with the same bits, and leaves the packed base as it is.
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "model/packing.h"
#include "tests/support/devices.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"
#include "tests/train/letters.h"
#include "train/checkpoint/checkpoint.h"
#include "train/trainer.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using testing::FakeTokenizer;

// Ten steps that reach every phase.
const char* kConfig = R"(
model = "memory"
dtype = "f32"
[data]
train = "memory"
bucket = false
[generator]
width = 16
noise_dim = 4
hidden = 24
[lora]
rank = 3
targets = ["all"]
[discriminator]
width = 16
[loss]
samples = 3
beta = 0.01
top_k = 16
[optimizer]
warmup_steps = 0
[train]
batch = 4
steps = 10
warmup_ce_steps = 3
discriminator_steps = 2
max_new_tokens = 8
)";

// As the tests' tiny Llama, but wide enough for blocks of 64 values; its 80 columns of `down` are not, and of
// the types here Q8_0's 32 do not divide them either: that matrix stays dense beside packed ones.
LlamaConfig config(int64_t intermediate) {
  LlamaConfig c = testing::tiny_config();
  c.hidden_size = 64;
  c.intermediate_size = intermediate;
  c.num_layers = 2;
  return c;
}

struct Settings {
  BasePacking packing = BasePacking::kNf4;
  bool packed = true;  // false: the same values, expanded
  DType dtype = DType::kF32;
  int64_t intermediate = 128;
};

struct TestRun {
  std::unique_ptr<Device> device;
  std::unique_ptr<const Llama> llama;
  FakeTokenizer tokenizer{{1}};
  std::unique_ptr<Trainer> trainer;
  std::vector<StepRecord> records;

  TestRun(const Settings& s, const std::vector<std::string>& overrides)
      : device(test::make_cpu(2)),
        llama(Llama::load(
            *device,
            with_packing(std::make_shared<testing::MemoryWeights>(config(s.intermediate)), s.packing),
            s.dtype, {}, s.packed)),
        trainer(std::make_unique<Trainer>(*device, *llama, tokenizer,
                                          parse_train_config(kConfig, "kConfig", overrides),
                                          Trainer::Data{testing::letters(24, 1), testing::letters(6, 2)})) {}
  TestRun& to(int64_t step = -1) {
    while (!trainer->done() && (step < 0 || trainer->step_number() < step))
      records.push_back(trainer->step());
    return *this;
  }
};

class PackedBase : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("gantrain_packed_{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string save(const TestRun& run, const std::string& name) const {
    CheckpointWriter writer;
    run.trainer->save(writer);
    const std::string path = (folder_ / (name + ".ckpt")).string();
    writer.commit(path);
    return path;
  }
  // Every tensor of a checkpoint: name -> bytes.
  std::map<std::string, std::string> state_of(const TestRun& run) const {
    const CheckpointReader reader(save(run, "state"));
    std::map<std::string, std::string> out;
    for (const std::string& name : reader.tensor_names()) {
      const ConstTensor t = reader.tensor(name);
      out[name] = std::string(static_cast<const char*>(t.raw()), static_cast<size_t>(t.bytes()));
    }
    return out;
  }
  void expect_same(const TestRun& a, const TestRun& b, const std::string& what) const {
    ASSERT_EQ(a.records.size(), b.records.size()) << what;
    const auto one = state_of(a), other = state_of(b);
    ASSERT_EQ(one.size(), other.size());
    for (const auto& [name, bytes] : one) EXPECT_TRUE(bytes == other.at(name)) << what << ": " << name;
  }
  fs::path folder_;
};

std::vector<std::vector<std::string>> cases() {
  std::vector<std::vector<std::string>> out;
  for (const char* method : {"method=prompt", "method=ptuning", "method=gan", "method=qlora"})
    for (const char* loss : {"loss.kind=ce", "loss.kind=rloo", "loss.kind=gumbel"}) {
      out.push_back({method, loss});
      if (std::string(method) != "method=qlora") out.back().push_back("generator.prompt_length=3");
    }
  return out;
}
std::string name_of(const std::vector<std::string>& words) { return words[0] + " " + words[1]; }
std::vector<std::string> with(std::vector<std::string> words, const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST_F(PackedBase, EveryMethodGivesTheBitsOfExpandedValues) {
  for (const BasePacking packing : {BasePacking::kNf4, BasePacking::kQ8_0}) {
    Settings packed{.packing = packing}, expanded{.packing = packing, .packed = false};
    for (const auto& words : cases()) {
      // One type of blocks for every case, the other where rewards and adapters, or prompts of an input,
      // meet.
      const bool rewards =
          words[1] == "loss.kind=rloo" && (words[0] == "method=qlora" || words[0] == "method=gan");
      if (packing == BasePacking::kQ8_0 && !rewards) continue;
      TestRun a(packed, words), b(expanded, words);
      EXPECT_LT(a.llama->weight_bytes() - a.device->expansion_bytes(), b.llama->weight_bytes());
      EXPECT_EQ(a.llama->content_hash(), b.llama->content_hash());
      const uint64_t base = a.llama->memory_hash();
      a.to(), b.to();
      expect_same(a, b, name_of(words));
      EXPECT_EQ(a.llama->memory_hash(), base) << name_of(words);
    }
  }
}

TEST_F(PackedBase, SoDoesABaseInBf16AndOneThatIsPackedInPart) {
  for (const auto& words : {cases()[1], cases()[11]})
    for (const int64_t intermediate : {128, 80}) {
      const Settings packed{
          .packing = BasePacking::kQ4_1, .dtype = DType::kBF16, .intermediate = intermediate},
          expanded{.packing = BasePacking::kQ4_1,
                   .packed = false,
                   .dtype = DType::kBF16,
                   .intermediate = intermediate};
      TestRun a(packed, words), b(expanded, words);
      const int64_t down = config(intermediate).num_layers * 64 * intermediate, gains = 5 * 64;
      EXPECT_EQ(a.llama->packed_parameters(),
                a.llama->parameters() - gains - (intermediate == 80 ? down : 0));
      EXPECT_EQ(b.llama->packed_parameters(), 0);
      a.to(), b.to();
      expect_same(a, b, name_of(words));
    }
}

TEST_F(PackedBase, RecomputationAndAContinuedRunGiveTheSameBits) {
  for (const auto& words : cases()) {
    TestRun straight({}, words), layer({}, with(words, {"train.recompute=layer"}));
    straight.to(6);
    const std::string saved = save(straight, "middle");
    straight.to(), layer.to();
    expect_same(straight, layer, name_of(words) + ", recomputed");
    TestRun loaded({}, words);
    loaded.trainer->load(CheckpointReader(saved));
    loaded.to();
    straight.records.erase(straight.records.begin(), straight.records.begin() + 6);
    expect_same(straight, loaded, name_of(words) + ", continued");
  }
}

// f32 sums in another grouping, as in tests/train/trainer_test.cc.
TEST_F(PackedBase, AccumulatedBatchesEqualOneBatch) {
  for (const char* method : {"method=prompt", "method=qlora"}) {
    const std::vector<std::string> words{method, "loss.kind=ce", "optimizer.clip=0"};
    TestRun whole({}, with(words, {"train.batch=8"})),
        parts({}, with(words, {"train.batch=4", "train.accumulate=2"}));
    whole.to(1), parts.to(1);
    EXPECT_NEAR(whole.records[0].ce, parts.records[0].ce, 1e-5 * whole.records[0].ce) << method;
    EXPECT_NEAR(whole.records[0].grad_norm_g, parts.records[0].grad_norm_g,
                3e-5 * whole.records[0].grad_norm_g)
        << method;
  }
}

TEST_F(PackedBase, TheLossFalls) {
  for (const char* method : {"method=prompt", "method=qlora"}) {
    TestRun run({}, {method, "loss.kind=ce", "train.steps=80"});
    const double before = run.trainer->validate().ce;
    run.to();
    EXPECT_LT(run.trainer->validate().ce, before - 1.0) << method;  // as of an expanded base
  }
}

// A checkpoint belongs to the values it was trained over.
TEST_F(PackedBase, ACheckpointOfAnotherPackingIsRefused) {
  const std::vector<std::string> words{"method=qlora", "loss.kind=ce"};
  TestRun nf4({}, words);
  const std::string path = save(nf4.to(1), "nf4");
  for (const BasePacking other : {BasePacking::kNone, BasePacking::kQ4_0}) {
    TestRun run({.packing = other, .packed = other != BasePacking::kNone}, words);
    EXPECT_THROW(run.trainer->load(CheckpointReader(path)), Error);
  }
}

TEST_F(PackedBase, ValuesThatAreNotFiniteAreRefused) {
  const auto device = test::make_cpu(1);
  for (const BasePacking packing : {BasePacking::kNf4, BasePacking::kQ8_0})
    for (const float bad : {std::nanf(""), INFINITY}) {
      auto weights = std::make_shared<testing::MemoryWeights>(config(128));
      weights->values("model.layers.1.mlp.up_proj.weight")[70] = bad;
      try {
        Llama::load(*device, with_packing(weights, packing), DType::kF32, {}, true);
        FAIL() << "accepted";
      } catch (const Error& e) {
        EXPECT_NE(std::string(e.what()).find("up_proj.weight holds a value that is not finite in row 1"),
                  std::string::npos)
            << e.what();
      }
    }
}

TEST(PackedBaseConfig, QloraWantsAPackedBase) {
  const auto packing = [](const std::vector<std::string>& words) {
    return load_train_config("", words).model_quantize;
  };
  EXPECT_EQ(packing({}), BasePacking::kNone);
  EXPECT_EQ(packing({"method=lora"}), BasePacking::kNone);
  EXPECT_EQ(packing({"method=qlora"}), BasePacking::kNf4);
  EXPECT_EQ(packing({"method=qlora", "model_quantize=file"}), BasePacking::kFile);
  EXPECT_EQ(packing({"method=prompt", "model_quantize=q4_1"}), BasePacking::kQ4_1);
  EXPECT_THROW(packing({"method=qlora", "model_quantize=none"}), Error);
  EXPECT_THROW(packing({"model_quantize=q4_k"}), Error);
  EXPECT_THROW(packing({"method=qlora", "generator.prompt_length=4"}), Error);
  EXPECT_EQ(load_train_config("", {"method=qlora"}).generator.prompt_length, 0);
}

}  // namespace
}  // namespace gantrain
