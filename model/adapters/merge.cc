#include "model/adapters/merge.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/formats/gguf.h"
#include "model/formats/mapped_file.h"
#include "model/formats/safetensors.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kShardBytes = 1'000'000'000;

void write_text(const fs::path& path, const std::string& text) {
  write_file_atomically(path.string(), {{text.data(), text.size()}});
}

// config.json of transformers' LlamaForCausalLM for a base that has none of its own.
json hugging_face_config(const LlamaConfig& c) {
  if (!c.rope.factors.empty() && c.rope.type != RopeType::kNone)
    fail("RoPE scaling with factors of its own beside a named type has no place in config.json");
  json j{{"architectures", {"LlamaForCausalLM"}},
         {"model_type", "llama"},
         {"hidden_act", "silu"},
         {"vocab_size", c.vocab_size},
         {"hidden_size", c.hidden_size},
         {"intermediate_size", c.intermediate_size},
         {"num_hidden_layers", c.num_layers},
         {"num_attention_heads", c.num_heads},
         {"num_key_value_heads", c.num_kv_heads},
         {"head_dim", c.head_dim},
         {"rms_norm_eps", static_cast<double>(c.rms_norm_eps)},
         {"tie_word_embeddings", c.tie_word_embeddings},
         {"attention_bias", c.attention_bias},
         {"mlp_bias", c.mlp_bias},
         {"max_position_embeddings", c.max_position_embeddings},
         {"rope_theta", c.rope.theta}};
  if (c.bos_token_id >= 0) j["bos_token_id"] = c.bos_token_id;
  if (c.eos_token_ids.size() == 1)
    j["eos_token_id"] = c.eos_token_ids[0];
  else if (!c.eos_token_ids.empty())
    j["eos_token_id"] = c.eos_token_ids;
  if (c.rope.type == RopeType::kLinear)
    j["rope_scaling"] = {{"rope_type", "linear"}, {"factor", c.rope.factor}};
  if (c.rope.type == RopeType::kLlama3)
    j["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", c.rope.factor},
                         {"low_freq_factor", c.rope.low_freq_factor},
                         {"high_freq_factor", c.rope.high_freq_factor},
                         {"original_max_position_embeddings", c.rope.original_max_position}};
  return j;
}

// Row i of half-split order lies at this row of adjacent-pair order.
int64_t paired_row(int64_t i, int64_t head_dim) {
  const int64_t head = i / head_dim, j = i % head_dim, half = head_dim / 2;
  return head * head_dim + (j < half ? 2 * j : 2 * (j - half) + 1);
}
bool is_rotated(size_t target) {
  return target == static_cast<size_t>(LoraTarget::kQ) || target == static_cast<size_t>(LoraTarget::kK);
}
std::vector<float> to_pairs(const std::vector<float>& b, int64_t head_dim, int64_t rank, bool back) {
  std::vector<float> out(b.size());
  const int64_t rows = static_cast<int64_t>(b.size()) / rank;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t from = back ? paired_row(i, head_dim) : i, to = back ? i : paired_row(i, head_dim);
    std::copy_n(b.begin() + from * rank, rank, out.begin() + to * rank);
  }
  return out;
}
std::string gguf_name(size_t layer, size_t target, bool b) {
  static constexpr std::array<const char*, kLoraTargets> kNames{
      "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
  return fmt::format("blk.{}.{}.weight.lora_{}", layer, kNames[target], b ? 'b' : 'a');
}

// Little-endian pieces of a GGUF file's head.
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    const size_t at = data.size();
    data.resize(at + sizeof(T));
    std::memcpy(data.data() + at, &value, sizeof(T));
    return *this;
  }
  Bytes& text(std::string_view s) {
    put(static_cast<uint64_t>(s.size()));
    data.append(s);
    return *this;
  }
  void pad(size_t to) { data.append((to - data.size() % to) % to, '\0'); }
  std::string data;
};

}  // namespace

void write_model(const std::string& folder, const Weights& base, DType dtype,
                 const std::function<void(const TensorEntry&, std::vector<float>&)>& change) {
  GT_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "merged weights are f32 or bf16, got {}",
           dtype_name(dtype));
  const LlamaConfig& config = base.config();
  const fs::path dir(folder), own(base.path());
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) fail("{}: cannot create the folder: {}", folder, error.message());
  if (fs::exists(dir / "config.json"))
    fail("{}: is there already; give another folder, or delete it", (dir / "config.json").string());
  if (!config.rope.factors.empty())
    fail(
        "{}: its RoPE factors stand in the file itself and have no place in a config.json; export the "
        "adapter "
        "alone (--format peft or gguf-lora)",
        base.path());

  std::vector<std::vector<const TensorEntry*>> shards(1);
  int64_t in_shard = 0, total = 0;
  for (const TensorEntry& e : base.tensors()) {
    const int64_t bytes = e.shape.count() * dtype_size(dtype);
    if (in_shard > 0 && in_shard + bytes > kShardBytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(&e);
    in_shard += bytes;
    total += bytes;
  }
  json index{{"metadata", {{"total_size", total}}}, {"weight_map", json::object()}};
  for (size_t s = 0; s < shards.size(); ++s) {
    std::vector<std::vector<float>> f32;
    std::vector<std::vector<bf16>> half;
    std::vector<NamedTensor> tensors;
    const std::string name = shards.size() == 1
                                 ? "model.safetensors"
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
    for (const TensorEntry* e : shards[s]) {
      std::vector<float> w(static_cast<size_t>(e->shape.count()));
      base.read_rows(e->name, 0, e->shape.rank == 2 ? e->shape[0] : 1, w.data());
      change(*e, w);
      index["weight_map"][e->name] = name;
      if (dtype == DType::kF32) {
        f32.push_back(std::move(w));
        tensors.push_back({e->name, ConstTensor(f32.back().data(), dtype, e->shape)});
      } else {
        half.emplace_back(w.begin(), w.end());
        tensors.push_back({e->name, ConstTensor(half.back().data(), dtype, e->shape)});
      }
    }
    write_safetensors((dir / name).string(), tensors);
  }
  if (shards.size() > 1) write_text(dir / "model.safetensors.index.json", index.dump(2) + "\n");

  json out = hugging_face_config(config);
  if (fs::is_directory(own)) {
    const MappedFile file((own / "config.json").string());
    out = json::parse(std::string(file.bytes().begin(), file.bytes().end()));
    out.erase("dtype");
    for (const auto& entry : fs::directory_iterator(own)) {
      const std::string name = entry.path().filename().string();
      const bool tokenizer = name.starts_with("tokenizer") || name == "special_tokens_map.json" ||
                             name == "generation_config.json" || name == "chat_template.jinja" ||
                             name == "vocab.json" || name == "merges.txt" || name == "added_tokens.json";
      if (tokenizer && fs::is_regular_file(entry.path())) {
        fs::copy_file(entry.path(), dir / name, fs::copy_options::overwrite_existing, error);
        if (error) fail("{}: cannot copy to {}: {}", entry.path().string(), folder, error.message());
      }
    }
  }
  out["torch_dtype"] = dtype == DType::kF32 ? "float32" : "bfloat16";
  write_text(dir / "config.json", out.dump(2) + "\n");
}

void write_merged(const std::string& folder, const Weights& base, const PeftAdapter& adapter, DType dtype) {
  GT_CHECK(adapter.is_lora(), "only low-rank adapters merge into weights, got {}", adapter.type);
  // Where each adapted matrix finds its adapter.
  std::map<std::string, std::pair<size_t, size_t>> adapted;
  for (size_t l = 0; l < adapter.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t)
      if (adapter.shape.targets[t]) adapted[lora_module(l, t) + ".weight"] = {l, t};

  write_model(folder, base, dtype, [&](const TensorEntry& e, std::vector<float>& w) {
    if (const auto it = adapted.find(e.name); it != adapted.end()) {
      const auto& [l, t] = it->second;
      const PeftAdapter::Pair& p = adapter.layers[l][t];
      const int64_t r = adapter.shape.rank, in = e.shape[1];
      const double scale = adapter.shape.scale();
      std::vector<double> row(static_cast<size_t>(in));
      for (int64_t o = 0; o < e.shape[0]; ++o) {
        float* to = w.data() + o * in;
        std::copy_n(to, in, row.begin());
        for (int64_t k = 0; k < r; ++k) {
          const double factor = scale * static_cast<double>(p.b[static_cast<size_t>(o * r + k)]);
          const float* a = p.a.data() + k * in;
          for (int64_t i = 0; i < in; ++i) row[static_cast<size_t>(i)] += factor * static_cast<double>(a[i]);
        }
        for (int64_t i = 0; i < in; ++i) to[i] = static_cast<float>(row[static_cast<size_t>(i)]);
      }
    }
  });
}

void write_lora_gguf(const std::string& path, const PeftAdapter& adapter, const LlamaConfig& config) {
  GT_CHECK(adapter.is_lora(), "a GGUF adapter is low-rank, got {}", adapter.type);
  if (fs::exists(path)) fail("{}: is there already; give another name, or delete it", path);
  constexpr uint64_t kAlignment = 32;
  constexpr uint32_t kTypeString = 8, kTypeF32 = 6, kTensorF32 = 0;
  const int64_t rank = adapter.shape.rank;
  struct Item {
    std::string name;
    int64_t rows, cols;
    std::vector<float> values;
  };
  std::vector<Item> items;
  for (size_t l = 0; l < adapter.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      if (!adapter.shape.targets[t]) continue;
      const LoraDims d = lora_dims(config, t);
      const PeftAdapter::Pair& p = adapter.layers[l][t];
      items.push_back({gguf_name(l, t, false), rank, d.in, p.a});
      items.push_back({gguf_name(l, t, true), d.out, rank,
                       is_rotated(t) ? to_pairs(p.b, config.head_dim, rank, false) : p.b});
    }
  Bytes head;
  head.data = "GGUF";
  head.put(uint32_t{3}).put(static_cast<uint64_t>(items.size())).put(uint64_t{4});
  for (const auto& [key, value] :
       {std::pair("general.type", "adapter"), {"general.architecture", "llama"}, {"adapter.type", "lora"}})
    head.text(key).put(kTypeString).text(value);
  // Its reader multiplies by alpha / rank.
  const float alpha = adapter.shape.rslora
                          ? static_cast<float>(adapter.shape.alpha * std::sqrt(static_cast<double>(rank)))
                          : static_cast<float>(adapter.shape.alpha);
  head.text("adapter.lora.alpha").put(kTypeF32).put(alpha);
  uint64_t offset = 0;
  for (const Item& i : items) {
    head.text(i.name).put(uint32_t{2}).put(static_cast<uint64_t>(i.cols)).put(static_cast<uint64_t>(i.rows));
    head.put(kTensorF32).put(offset);
    offset += (i.values.size() * 4 + kAlignment - 1) / kAlignment * kAlignment;
  }
  head.pad(kAlignment);
  static constexpr std::array<char, kAlignment> kZeros{};
  std::vector<std::pair<const void*, size_t>> pieces{{head.data.data(), head.data.size()}};
  for (const Item& i : items) {
    const size_t bytes = i.values.size() * 4, rest = (kAlignment - bytes % kAlignment) % kAlignment;
    pieces.push_back({i.values.data(), bytes});
    if (rest > 0) pieces.push_back({kZeros.data(), rest});
  }
  write_file_atomically(path, pieces);
}

PeftAdapter read_lora_gguf(const std::string& path, const LlamaConfig& config) {
  const GgufFile file(path);
  if (!file.has("adapter.type") || file.get_string("adapter.type") != "lora")
    fail("{}: no GGUF adapter of adapter.type \"lora\"", path);
  PeftAdapter out;
  out.type = "LORA";
  out.shape.alpha = file.get_float("adapter.lora.alpha");
  for (size_t t = 0; t < kLoraTargets; ++t) {
    const GgufFile::Tensor* a = file.find(gguf_name(0, t, false));
    out.shape.targets[t] = a != nullptr;
    if (a) out.shape.rank = a->shape[0];
  }
  check_lora(out.shape, path);
  out.layers.resize(static_cast<size_t>(config.num_layers));
  size_t known = 0;
  for (size_t l = 0; l < out.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      if (!out.shape.targets[t]) continue;
      const LoraDims d = lora_dims(config, t);
      for (const bool b : {false, true}) {
        const std::string name = gguf_name(l, t, b);
        const Shape shape = b ? Shape{d.out, out.shape.rank} : Shape{out.shape.rank, d.in};
        const GgufFile::Tensor* tensor = file.find(name);
        if (!tensor) fail("{}: no tensor '{}'", path, name);
        if (!(tensor->shape == shape))
          fail("{}: tensor '{}': expected {}, got {}", path, name, to_string(shape),
               to_string(tensor->shape));
        std::vector<float> v(static_cast<size_t>(shape.count()));
        file.read_rows(*tensor, 0, shape[0], v.data());
        if (b && is_rotated(t)) v = to_pairs(v, config.head_dim, out.shape.rank, true);
        (b ? out.layers[l][t].b : out.layers[l][t].a) = std::move(v);
        ++known;
      }
    }
  if (known != file.tensors().size())
    fail("{}: {} tensors, {} of them of this adapter", path, file.tensors().size(), known);
  return out;
}

}  // namespace gantrain
