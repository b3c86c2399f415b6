#include "model/config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/formats/json_text.h"

namespace gantrain {
namespace {

using nlohmann::json;

class Fields {
 public:
  Fields(const json& object, const std::string& path, std::string prefix = "")
      : object_(object), path_(path), prefix_(std::move(prefix)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  int64_t integer(const char* key, int64_t otherwise) const {
    if (!has(key)) return otherwise;
    const json& v = object_.at(key);
    if (!v.is_number_integer()) wrong(key, "an integer", v);
    if (v.is_number_unsigned() && v.get<uint64_t>() > (1ull << 62)) wrong(key, "a smaller integer", v);
    return v.get<int64_t>();
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    const json& v = object_.at(key);
    if (!v.is_number()) wrong(key, "a number", v);
    return v.get<double>();
  }
  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const json& v = object_.at(key);
    if (!v.is_boolean()) wrong(key, "true or false", v);
    return v.get<bool>();
  }
  std::string string(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    const json& v = object_.at(key);
    if (!v.is_string()) wrong(key, "a string", v);
    return v.get<std::string>();
  }
  std::vector<int32_t> ids(const char* key, std::vector<int32_t> otherwise) const {
    if (!has(key)) return otherwise;
    const json& v = object_.at(key);
    std::vector<int32_t> out;
    for (const json& e : v.is_array() ? v : json::array({v})) {
      if (!e.is_number_integer() || e.get<int64_t>() < 0 || e.get<int64_t>() > 0x7fffffff)
        wrong(key, "a token id or a list of them", v);
      out.push_back(e.get<int32_t>());
    }
    return out;
  }
  const json& raw(const char* key) const { return object_.at(key); }
  [[noreturn]] void wrong(const char* key, const char* expected, const json& got) const {
    fail("{}: field '{}{}': expected {}, got {}", path_, prefix_, key, expected, got.dump().substr(0, 80));
  }

 private:
  const json& object_;
  const std::string& path_;
  std::string prefix_;
};

RopeScaling parse_rope(const Fields& top, const std::string& path, int64_t max_position) {
  RopeScaling rope;
  rope.theta = top.number("rope_theta", 10000.0);
  // transformers >= 5 writes rope_parameters (theta inside); older files have rope_theta and rope_scaling.
  const char* key = top.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.has(key)) return rope;
  if (!top.raw(key).is_object()) top.wrong(key, "an object", top.raw(key));
  const Fields f(top.raw(key), path, std::string(key) + ".");
  rope.theta = f.number("rope_theta", rope.theta);
  if (f.number("partial_rotary_factor", 1.0) != 1.0)
    f.wrong("partial_rotary_factor", "1 (every dimension is rotated)", f.raw("partial_rotary_factor"));
  const std::string type = f.string("rope_type", f.string("type", "default"));
  if (type == "default") return rope;
  if (type == "linear") {
    rope.type = RopeType::kLinear;
    rope.factor = f.number("factor", 1.0);
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
    if (!f.has("factor"))
      fail("{}: field '{}.factor' is missing; rope type llama3 needs its own factor", path, key);
    rope.factor = f.number("factor", 8.0);
    rope.low_freq_factor = f.number("low_freq_factor", 1.0);
    rope.high_freq_factor = f.number("high_freq_factor", 4.0);
    rope.original_max_position =
        f.number("original_max_position_embeddings", static_cast<double>(max_position));
  } else {
    fail("{}: field '{}.rope_type': RoPE type '{}' is not supported; supported: default, linear, llama3",
         path, key, type);
  }
  return rope;
}

}  // namespace

LlamaConfig parse_llama_config(std::string_view text, const std::string& path) {
  const json root = parse_json(text, path);
  if (!root.is_object()) fail("{}: expected a JSON object, got {}", path, root.type_name());
  const Fields f(root, path);
  const std::string type = f.string("model_type", "llama");
  if (type != "llama")
    fail(
        "{}: model_type '{}' is not supported; supported: llama (Llama 1, 2, 3, 3.1, 3.2, TinyLlama, SmolLM)",
        path, type);
  if (f.has("architectures")) {
    const json& a = f.raw("architectures");
    if (!a.is_array() || a.empty() || !a[0].is_string()) f.wrong("architectures", "a list of names", a);
    const std::string name = a[0].get<std::string>();
    if (name != "LlamaForCausalLM" && name != "LlamaModel" && name != "LLaMAForCausalLM")
      fail("{}: architecture '{}' is not supported; supported: LlamaForCausalLM", path, name);
  }
  const std::string act = f.string("hidden_act", "silu");
  if (act != "silu" && act != "swish")
    fail("{}: hidden_act '{}' is not supported; supported: silu", path, act);
  if (f.has("quantization_config"))
    fail(
        "{}: field 'quantization_config': quantised Hugging Face weights are not supported; use the "
        "unquantised folder or a "
        "GGUF file",
        path);
  if (f.boolean("rope_interleaved", false))
    fail("{}: field 'rope_interleaved': true is not supported in a Hugging Face folder", path);

  LlamaConfig c;
  c.vocab_size = f.integer("vocab_size", 32000);
  c.hidden_size = f.integer("hidden_size", 4096);
  c.intermediate_size = f.integer("intermediate_size", 11008);
  c.num_layers = f.integer("num_hidden_layers", 32);
  c.num_heads = f.integer("num_attention_heads", 32);
  c.num_kv_heads = f.integer("num_key_value_heads", c.num_heads);
  if (c.num_heads <= 0)
    fail("{}: field 'num_attention_heads': expected a positive integer, got {}", path, c.num_heads);
  c.head_dim = f.integer("head_dim", c.hidden_size / c.num_heads);
  c.rms_norm_eps = static_cast<float>(f.number("rms_norm_eps", 1e-6));
  c.tie_word_embeddings = f.boolean("tie_word_embeddings", false);
  c.attention_bias = f.boolean("attention_bias", false);
  c.mlp_bias = f.boolean("mlp_bias", false);
  c.max_position_embeddings = f.integer("max_position_embeddings", 2048);
  const std::vector<int32_t> bos = f.ids("bos_token_id", {1});
  c.bos_token_id = bos.empty() ? -1 : bos[0];
  c.eos_token_ids = f.ids("eos_token_id", {2});
  c.rope = parse_rope(f, path, c.max_position_embeddings);
  validate(c, path);
  return c;
}

void validate(const LlamaConfig& c, const std::string& path) {
  auto range = [&](const char* name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) fail("{}: {}: expected {} to {}, got {}", path, name, low, high, value);
  };
  range("vocab_size", c.vocab_size, 2, int64_t{1} << 24);
  range("hidden_size", c.hidden_size, 1, 1 << 17);
  range("intermediate_size", c.intermediate_size, 1, 1 << 20);
  range("num_hidden_layers", c.num_layers, 1, 1024);
  range("num_attention_heads", c.num_heads, 1, 4096);
  range("num_key_value_heads", c.num_kv_heads, 1, c.num_heads);
  range("head_dim", c.head_dim, 2, 1024);
  range("max_position_embeddings", c.max_position_embeddings, 1, int64_t{1} << 30);
  if (c.num_heads % c.num_kv_heads != 0)
    fail("{}: num_attention_heads {} is not a multiple of num_key_value_heads {}", path, c.num_heads,
         c.num_kv_heads);
  if (c.head_dim % 2 != 0) fail("{}: head_dim {} is odd; RoPE rotates pairs", path, c.head_dim);
  if (!(c.rms_norm_eps > 0.0f && c.rms_norm_eps < 1.0f))
    fail("{}: rms_norm_eps: expected 0 to 1, got {}", path, c.rms_norm_eps);
  if (!(c.rope.theta > 0.0 && c.rope.theta < 1e12))
    fail("{}: rope_theta: expected a positive number, got {}", path, c.rope.theta);
  if (!(c.rope.factor > 0.0 && c.rope.factor < 1e6))
    fail("{}: rope factor: expected a positive number, got {}", path, c.rope.factor);
  if (c.rope.type == RopeType::kLlama3 &&
      !(c.rope.low_freq_factor > 0.0 && c.rope.high_freq_factor > c.rope.low_freq_factor &&
        c.rope.original_max_position > 0.0))
    fail(
        "{}: rope type llama3: expected 0 < low_freq_factor < high_freq_factor and a positive "
        "original_max_position_embeddings, "
        "got {}, {}, {}",
        path, c.rope.low_freq_factor, c.rope.high_freq_factor, c.rope.original_max_position);
  if (!c.rope.factors.empty() && static_cast<int64_t>(c.rope.factors.size()) != c.head_dim / 2)
    fail("{}: rope_freqs: expected {} factors, got {}", path, c.head_dim / 2, c.rope.factors.size());
}

std::vector<float> rope_inverse_frequencies(const LlamaConfig& c) {
  std::vector<float> out;
  constexpr double kTwoPi = 6.283185307179586476925286766559;
  for (int64_t i = 0; i < c.head_dim / 2; ++i) {
    // transformers computes the powers in f32; the rounding to f32 at the end is the same to the last bit or
    // two.
    double f = std::pow(c.rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim));
    if (c.rope.type == RopeType::kLinear) f /= c.rope.factor;
    if (c.rope.type == RopeType::kLlama3) {
      const double wavelength = kTwoPi / f;
      const double low = c.rope.original_max_position / c.rope.low_freq_factor;
      const double high = c.rope.original_max_position / c.rope.high_freq_factor;
      if (wavelength > low) {
        f /= c.rope.factor;
      } else if (wavelength >= high) {
        const double s = (c.rope.original_max_position / wavelength - c.rope.low_freq_factor) /
                         (c.rope.high_freq_factor - c.rope.low_freq_factor);
        f = (1.0 - s) * f / c.rope.factor + s * f;
      }
    }
    if (!c.rope.factors.empty()) f /= static_cast<double>(c.rope.factors[static_cast<size_t>(i)]);
    out.push_back(static_cast<float>(f));
  }
  return out;
}

}  // namespace gantrain
