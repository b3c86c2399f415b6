// Adapter files: what is written is read, and what is no adapter of the model is refused with file and place.
#include "model/adapters/peft.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/adapters/merge.h"
#include "model/formats/gguf.h"
#include "model/formats/safetensors.h"
#include "model/runner.h"
#include "tests/support/devices.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::MemoryWeights;
using testing::tiny_config;

class Peft : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("gantrain_peft_{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string at(const std::string& name) const { return (folder_ / name).string(); }

  static PeftAdapter lora(int64_t rank, bool rslora, std::array<bool, kLoraTargets> targets) {
    PeftAdapter a;
    a.type = "LORA";
    a.shape = {.rank = rank, .alpha = 12.0, .rslora = rslora, .targets = targets};
    a.layers.resize(3);
    for (size_t l = 0; l < 3; ++l)
      for (size_t t = 0; t < kLoraTargets; ++t) {
        if (!targets[t]) continue;
        const LoraDims d = lora_dims(tiny_config(), t);
        a.layers[l][t] = {test::random_normal(rank * d.in, 10 * l + t, 0.1f),
                          test::random_normal(d.out * rank, 90 + 10 * l + t, 0.3f)};
      }
    return a;
  }
  static void expect_same(const PeftAdapter& a, const PeftAdapter& b) {
    EXPECT_EQ(a.type, b.type);
    EXPECT_EQ(a.prompt, b.prompt);
    ASSERT_EQ(a.layers.size(), b.layers.size());
    for (size_t l = 0; l < a.layers.size(); ++l)
      for (size_t t = 0; t < kLoraTargets; ++t) {
        EXPECT_EQ(a.layers[l][t].a, b.layers[l][t].a) << l << " " << t;
        EXPECT_EQ(a.layers[l][t].b, b.layers[l][t].b) << l << " " << t;
      }
  }
  // What reading the folder says.
  std::string refusal(const std::string& folder) const {
    try {
      read_peft(folder, tiny_config());
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  // A good folder whose configuration was changed.
  std::string refusal_with(const std::string& name, const std::function<void(json&)>& change) const {
    const std::string folder = at(name);
    write_peft(folder, lora(4, false, {true, false, true, false, false, false, false}), tiny_config(),
               "base");
    const std::string path = folder + "/adapter_config.json";
    json j = json::parse(std::ifstream(path));
    change(j);
    std::ofstream(path) << j.dump();
    return refusal(folder);
  }

  fs::path folder_;
};
#define EXPECT_SAYS(TEXT, PART) EXPECT_NE((TEXT).find(PART), std::string::npos) << (TEXT)

constexpr std::array<bool, kLoraTargets> kAll{true, true, true, true, true, true, true};

TEST_F(Peft, WhatIsWrittenIsRead) {
  int i = 0;
  for (const auto& adapter :
       {lora(5, false, kAll), lora(3, true, {false, true, false, false, false, false, true})}) {
    const std::string folder = at(std::to_string(i++));
    write_peft(folder, adapter, tiny_config(), "some/base");
    const PeftAdapter again = read_peft(folder, tiny_config());
    expect_same(adapter, again);
    EXPECT_TRUE(adapter.shape == again.shape);
    EXPECT_THROW(write_peft(folder, adapter, tiny_config(), "some/base"), Error) << "written over";
  }
  PeftAdapter prompt;
  prompt.type = "PROMPT_TUNING";
  prompt.prompt = test::random_normal(7 * 48, 3);
  write_peft(at("prompt"), prompt, tiny_config(), "some/base");
  expect_same(prompt, read_peft(at("prompt"), tiny_config()));
}

TEST_F(Peft, NarrowTypesAreWidened) {
  std::vector<bf16> values;
  for (const float v : test::random_normal(2 * 48, 4)) values.push_back(bf16(v));
  fs::create_directories(at("bf16"));
  write_safetensors(at("bf16/adapter_model.safetensors"),
                    {{kPeftPromptKey, ConstTensor(values.data(), DType::kBF16, {2, 48})}});
  std::ofstream(at("bf16/adapter_config.json")) << R"({"peft_type": "P_TUNING"})";
  const PeftAdapter got = read_peft(at("bf16"), tiny_config());
  ASSERT_EQ(got.prompt.size(), values.size());
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(got.prompt[i], static_cast<float>(values[i]));
}

TEST_F(Peft, WhatWouldBeAnotherModelIsRefused) {
  EXPECT_EQ(refusal_with("good", [](json& j) { j["rank_pattern"] = json::object(); }), "");
  const auto set = [](const char* key, const json& value) { return [=](json& j) { j[key] = value; }; };
  EXPECT_SAYS(refusal_with("dora", set("use_dora", true)), "use_dora true is not supported");
  EXPECT_SAYS(refusal_with("pattern", set("rank_pattern", {{"q_proj", 2}})), "rank_pattern");
  EXPECT_SAYS(refusal_with("alpha", set("alpha_pattern", {{"q_proj", 2}})), "alpha_pattern");
  EXPECT_SAYS(refusal_with("bias", set("bias", "all")), "bias \"all\" is not supported");
  EXPECT_SAYS(refusal_with("fan", set("fan_in_fan_out", true)), "fan_in_fan_out");
  EXPECT_SAYS(refusal_with("modules", set("modules_to_save", {"lm_head"})), "modules_to_save");
  EXPECT_SAYS(refusal_with("pissa", set("init_lora_weights", "pissa")), "changed base weights");
  EXPECT_SAYS(refusal_with("no_r", [](json& j) { j.erase("r"); }), "r: expected an integer, got nothing");
  EXPECT_SAYS(refusal_with("text_r", set("r", "8")), "r: expected an integer, got \"8\"");
  EXPECT_SAYS(refusal_with("zero_r", set("r", 0)), "rank: expected 1 to 4096, got 0");
  EXPECT_SAYS(refusal_with("huge_r", set("r", uint64_t{1} << 63)), "rank: expected 1 to 4096");
  EXPECT_SAYS(refusal_with("other_r", set("r", 5)), "lora_A.weight': expected f32, bf16 or f16 (5, 48)");
  EXPECT_SAYS(refusal_with("alpha_text", set("lora_alpha", "x")), "lora_alpha: expected a number");
  EXPECT_SAYS(refusal_with("rslora", set("use_rslora", 1)), "use_rslora: expected true or false");
  EXPECT_SAYS(refusal_with("type", set("peft_type", "IA3")), "peft_type IA3 is not supported");
  EXPECT_SAYS(refusal(at("nothing")), "adapter_config.json: cannot open");
}

TEST_F(Peft, MissingAndStrangeTensorsAreNamed) {
  const PeftAdapter whole = lora(4, false, {true, false, false, false, false, false, false});
  const auto write = [&](const std::string& name, const std::vector<NamedTensor>& tensors) {
    fs::create_directories(at(name));
    std::ofstream(at(name) + "/adapter_config.json") << R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8})";
    write_safetensors(at(name) + "/adapter_model.safetensors", tensors);
    return refusal(at(name));
  };
  const auto some = [&](size_t layers) {
    std::vector<NamedTensor> t;
    for (size_t l = 0; l < layers; ++l) {
      t.push_back({peft_key(l, 0, false), ConstTensor(whole.layers[l][0].a.data(), DType::kF32, {4, 48})});
      t.push_back({peft_key(l, 0, true), ConstTensor(whole.layers[l][0].b.data(), DType::kF32, {96, 4})});
    }
    return t;
  };
  EXPECT_EQ(write("whole", some(3)), "");
  EXPECT_SAYS(write("short", some(2)),
              "no tensor 'base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight'");
  EXPECT_SAYS(write("none", {}), "no linear layer named");
  auto more = some(3);
  more.push_back({"base_model.model.lm_head.lora_A.weight", more[0].tensor});
  EXPECT_SAYS(write("more", more), "unexpected tensor 'base_model.model.lm_head.lora_A.weight'");
  auto wide = some(3);
  wide[1].tensor = ConstTensor(whole.layers[0][0].b.data(), DType::kF32, {48, 8});
  EXPECT_SAYS(write("wide", wide), "expected f32, bf16 or f16 (96, 4), got f32 (48, 8)");
  std::vector<float> bad(4 * 48, 1.0f);
  bad[7] = std::numeric_limits<float>::infinity();
  auto infinite = some(3);
  infinite[0].tensor = ConstTensor(bad.data(), DType::kF32, {4, 48});
  EXPECT_SAYS(write("infinite", infinite), "value 7 is not finite");
}

// Logits of 20 tokens.
std::vector<float> logits(Device& device, const Llama& llama, const LoraAdapter* lora) {
  PackedBatch batch;
  const int32_t s = batch.add(-1, test::random_ints(20, 5, 0, 96));
  std::vector<int32_t> rows;
  for (int32_t i = 0; i < 20; ++i) rows.push_back(batch.segment(s).row_begin + i);
  Runner runner(device, llama);
  runner.forward(batch, {}, Saving::kNothing, -1, lora);
  return runner.logits(rows);
}

TEST_F(Peft, MergedWeightsHaveTheAdaptersLogits) {
  const auto device = test::make_cpu(2);
  const MemoryWeights base(tiny_config());
  const auto llama = Llama::load(*device, std::make_shared<MemoryWeights>(tiny_config()), DType::kF32);
  const PeftAdapter adapter = lora(5, true, kAll);
  const auto on_device = lora_on_device(*device, tiny_config(), adapter, false);
  const std::vector<float> want = logits(*device, *llama, &on_device->adapter()),
                           off = logits(*device, *llama, nullptr);
  double largest = 0, moved = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(want[i])));
    moved = std::max(moved, std::abs(static_cast<double>(want[i]) - static_cast<double>(off[i])));
  }
  EXPECT_GT(moved, 0.1 * largest);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::string folder = at(dtype_name(dtype));
    write_merged(folder, base, adapter, dtype);
    const auto merged = Llama::load(*device, open_weights(folder), DType::kF32);
    const std::vector<float> got = logits(*device, *merged, nullptr);
    // f32: the same sums in another order; bf16: every weight rounded by up to 2^-8 of itself, at random.
    const double limit = (dtype == DType::kF32 ? 2e-5 : 0.05) * largest;
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_TRUE(std::abs(static_cast<double>(want[i]) - static_cast<double>(got[i])) <= limit)
          << dtype_name(dtype) << ", logit " << i << ": " << got[i] << ", " << want[i];
    EXPECT_THROW(write_merged(folder, base, adapter, dtype), Error) << "written over";
  }
}

TEST_F(Peft, GgufAdaptersComeBack) {
  const PeftAdapter adapter = lora(5, false, kAll);
  write_lora_gguf(at("a.gguf"), adapter, tiny_config());
  const PeftAdapter again = read_lora_gguf(at("a.gguf"), tiny_config());
  expect_same(adapter, again);
  EXPECT_EQ(adapter.shape.scale(), again.shape.scale());
  EXPECT_THROW(write_lora_gguf(at("a.gguf"), adapter, tiny_config()), Error) << "written over";
  // As llama.cpp wants them: rows of q's B head by head, pair (j, j + D/2) side by side; A as it is.
  const GgufFile file(at("a.gguf"));
  EXPECT_EQ(file.get_string("general.type"), "adapter");
  EXPECT_EQ(file.get_string("general.architecture"), "llama");
  const GgufFile::Tensor* b = file.find("blk.1.attn_q.weight.lora_b");
  ASSERT_NE(b, nullptr);
  std::vector<float> rows(96 * 5);
  file.read_rows(*b, 0, 96, rows.data());
  const std::vector<float>& own = adapter.layers[1][0].b;  // heads of 16
  for (size_t head = 0; head < 6; ++head)
    for (size_t j = 0; j < 8; ++j)
      for (size_t r = 0; r < 5; ++r) {
        EXPECT_EQ(rows[(head * 16 + 2 * j) * 5 + r], own[(head * 16 + j) * 5 + r]);
        EXPECT_EQ(rows[(head * 16 + 2 * j + 1) * 5 + r], own[(head * 16 + 8 + j) * 5 + r]);
      }
  // rsLoRA's scale, 12 / sqrt(4), as an alpha over the rank: 24 / 4.
  write_lora_gguf(at("rs.gguf"), lora(4, true, kAll), tiny_config());
  EXPECT_EQ(GgufFile(at("rs.gguf")).get_float("adapter.lora.alpha"), 24.0);
}

}  // namespace
}  // namespace gantrain
