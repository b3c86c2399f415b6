// Random Llamas held in memory, for tests of the whole model.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "core/check.h"
#include "core/rng.h"
#include "model/weights.h"

namespace gantrain::testing {

class MemoryWeights : public Weights {
 public:
  explicit MemoryWeights(const LlamaConfig& config, uint64_t seed = 1) : config_(config), seed_(seed) {
    const int64_t c = config.hidden_size, d = config.head_dim, f = config.intermediate_size;
    const int64_t q = config.num_heads * d, kv = config.num_kv_heads * d;
    matrix("model.embed_tokens.weight", config.vocab_size, c, 0.5f);
    for (int64_t i = 0; i < config.num_layers; ++i) {
      const std::string p = fmt::format("model.layers.{}.", i), att = p + "self_attn.", mlp = p + "mlp.";
      gain(p + "input_layernorm.weight", c);
      gain(p + "post_attention_layernorm.weight", c);
      matrix(att + "q_proj.weight", q, c);
      matrix(att + "k_proj.weight", kv, c);
      matrix(att + "v_proj.weight", kv, c);
      matrix(att + "o_proj.weight", c, q);
      matrix(mlp + "gate_proj.weight", f, c);
      matrix(mlp + "up_proj.weight", f, c);
      matrix(mlp + "down_proj.weight", c, f);
      if (config.attention_bias) {
        bias(att + "q_proj.bias", q);
        bias(att + "k_proj.bias", kv);
        bias(att + "v_proj.bias", kv);
        bias(att + "o_proj.bias", c);
      }
      if (config.mlp_bias) {
        bias(mlp + "gate_proj.bias", f);
        bias(mlp + "up_proj.bias", f);
        bias(mlp + "down_proj.bias", c);
      }
    }
    gain("model.norm.weight", c);
    if (!config.tie_word_embeddings) matrix("lm_head.weight", config.vocab_size, c, 0.5f);
  }

  const LlamaConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  std::string format() const override { return "memory"; }
  const std::vector<TensorEntry>& tensors() const override { return entries_; }
  bool has(std::string_view name) const override { return values_.count(std::string(name)) > 0; }
  void read_rows(std::string_view name, int64_t begin, int64_t n, float* out) const override {
    const std::vector<float>& v = values_.at(std::string(name));
    int64_t cols = static_cast<int64_t>(v.size());
    for (const TensorEntry& e : entries_)
      if (e.name == name && e.shape.rank == 2) cols = e.shape[1];
    std::copy_n(v.begin() + begin * cols, n * cols, out);
  }
  ConstTensor direct(std::string_view) const override { return {}; }

  std::vector<float>& values(const std::string& name) { return values_.at(name); }

 private:
  void add(const std::string& name, Shape shape, float mean, float deviation) {
    std::vector<float> v(static_cast<size_t>(shape.count()));
    const Philox rng{derive_key(seed_, entries_.size())};
    for (size_t i = 0; i < v.size(); ++i) {
      const auto words = rng(0, i);
      v[i] = mean + deviation * normal_pair(words[0], words[1])[0];
    }
    entries_.push_back({name, shape, "f32", shape.count() * 4});
    values_.emplace(name, std::move(v));
  }
  void matrix(const std::string& name, int64_t rows, int64_t cols, float deviation = 0.0f) {
    add(name, {rows, cols}, 0.0f, deviation > 0 ? deviation : 1.0f / std::sqrt(static_cast<float>(cols)));
  }
  void gain(const std::string& name, int64_t n) { add(name, {n}, 1.0f, 0.2f); }
  void bias(const std::string& name, int64_t n) { add(name, {n}, 0.0f, 0.1f); }

  LlamaConfig config_;
  uint64_t seed_;
  std::string path_ = "(memory)";
  std::vector<TensorEntry> entries_;
  std::map<std::string, std::vector<float>> values_;
};

inline LlamaConfig tiny_config() {
  LlamaConfig c;
  c.vocab_size = 97;
  c.hidden_size = 48;
  c.intermediate_size = 80;
  c.num_layers = 3;
  c.num_heads = 6;
  c.num_kv_heads = 2;
  c.head_dim = 16;  // not C / H
  c.rms_norm_eps = 1e-5f;
  c.tie_word_embeddings = true;
  c.max_position_embeddings = 512;
  return c;
}

}  // namespace gantrain::testing
