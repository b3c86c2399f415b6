#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "model/formats/gguf.h"
#include "model/formats/json_text.h"
#include "model/formats/safetensors.h"

namespace gantrain {

std::vector<TensorEntry> expected_tensors(const LlamaConfig& c) {
  std::vector<TensorEntry> out;
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim, f = c.intermediate_size,
                h = c.hidden_size;
  auto add = [&](const std::string& name, Shape shape) { out.push_back({name, shape, "", 0}); };
  add("model.embed_tokens.weight", {c.vocab_size, h});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string p = fmt::format("model.layers.{}.", i), att = p + "self_attn.", mlp = p + "mlp.";
    add(p + "input_layernorm.weight", {h});
    add(att + "q_proj.weight", {q, h});
    add(att + "k_proj.weight", {kv, h});
    add(att + "v_proj.weight", {kv, h});
    add(att + "o_proj.weight", {h, q});
    if (c.attention_bias) {
      add(att + "q_proj.bias", {q});
      add(att + "k_proj.bias", {kv});
      add(att + "v_proj.bias", {kv});
      add(att + "o_proj.bias", {h});
    }
    add(p + "post_attention_layernorm.weight", {h});
    add(mlp + "gate_proj.weight", {f, h});
    add(mlp + "up_proj.weight", {f, h});
    add(mlp + "down_proj.weight", {h, f});
    if (c.mlp_bias) {
      add(mlp + "gate_proj.bias", {f});
      add(mlp + "up_proj.bias", {f});
      add(mlp + "down_proj.bias", {h});
    }
  }
  add("model.norm.weight", {h});
  if (!c.tie_word_embeddings) add("lm_head.weight", {c.vocab_size, h});
  return out;
}

namespace {

namespace fs = std::filesystem;

// Where one tensor's bytes are and how its rows are ordered.
struct Stored {
  TensorEntry entry;
  ConstTensor dense;                         // f32, f16 or bf16, or empty
  const GgufFile::Tensor* packed = nullptr;  // a GGUF tensor ...
  const GgufFile* packed_file = nullptr;     // ... and its file
  int64_t rope_heads = 0;                    // > 0: rows are in adjacent-pair order, head by head
};

void convert(ConstTensor t, int64_t row, int64_t cols, float* out) {
  const int64_t at = row * cols;
  // memcpy, not typed loads: a file need not align its tensors.
  const auto* p = static_cast<const unsigned char*>(t.raw()) + at * dtype_size(t.dtype());
  if (t.dtype() == DType::kF32) {
    std::memcpy(out, p, static_cast<size_t>(cols) * 4);
    return;
  }
  for (int64_t i = 0; i < cols; ++i) {
    uint16_t bits;
    std::memcpy(&bits, p + 2 * i, 2);
    if (t.dtype() == DType::kBF16) {
      bf16 v;
      v.bits = bits;
      out[i] = static_cast<float>(v);
    } else {
      f16 v;
      v.bits = bits;
      out[i] = static_cast<float>(v);
    }
  }
}

class StoredWeights : public Weights {
 public:
  const LlamaConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  std::string format() const override { return format_; }
  const std::vector<TensorEntry>& tensors() const override { return entries_; }
  bool has(std::string_view name) const override { return stored_.find(name) != stored_.end(); }
  std::vector<std::string> notes() const override { return notes_; }

  void read_rows(std::string_view name, int64_t begin, int64_t n, float* out) const override {
    const Stored& s = at(name);
    const bool vector = s.entry.shape.rank == 1;
    const int64_t rows = vector ? 1 : s.entry.shape[0], cols = s.entry.shape.count() / rows;
    GT_CHECK(begin >= 0 && n >= 0 && begin + n <= rows, "{}: rows [{}, {}) of {}", name, begin, begin + n,
             rows);
    if (vector && s.rope_heads > 0) {  // a bias: the same permutation over its elements
      std::vector<float> raw(static_cast<size_t>(cols));
      read_row(s, 0, cols, raw.data());
      for (int64_t i = 0; i < cols; ++i) out[i] = raw[static_cast<size_t>(paired_row(i, cols, s.rope_heads))];
      return;
    }
    for (int64_t r = 0; r < n; ++r)
      read_row(s, s.rope_heads > 0 ? paired_row(begin + r, rows, s.rope_heads) : begin + r, cols,
               out + r * cols);
  }

  std::optional<PackedRows> packed(std::string_view name) const override {
    const Stored& s = at(name);
    if (!s.packed || s.entry.shape.rank != 2) return {};
    const auto type = GgufFile::packed_type(*s.packed);
    if (!type) return {};
    const int64_t rows = s.entry.shape[0];
    return PackedRows{*type, 0, rows, [&s, rows](int64_t i) {
                        return s.packed_file->packed_row(
                            *s.packed, s.rope_heads > 0 ? paired_row(i, rows, s.rope_heads) : i);
                      }};
  }

  ConstTensor direct(std::string_view name) const override {
    const Stored& s = at(name);
    const auto address = reinterpret_cast<uintptr_t>(s.dense.raw());
    if (s.rope_heads > 0 || s.dense.empty() ||
        address % static_cast<uintptr_t>(dtype_size(s.dense.dtype())) != 0)
      return {};
    return s.dense;
  }

 protected:
  // Row of half-split order i -> row of adjacent-pair order: pair (j, j + D/2) of a head is stored at (2j, 2j
  // + 1).
  static int64_t paired_row(int64_t i, int64_t rows, int64_t heads) {
    const int64_t d = rows / heads, head = i / d, j = i % d;
    return head * d + (j < d / 2 ? 2 * j : 2 * (j - d / 2) + 1);
  }
  void read_row(const Stored& s, int64_t row, int64_t cols, float* out) const {
    if (!s.dense.empty()) {
      convert(s.dense, row, cols, out);
    } else {
      s.packed_file->read_rows(*s.packed, row, 1, out);
    }
  }
  const Stored& at(std::string_view name) const {
    const auto it = stored_.find(name);
    GT_CHECK(it != stored_.end(), "{}: no tensor '{}'", path_, name);
    return it->second;
  }

  // Holds what was found against what a model of this shape has; lists everything that is wrong at once.
  void accept(std::map<std::string, Stored, std::less<>> found,
              const std::map<std::string, std::string>& file_names = {}) {
    // Where there are fewer tensors than layers a list of those that are missing would tell nothing.
    if (std::cmp_less(found.size(), config_.num_layers))
      fail("{}: the configuration has {} layers, and there are {} tensors; do both come from one model?",
           path_, config_.num_layers, found.size());
    std::vector<std::string> missing, misshapen, unexpected;
    auto shown = [&](const std::string& name) {
      const auto it = file_names.find(name);
      return it == file_names.end() ? name : fmt::format("{} ({})", it->second, name);
    };
    for (const TensorEntry& want : expected_tensors(config_)) {
      const auto it = found.find(want.name);
      if (it == found.end()) {
        missing.push_back(shown(want.name));
        continue;
      }
      if (!(it->second.entry.shape == want.shape))
        misshapen.push_back(fmt::format("{}: expected {}, got {}", shown(want.name), to_string(want.shape),
                                        to_string(it->second.entry.shape)));
      entries_.push_back(it->second.entry);
      stored_.emplace(want.name, std::move(it->second));
      found.erase(it);
    }
    for (const auto& [name, s] : found) {
      const std::string_view suffix = ".rotary_emb.inv_freq";
      const bool frequencies = name.size() >= suffix.size() &&
                               std::string_view(name).substr(name.size() - suffix.size()) == suffix;
      if (frequencies || (name == "lm_head.weight" && config_.tie_word_embeddings)) {
        notes_.push_back(
            fmt::format("{}: not used ({})", name,
                        frequencies ? "frequencies are computed" : "the head is tied to the embedding"));
      } else {
        unexpected.push_back(shown(name));
      }
    }
    if (missing.empty() && misshapen.empty() && unexpected.empty()) return;
    std::string message = fmt::format(
        "{}: the tensors do not fit the model's configuration; do both come from one model?", path_);
    auto list = [&](const char* title, const std::vector<std::string>& names) {
      if (names.empty()) return;
      message += fmt::format("\n  {} ({}):", title, names.size());
      for (size_t i = 0; i < names.size() && i < 20; ++i) message += "\n    " + names[i];
      if (names.size() > 20) message += fmt::format("\n    ... and {} more", names.size() - 20);
    };
    list("missing", missing);
    list("of the wrong shape", misshapen);
    list("unexpected", unexpected);
    throw Error(message);
  }

  LlamaConfig config_;
  std::string path_, format_;
  std::vector<TensorEntry> entries_;
  std::map<std::string, Stored, std::less<>> stored_;
  std::vector<std::string> notes_;
};

std::string read_text(const std::string& path, int64_t limit) {
  const MappedFile file(path);
  if (file.size() > limit) fail("{}: {} bytes; expected at most {}", path, file.size(), limit);
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

class FolderWeights : public StoredWeights {
 public:
  explicit FolderWeights(const std::string& folder) {
    path_ = folder;
    format_ = "safetensors";
    const fs::path dir(folder);
    const std::string config_path = (dir / "config.json").string();
    if (!fs::exists(config_path))
      fail(
          "{}: no config.json in this folder; expected a Hugging Face model folder (config.json, "
          "*.safetensors, tokenizer.json)",
          folder);

    // The index names a shard for each tensor; without it there is one file.
    std::map<std::string, std::string> where;
    std::vector<std::string> shards;
    const std::string index_path = (dir / "model.safetensors.index.json").string();
    if (fs::exists(index_path)) {
      const nlohmann::json index = parse_json(read_text(index_path, int64_t{1} << 28), index_path);
      if (!index.is_object() || !index.contains("weight_map") || !index.at("weight_map").is_object())
        fail("{}: expected an object with 'weight_map'", index_path);
      for (const auto& [tensor, file] : index.at("weight_map").items()) {
        if (!file.is_string())
          fail("{}: weight_map['{}']: expected a file name, got {}", index_path, tensor, file.type_name());
        const std::string name = file.get<std::string>();
        if (name.empty() || name.find('/') != std::string::npos || name.find('\\') != std::string::npos ||
            name[0] == '.')
          fail("{}: weight_map['{}']: '{}' is not a plain file name in this folder", index_path, tensor,
               name);
        where[tensor] = name;
        if (std::find(shards.begin(), shards.end(), name) == shards.end()) shards.push_back(name);
      }
    } else {
      std::vector<std::string> files;
      for (const auto& f : fs::directory_iterator(dir))
        if (f.path().extension() == ".safetensors") files.push_back(f.path().filename().string());
      std::sort(files.begin(), files.end());
      if (std::find(files.begin(), files.end(), "model.safetensors") != files.end())
        files = {"model.safetensors"};
      if (files.empty()) fail("{}: no *.safetensors in this folder", folder);
      if (files.size() > 1)
        fail("{}: {} safetensors files and no model.safetensors.index.json to say which tensor is where",
             folder, files.size());
      shards = files;
    }
    std::map<std::string, Stored, std::less<>> found;
    std::error_code error;  // a name that is too long is not there either
    for (const auto& [tensor, shard] : where)
      if (!fs::exists(dir / shard, error))
        fail("{}: places '{}' in {}, which is not in this folder; fetch the missing file", index_path, tensor,
             shard);
    config_ = parse_llama_config(read_text(config_path, 1 << 24), config_path);
    for (const std::string& shard : shards) {
      files_.push_back(std::make_unique<SafetensorsFile>((dir / shard).string()));
      for (const SafetensorsFile::Entry& e : files_.back()->entries()) {
        if (!where.empty()) {
          const auto it = where.find(e.name);
          if (it == where.end() || it->second != shard)
            fail("{}: holds tensor '{}', which the index {}", files_.back()->path(), e.name,
                 it == where.end() ? "does not name" : "places in " + it->second);
        }
        const bool frequencies = e.name.find("rotary_emb.inv_freq") != std::string::npos;
        if (e.dtype != DType::kF32 && e.dtype != DType::kF16 && e.dtype != DType::kBF16 && !frequencies)
          fail("{}: tensor '{}': expected F32, F16 or BF16 weights, got {}", files_.back()->path(), e.name,
               dtype_name(e.dtype));
        Stored s;
        s.entry = {e.name, e.shape, dtype_name(e.dtype), e.bytes};
        s.dense = files_.back()->tensor(e);
        if (!found.emplace(e.name, std::move(s)).second)
          fail("{}: tensor '{}' stands in two files", files_.back()->path(), e.name);
      }
    }
    for (const auto& [tensor, shard] : where)
      if (found.find(tensor) == found.end())
        fail("{}: places '{}' in {}, which does not hold it", index_path, tensor, shard);
    accept(std::move(found));
  }

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
};

class GgufWeights : public StoredWeights {
 public:
  explicit GgufWeights(const std::string& path) : file_(path) {
    path_ = path;
    format_ = "gguf";
    const std::string architecture = file_.get_string("general.architecture");
    if (architecture != "llama")
      fail("{}: general.architecture '{}' is not supported; supported: llama", path, architecture);
    auto integer = [&](const char* key) { return file_.get_int(std::string("llama.") + key); };
    config_.hidden_size = integer("embedding_length");
    config_.num_layers = integer("block_count");
    config_.intermediate_size = integer("feed_forward_length");
    config_.num_heads = integer("attention.head_count");
    config_.num_kv_heads =
        file_.has("llama.attention.head_count_kv") ? integer("attention.head_count_kv") : config_.num_heads;
    if (config_.num_heads <= 0)
      fail("{}: llama.attention.head_count: expected a positive integer, got {}", path, config_.num_heads);
    config_.head_dim = file_.has("llama.attention.key_length") ? integer("attention.key_length")
                                                               : config_.hidden_size / config_.num_heads;
    if (file_.has("llama.attention.value_length") && integer("attention.value_length") != config_.head_dim)
      fail("{}: llama.attention.value_length {} differs from the key length {}; not supported", path,
           integer("attention.value_length"), config_.head_dim);
    if (file_.has("llama.rope.dimension_count") && integer("rope.dimension_count") != config_.head_dim)
      fail("{}: llama.rope.dimension_count {} differs from the head size {}; partial RoPE is not supported",
           path, integer("rope.dimension_count"), config_.head_dim);
    if (file_.has("llama.expert_count") && integer("expert_count") > 0)
      fail("{}: llama.expert_count {}: mixtures of experts are not supported", path, integer("expert_count"));
    config_.max_position_embeddings = integer("context_length");
    config_.rms_norm_eps = static_cast<float>(file_.get_float("llama.attention.layer_norm_rms_epsilon"));
    if (file_.has("llama.rope.freq_base")) config_.rope.theta = file_.get_float("llama.rope.freq_base");
    if (file_.has("llama.rope.scaling.type")) {
      const std::string type = file_.get_string("llama.rope.scaling.type");
      if (type == "linear") {
        config_.rope.type = RopeType::kLinear;
        config_.rope.factor = file_.get_float("llama.rope.scaling.factor");
      } else if (type != "none") {
        fail(
            "{}: llama.rope.scaling.type '{}' is not supported; supported: none, linear, and factors in "
            "rope_freqs.weight",
            path, type);
      }
    }
    auto token_id = [&](const char* key) {
      const int64_t id = file_.get_int(key);
      if (id < 0 || id > 0x7fffffff) fail("{}: {}: expected a token id, got {}", path, key, id);
      return static_cast<int32_t>(id);
    };
    if (file_.has("tokenizer.ggml.bos_token_id"))
      config_.bos_token_id = token_id("tokenizer.ggml.bos_token_id");
    for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"})
      if (file_.has(key)) {
        const int32_t id = token_id(key);
        if (std::find(config_.eos_token_ids.begin(), config_.eos_token_ids.end(), id) ==
            config_.eos_token_ids.end())
          config_.eos_token_ids.push_back(id);
      }
    const GgufFile::Tensor* embedding = file_.find("token_embd.weight");
    if (!embedding) fail("{}: no tensor 'token_embd.weight'", path);
    if (embedding->shape.rank != 2)
      fail("{}: token_embd.weight: expected a matrix, got {}", path, to_string(embedding->shape));
    config_.vocab_size = embedding->shape[0];
    config_.tie_word_embeddings = file_.find("output.weight") == nullptr;
    config_.attention_bias = file_.find("blk.0.attn_q.bias") != nullptr;
    config_.mlp_bias = file_.find("blk.0.ffn_gate.bias") != nullptr;
    if (const GgufFile::Tensor* factors = file_.find("rope_freqs.weight")) {
      if (factors->shape.count() != config_.head_dim / 2)
        fail("{}: rope_freqs.weight: expected {} factors, got {}", path, config_.head_dim / 2,
             to_string(factors->shape));
      config_.rope.factors.resize(static_cast<size_t>(factors->shape.count()));
      file_.read_rows(*factors, 0, 1, config_.rope.factors.data());
      for (float f : config_.rope.factors)
        if (!(f > 0.0f && f < 1e6f))
          fail("{}: rope_freqs.weight: expected positive factors, got {}", path, f);
    }
    validate(config_, path);

    std::map<std::string, Stored, std::less<>> found;
    std::map<std::string, std::string> file_names;
    for (const GgufFile::Tensor& t : file_.tensors()) {
      if (t.name == "rope_freqs.weight") continue;
      const std::string name = hugging_face_name(t.name);
      file_names[name] = t.name;
      Stored s;
      s.entry = {name, t.shape, gguf_type_name(t.type), t.bytes};
      s.dense = file_.direct(t);
      s.packed = &t;
      s.packed_file = &file_;
      if (name.find("self_attn.q_proj") != std::string::npos) s.rope_heads = config_.num_heads;
      if (name.find("self_attn.k_proj") != std::string::npos) s.rope_heads = config_.num_kv_heads;
      if (!found.emplace(name, std::move(s)).second) fail("{}: two tensors mean '{}'", path, name);
    }
    accept(std::move(found), file_names);
  }

 private:
  static std::string hugging_face_name(const std::string& name) {
    if (name == "token_embd.weight") return "model.embed_tokens.weight";
    if (name == "output_norm.weight") return "model.norm.weight";
    if (name == "output.weight") return "lm_head.weight";
    static const std::map<std::string, std::string> kParts = {
        {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
        {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
        {"attn_output", "self_attn.o_proj"}, {"ffn_norm", "post_attention_layernorm"},
        {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
        {"ffn_down", "mlp.down_proj"}};
    if (name.rfind("blk.", 0) != 0) return name;
    const size_t dot = name.find('.', 4), last = name.rfind('.');
    if (dot == std::string::npos || last <= dot) return name;
    const auto part = kParts.find(name.substr(dot + 1, last - dot - 1));
    if (part == kParts.end()) return name;
    return fmt::format("model.layers.{}.{}{}", name.substr(4, dot - 4), part->second, name.substr(last));
  }

  GgufFile file_;
};

// llama2.c version 0: seven int32 and f32 tensors, each kind for all layers together, RoPE in adjacent pairs.
class Llama2cWeights : public StoredWeights {
 public:
  explicit Llama2cWeights(const std::string& path) : file_(path) {
    path_ = path;
    format_ = "llama2c";
    if (file_.size() < 28)
      fail("{}: expected a llama2.c header of 28 bytes, got {} bytes", path, file_.size());
    int32_t h[7];
    std::memcpy(h, file_.bytes().data(), sizeof(h));
    if (static_cast<uint32_t>(h[0]) == 0x616b3432u)
      fail(
          "{}: llama2.c version {} files are not supported; export version 0 (the default of export.py "
          "--version 0)",
          path, h[1]);
    const bool tied = h[5] > 0;
    config_.hidden_size = h[0];
    config_.intermediate_size = h[1];
    config_.num_layers = h[2];
    config_.num_heads = h[3];
    config_.num_kv_heads = h[4];
    config_.vocab_size = std::abs(static_cast<int64_t>(h[5]));
    config_.max_position_embeddings = h[6];
    if (h[3] <= 0 || h[0] <= 0 || h[0] % h[3] != 0)
      fail("{}: header: dim {} and n_heads {} do not fit; not a llama2.c version 0 file", path, h[0], h[3]);
    config_.head_dim = h[0] / h[3];
    config_.rms_norm_eps = 1e-5f;
    config_.tie_word_embeddings = tied;
    config_.bos_token_id = 1;
    config_.eos_token_ids = {1, 2};  // llama2.c's stories end with BOS
    validate(config_, path);

    const int64_t c = config_.hidden_size, f = config_.intermediate_size, l = config_.num_layers,
                  d = config_.head_dim;
    const int64_t q = config_.num_heads * d, kv = config_.num_kv_heads * d, v = config_.vocab_size;
    std::map<std::string, Stored, std::less<>> found;
    int64_t at = 28;
    auto take = [&](const std::string& name, Shape shape, int64_t rope_heads = 0) {
      Stored s;
      s.entry = {name, shape, "f32", shape.count() * 4};
      s.rope_heads = rope_heads;
      s.dense = ConstTensor(file_.bytes().data() + at, DType::kF32, shape);
      at += s.entry.stored_bytes;
      if (at > file_.size())
        fail(
            "{}: tensor '{}' ends at byte {}, the file has {}; it is truncated or not a llama2.c version 0 "
            "file",
            path, name, at, file_.size());
      found.emplace(name, std::move(s));
    };
    auto each = [&](const char* part, Shape shape, int64_t rope_heads = 0) {
      for (int64_t i = 0; i < l; ++i)
        take(fmt::format("model.layers.{}.{}.weight", i, part), shape, rope_heads);
    };
    take("model.embed_tokens.weight", {v, c});
    each("input_layernorm", {c});
    each("self_attn.q_proj", {q, c}, config_.num_heads);
    each("self_attn.k_proj", {kv, c}, config_.num_kv_heads);
    each("self_attn.v_proj", {kv, c});
    each("self_attn.o_proj", {c, q});
    each("post_attention_layernorm", {c});
    each("mlp.gate_proj", {f, c});
    each("mlp.down_proj", {c, f});
    each("mlp.up_proj", {f, c});
    take("model.norm.weight", {c});
    at += 2 * config_.max_position_embeddings * (d / 2) * 4;  // freqs_cos and freqs_sin: computed here
    if (!tied) take("lm_head.weight", {v, c});
    if (at != file_.size())
      fail(
          "{}: a model of this header has {} bytes, the file has {}; it is truncated or not a llama2.c "
          "version 0 file",
          path, at, file_.size());
    notes_.push_back("freqs_cos, freqs_sin: not used (frequencies are computed)");
    accept(std::move(found));
  }

 private:
  MappedFile file_;
};

}  // namespace

std::unique_ptr<Weights> open_weights(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error))
    fail("{}: no such file or folder; expected a Hugging Face folder, a .gguf file or a llama2.c .bin file",
         path);
  if (fs::is_directory(path, error)) return std::make_unique<FolderWeights>(path);
  // Before anything is opened: a named pipe would wait for its writer for ever.
  if (!fs::is_regular_file(path, error)) fail("{}: neither a folder nor a regular file", path);
  if (GgufFile::has_magic(path) || fs::path(path).extension() == ".gguf")
    return std::make_unique<GgufWeights>(path);
  if (fs::path(path).extension() == ".safetensors")
    fail("{}: a single safetensors file has no configuration; give the folder that holds it and config.json",
         path);
  return std::make_unique<Llama2cWeights>(path);
}

}  // namespace gantrain
