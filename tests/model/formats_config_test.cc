// config.json: defaults, both spellings, the RoPE frequencies, and what is refused.
#include <gtest/gtest.h>

#include <cmath>

#include "model/config.h"
#include "tests/model/formats_support.h"

namespace gantrain {
namespace {

using test::message_of;

LlamaConfig parse(const std::string& json) { return parse_llama_config(json, "dir/config.json"); }
std::string refusal(const std::string& json) {
  return message_of([&] { parse(json); });
}

TEST(FormatsConfig, AbsentFieldsTakeTransformersDefaults) {
  const LlamaConfig c = parse("{}");
  EXPECT_EQ(c.vocab_size, 32000);
  EXPECT_EQ(c.hidden_size, 4096);
  EXPECT_EQ(c.intermediate_size, 11008);
  EXPECT_EQ(c.num_layers, 32);
  EXPECT_EQ(c.num_heads, 32);
  EXPECT_EQ(c.num_kv_heads, 32);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.rms_norm_eps, 1e-6f);
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_FALSE(c.attention_bias);
  EXPECT_FALSE(c.mlp_bias);
  EXPECT_EQ(c.max_position_embeddings, 2048);
  EXPECT_EQ(c.bos_token_id, 1);
  EXPECT_EQ(c.eos_token_ids, std::vector<int32_t>{2});
  EXPECT_EQ(c.rope.theta, 10000.0);
  EXPECT_EQ(c.rope.type, RopeType::kNone);
}

TEST(FormatsConfig, DependentDefaultsAndNulls) {
  const LlamaConfig c = parse(
      R"({"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": null, "head_dim": null,
          "bos_token_id": null, "eos_token_id": null, "rope_scaling": null, "pretraining_tp": 1})");
  EXPECT_EQ(c.num_kv_heads, 9);
  EXPECT_EQ(c.head_dim, 64);
  EXPECT_EQ(parse(R"({"head_dim": 100, "num_key_value_heads": 8})").head_dim, 100);
  EXPECT_EQ(parse(R"({"num_key_value_heads": 8})").num_kv_heads, 8);
}

TEST(FormatsConfig, EndIdsAreOneOrAList) {
  EXPECT_EQ(parse(R"({"eos_token_id": 7})").eos_token_ids, std::vector<int32_t>{7});
  EXPECT_EQ(parse(R"({"eos_token_id": [128001, 128008, 128009]})").eos_token_ids,
            (std::vector<int32_t>{128001, 128008, 128009}));
}

TEST(FormatsConfig, BothSpellingsOfRopeSettingsMeanTheSame) {
  const std::string scaling =
      R"("factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192)";
  const LlamaConfig old = parse(
      R"({"head_dim": 64, "rope_theta": 500000.0, "rope_scaling": {"type": "llama3", )" + scaling + "}}");
  const LlamaConfig now =
      parse(R"({"head_dim": 64, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", )" +
            scaling + "}}");
  for (const LlamaConfig& c : {old, now}) {
    EXPECT_EQ(c.rope.type, RopeType::kLlama3);
    EXPECT_EQ(c.rope.theta, 500000.0);
    EXPECT_EQ(c.rope.factor, 32.0);
    EXPECT_EQ(c.rope.original_max_position, 8192.0);
  }
  EXPECT_EQ(rope_inverse_frequencies(old), rope_inverse_frequencies(now));
  EXPECT_EQ(parse(R"({"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}})").rope.theta, 1e5);
}

TEST(FormatsConfig, PlainAndLinearFrequencies) {
  LlamaConfig c = parse(R"({"head_dim": 100, "rope_theta": 1e5})");
  std::vector<float> f = rope_inverse_frequencies(c);
  ASSERT_EQ(f.size(), 50u);
  for (size_t i = 0; i < f.size(); ++i)
    EXPECT_EQ(f[i], static_cast<float>(std::pow(1e5, -2.0 * static_cast<double>(i) / 100.0))) << i;
  c = parse(R"({"head_dim": 100, "rope_theta": 1e5, "rope_scaling": {"rope_type": "linear", "factor": 4}})");
  const std::vector<float> scaled = rope_inverse_frequencies(c);
  for (size_t i = 0; i < f.size(); ++i) EXPECT_EQ(scaled[i], f[i] / 4.0f) << i;
}

TEST(FormatsConfig, Llama3FrequenciesKeepBlendAndDivide) {
  const LlamaConfig c = parse(
      R"({"head_dim": 64, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 32, "low_freq_factor": 1,
          "high_freq_factor": 4, "original_max_position_embeddings": 8192}})");
  const std::vector<float> f = rope_inverse_frequencies(c);
  int kept = 0, blended = 0, divided = 0;
  for (size_t i = 0; i < f.size(); ++i) {
    const double plain = std::pow(5e5, -static_cast<double>(i) / 32.0), wave = 2.0 * std::acos(-1.0) / plain;
    if (wave < 8192.0 / 4) {
      EXPECT_EQ(f[i], static_cast<float>(plain));
      ++kept;
    } else if (wave > 8192.0) {
      EXPECT_EQ(f[i], static_cast<float>(plain / 32));
      ++divided;
    } else {
      const double s = (8192.0 / wave - 1.0) / 3.0;
      EXPECT_FLOAT_EQ(f[i], static_cast<float>((1 - s) * plain / 32 + s * plain));
      ++blended;
    }
  }
  EXPECT_TRUE(kept > 10 && blended > 0 && divided > 5) << kept << ' ' << blended << ' ' << divided;
}

TEST(FormatsConfig, FactorsOfGgufDivide) {
  LlamaConfig c = parse(R"({"head_dim": 4, "rope_theta": 100})");
  c.rope.factors = {1.0f, 8.0f};
  EXPECT_EQ(rope_inverse_frequencies(c), (std::vector<float>{1.0f, 0.1f / 8}));
}

TEST(FormatsConfig, WhatWeDoNotDoIsRefusedByName) {
  const char* path = "dir/config.json";
  for (const char* type : {"dynamic", "yarn", "longrope", "su", "mrope"})
    GT_EXPECT_MESSAGE(refusal(fmt::format(R"({{"rope_scaling": {{"type": "{}", "factor": 2}}}})", type)),
                      path, fmt::format("RoPE type '{}' is not supported", type));
  GT_EXPECT_MESSAGE(refusal(R"({"model_type": "mistral"})"), path, "model_type 'mistral'");
  GT_EXPECT_MESSAGE(refusal(R"({"architectures": ["GPT2LMHeadModel"]})"), path, "'GPT2LMHeadModel'");
  GT_EXPECT_MESSAGE(refusal(R"({"architectures": []})"), path, "architectures");
  GT_EXPECT_MESSAGE(refusal(R"({"hidden_act": "gelu"})"), path, "hidden_act 'gelu'");
  GT_EXPECT_MESSAGE(refusal(R"({"quantization_config": {"quant_method": "gptq"}})"), path,
                    "quantization_config");
  GT_EXPECT_MESSAGE(refusal(R"({"rope_interleaved": true})"), path, "rope_interleaved");
  GT_EXPECT_MESSAGE(refusal(R"({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}})"),
                    path, "partial_rotary_factor");
  GT_EXPECT_MESSAGE(refusal(R"({"rope_scaling": {"rope_type": "llama3"}})"), path, "factor' is missing");
}

TEST(FormatsConfig, RangesAndTypes) {
  const char* path = "dir/config.json";
  const std::pair<const char*, const char*> cases[] = {
      {R"({"hidden_size": 0})", "hidden_size: expected 1 to"},
      {R"({"hidden_size": -576})", "hidden_size: expected 1 to"},
      {R"({"hidden_size": 1e3})", "'hidden_size': expected an integer"},
      {R"({"hidden_size": "576"})", "'hidden_size': expected an integer, got \"576\""},
      {R"({"hidden_size": 18446744073709551615})", "expected a smaller integer"},
      {R"({"vocab_size": 100000000000})", "vocab_size: expected"},
      {R"({"num_hidden_layers": 0})", "num_hidden_layers"},
      {R"({"num_attention_heads": 0})", "num_attention_heads"},
      {R"({"num_attention_heads": 9, "num_key_value_heads": 2})", "not a multiple"},
      {R"({"num_attention_heads": 4, "num_key_value_heads": 8})", "num_key_value_heads"},
      {R"({"head_dim": 63})", "head_dim 63 is odd"},
      {R"({"head_dim": 100000})", "head_dim: expected"},
      {R"({"rms_norm_eps": 0})", "rms_norm_eps"},
      {R"({"rope_theta": -1})", "rope_theta"},
      {R"({"rope_theta": 1e999})", "not valid JSON"},
      {R"({"rope_scaling": 4})", "'rope_scaling': expected an object"},
      {R"({"rope_scaling": {"type": "linear", "factor": 0}})", "rope factor"},
      {R"({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}})",
       "low_freq_factor < high_freq_factor"},
      {R"({"eos_token_id": [1, -2]})", "'eos_token_id': expected a token id"},
      {R"({"eos_token_id": [1, "2"]})", "'eos_token_id': expected a token id"},
      {R"({"bos_token_id": 99999999999})", "'bos_token_id'"},
      {R"({"tie_word_embeddings": 1})", "'tie_word_embeddings': expected true or false, got 1"},
      {R"({"hidden_size": 64, "hidden_size": 128})", "key 'hidden_size' stands twice"},
      {"[]", "expected a JSON object, got array"},
      {"", "not valid JSON"},
      {R"({"hidden_size": 64)", "not valid JSON"},
      {"{\"model_type\": \"\xff\"}", "not valid JSON"},
  };
  for (const auto& [json, part] : cases) {
    SCOPED_TRACE(json);
    GT_EXPECT_MESSAGE(refusal(json), path, part);
  }
}

// A value printed in a message is printed by recursion: a million brackets would be the end of the stack.
TEST(FormatsConfig, DeepNestingIsRefused) {
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  GT_EXPECT_MESSAGE(refusal("{\"eos_token_id\": " + deep + "}"), "dir/config.json",
                    "nested deeper than 32 levels");
  GT_EXPECT_MESSAGE(refusal(std::string(1000000, '[')), "dir/config.json", "nested deeper than 32 levels");
  EXPECT_EQ(parse("{\"other\": " + std::string(31, '[') + std::string(31, ']') + "}").vocab_size, 32000);
}

}  // namespace
}  // namespace gantrain
