// The shape of a Llama: config.json of the Hugging Face LlamaForCausalLM family, or what another format says
// of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gantrain {

enum class RopeType : uint8_t { kNone, kLinear, kLlama3 };

struct RopeScaling {
  double theta = 10000.0;
  RopeType type = RopeType::kNone;
  double factor = 1.0;                    // linear and llama3
  double low_freq_factor = 1.0;           // llama3
  double high_freq_factor = 4.0;          // llama3
  double original_max_position = 8192.0;  // llama3
  std::vector<float> factors;  // head_dim / 2 divisors of the frequencies (GGUF rope_freqs.weight), or empty
};

struct LlamaConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;
  int64_t num_layers = 32;
  int64_t num_heads = 32;
  int64_t num_kv_heads = 32;
  int64_t head_dim = 128;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // q, k, v and o
  bool mlp_bias = false;        // gate, up and down
  int64_t max_position_embeddings = 2048;
  int32_t bos_token_id = -1;  // -1: none
  std::vector<int32_t> eos_token_ids;
  RopeScaling rope;
};

// Reads config.json's text; `path` is for messages. Absent fields take LlamaConfig's defaults in transformers
// (kv heads: heads; head_dim: hidden / heads). Both spellings of RoPE settings. Other architectures,
// activations and RoPE types are refused by name.
LlamaConfig parse_llama_config(std::string_view json, const std::string& path);

// Throws Error if an extent is out of range or two do not fit each other.
void validate(const LlamaConfig& config, const std::string& path);

// head_dim / 2 inverse frequencies, computed in double: theta^(-2i/D), then the scaling. llama3: Dubey et al.
// 2407.21783.
std::vector<float> rope_inverse_frequencies(const LlamaConfig& config);

}  // namespace gantrain
