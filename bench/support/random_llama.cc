#include "bench/support/random_llama.h"

#include <charconv>
#include <cmath>
#include <filesystem>

#include "core/check.h"
#include "core/rng.h"

namespace gantrain::bench {
namespace {

class RandomWeights final : public Weights {
 public:
  explicit RandomWeights(const LlamaConfig& config)
      : config_(config), entries_(expected_tensors(config)), draws_(65537) {
    const Philox rng{derive_key(20261128, 5)};
    for (size_t i = 0; i < draws_.size(); ++i) {
      const auto words = rng(0, i);
      draws_[i] = normal_pair(words[0], words[1])[0];
    }
  }
  const LlamaConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  std::string format() const override { return "random"; }
  const std::vector<TensorEntry>& tensors() const override { return entries_; }
  bool has(std::string_view name) const override { return find(name) != nullptr; }
  // Matrices have deviation 1 / sqrt(columns), which keeps the residual stream's size; gains lie around 1.
  void read_rows(std::string_view name, int64_t begin, int64_t n, float* out) const override {
    const TensorEntry* e = find(name);
    GT_CHECK(e != nullptr, "random weights have no tensor '{}'", name);
    const bool vector = e->shape.rank == 1;
    const int64_t cols = vector ? e->shape[0] : e->shape[1];
    const float mean = vector && name.ends_with("norm.weight") ? 1.0f : 0.0f;
    const float scale = vector ? 0.1f : 1.0f / std::sqrt(static_cast<float>(cols));
    const uint64_t first = derive_key(static_cast<uint64_t>(e - entries_.data()), 6) % draws_.size();
    size_t at = (first + static_cast<uint64_t>(begin * cols)) % draws_.size();
    for (int64_t i = 0; i < n * cols; ++i) {
      out[i] = mean + scale * draws_[at];
      at = at + 1 == draws_.size() ? 0 : at + 1;
    }
  }
  ConstTensor direct(std::string_view) const override { return {}; }

 private:
  const TensorEntry* find(std::string_view name) const {
    for (const TensorEntry& e : entries_)
      if (e.name == name) return &e;
    return nullptr;
  }
  LlamaConfig config_;
  std::string path_ = "(random)";
  std::vector<TensorEntry> entries_;
  std::vector<float> draws_;
};

class NumberTokenizer final : public Tokenizer {
 public:
  explicit NumberTokenizer(int64_t vocab) { info_.vocab_size = vocab; }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    std::string out;
    for (const int32_t id : ids) {
      check_id(id);
      out += token_text(id);
    }
    return out;
  }
  std::string decode_text(std::span<const int32_t> ids, bool skip_special) const override {
    return decode(ids, skip_special);
  }
  std::string token_text(int32_t id) const override { return fmt::format("<{}>", id); }
  std::optional<int32_t> find_token(std::string_view spelling) const override {
    if (spelling.size() < 3 || spelling.front() != '<' || spelling.back() != '>') return std::nullopt;
    int32_t id = -1;
    const char* last = spelling.data() + spelling.size() - 1;
    const auto [end, error] = std::from_chars(spelling.data() + 1, last, id);
    const bool whole = error == std::errc() && end == last;
    return whole && id >= 0 && id < info_.vocab_size ? std::optional(id) : std::nullopt;
  }
  std::optional<int32_t> special_id(std::string_view) const override { return std::nullopt; }

 protected:
  // What is no number between angles is a token by its byte, so that any text can be encoded.
  std::vector<int32_t> encode_text(std::string_view text, Trusted) const override {
    std::vector<int32_t> ids;
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('>', at);
      const std::optional<int32_t> id =
          end == std::string_view::npos ? std::nullopt : find_token(text.substr(at, end + 1 - at));
      ids.push_back(id ? *id : static_cast<unsigned char>(text[at]) % static_cast<int32_t>(info_.vocab_size));
      at = id ? end + 1 : at + 1;
    }
    return ids;
  }
};

// A file's weights as if none of them were packed: a bench of a packed base names the type it wants.
class Expanded final : public Weights {
 public:
  explicit Expanded(std::shared_ptr<const Weights> base) : base_(std::move(base)) {}
  const LlamaConfig& config() const override { return base_->config(); }
  const std::string& path() const override { return base_->path(); }
  std::string format() const override { return base_->format(); }
  const std::vector<TensorEntry>& tensors() const override { return base_->tensors(); }
  bool has(std::string_view name) const override { return base_->has(name); }
  void read_rows(std::string_view name, int64_t begin, int64_t n, float* out) const override {
    base_->read_rows(name, begin, n, out);
  }
  ConstTensor direct(std::string_view name) const override { return base_->direct(name); }

 private:
  std::shared_ptr<const Weights> base_;
};

BenchModel& last_model() {
  static BenchModel model;
  return model;
}
std::string& last_key() {
  static std::string key;
  return key;
}

}  // namespace

std::shared_ptr<const Weights> random_weights(const LlamaConfig& config) {
  return std::make_shared<RandomWeights>(config);
}

std::unique_ptr<Tokenizer> number_tokenizer(int64_t vocab) {
  return std::make_unique<NumberTokenizer>(vocab);
}

void close_bench_model() {
  last_model() = {};
  last_key().clear();
}

BenchModel open_bench_model(Device& device, const std::string& model, const LlamaConfig& config, DType dtype,
                            BasePacking packing) {
  BenchModel& kept = last_model();
  std::string& key = last_key();
  const LlamaConfig& c = config;
  const std::string wanted = fmt::format(
      "{} {} {} {} {} {} {} {} {} {} {}", model, dtype_name(dtype),
      kBasePackingNames[static_cast<size_t>(packing)], static_cast<const void*>(&device), c.hidden_size,
      c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim, c.vocab_size);
  if (key == wanted) return kept;
  kept = {};
  key.clear();
  std::shared_ptr<const Weights> weights;
  std::unique_ptr<Tokenizer> tokenizer;
  if (std::filesystem::exists(model)) {
    weights = open_weights(model);
    if (packing != BasePacking::kNone) weights = std::make_shared<const Expanded>(std::move(weights));
    tokenizer = open_tokenizer(model);
    TokenizerInfo info = tokenizer->info();
    info.end_ids.clear();
    tokenizer->set_info(std::move(info));
  } else {
    weights = random_weights(config);
    tokenizer = number_tokenizer(config.vocab_size);
  }
  kept.llama = Llama::load(device, with_packing(std::move(weights), packing), dtype, {},
                           packing != BasePacking::kNone);
  kept.tokenizer = std::move(tokenizer);
  key = wanted;
  return kept;
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t number) {
  const Philox rng{derive_key(20261128, 7, number)};
  std::vector<int32_t> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<int32_t>(uint64_t{rng(0, i)[0]} * static_cast<uint64_t>(vocab) >> 32);
  return out;
}

}  // namespace gantrain::bench
