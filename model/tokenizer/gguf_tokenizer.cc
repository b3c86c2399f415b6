// The tokenizer inside a GGUF: byte-level BPE (tokenizer.ggml.model = gpt2) or scores (llama).
#include "core/check.h"
#include "model/formats/gguf.h"
#include "model/tokenizer/formats.h"
#include "model/tokenizer/pipeline.h"
#include "model/tokenizer/score_bpe.h"
#include "model/tokenizer/utf8.h"

namespace gantrain {
namespace {

using Type = ScoreTokenizer::Type;

// tokenizer.ggml.pre: how the text is cut before the merges.
struct PreTokenizer {
  std::vector<pipeline::PreTokenizerStep> steps;
  bool ignore_merges = false, adds_bos = false;  // adds_bos: where the file does not say
};

PreTokenizer pre_tokenizer(const std::string& name, const std::string& where) {
  using namespace pipeline;
  PreTokenizer pre;
  const bool llama3 = name == "llama-bpe" || name == "llama3" || name == "llama-v3";
  if (name == "smollm")
    pre.steps.push_back(digits(true));
  else if (!llama3 && name != "gpt-2" && name != "default")
    fail(
        "{}: tokenizer.ggml.pre '{}' is not supported; supported: smollm, llama-bpe, gpt-2, default (as "
        "gpt-2)",
        where, name);
  pre.ignore_merges = pre.adds_bos = llama3;
  if (llama3)
    pre.steps.push_back(Split{Pattern::regex(kLlama3Regex, where), SplitBehavior::kIsolated, false});
  pre.steps.push_back(
      ByteLevel{false, llama3 ? std::nullopt : std::optional(Pattern::regex(kGpt2Regex, where))});
  return pre;
}

class Reader {
 public:
  explicit Reader(const std::string& path) : file_(path), path_(path) {
    texts_ = file_.get_strings("tokenizer.ggml.tokens");
    if (texts_.empty()) fail("{}: tokenizer.ggml.tokens is empty", path_);
    for (size_t i = 0; i < texts_.size(); ++i)
      if (utf8::find_invalid(texts_[i]) != std::string::npos)
        fail("{}: tokenizer.ggml.tokens[{}] is no valid UTF-8", path_, i);
    types_.assign(texts_.size(), static_cast<int64_t>(Type::kNormal));
    if (file_.has("tokenizer.ggml.token_type")) types_ = file_.get_ints("tokenizer.ggml.token_type");
    check_size("token_type", types_.size());
    for (size_t i = 0; i < types_.size(); ++i)
      if (types_[i] < 1 || types_[i] > 6)
        fail("{}: tokenizer.ggml.token_type[{}] is {}; expected 1 to 6", path_, i, types_[i]);
  }

  std::unique_ptr<Tokenizer> read() {
    const std::string model = file_.get_string("tokenizer.ggml.model");
    bool adds_bos = false;
    std::unique_ptr<Tokenizer> tokenizer;
    if (model == "gpt2") {
      if (!file_.has("tokenizer.ggml.pre"))
        fail(
            "{}: no tokenizer.ggml.pre: how the text is cut is unknown; convert the model again with a newer "
            "converter, or give the model's tokenizer.json",
            path_);
      PreTokenizer pre = pre_tokenizer(file_.get_string("tokenizer.ggml.pre"), path_);
      adds_bos = pre.adds_bos;
      tokenizer = byte_level(std::move(pre));
    } else if (model == "llama") {
      adds_bos = true;
      tokenizer = scored();
    } else {
      fail("{}: tokenizer.ggml.model '{}' is not supported; supported: gpt2, llama", path_, model);
    }
    TokenizerInfo info = tokenizer->info();
    info.bos = id("bos_token_id");
    info.eos = id("eos_token_id");
    info.unk = id("unknown_token_id");
    if (file_.has("tokenizer.ggml.add_bos_token")) adds_bos = file_.get_bool("tokenizer.ggml.add_bos_token");
    info.adds_bos = adds_bos;
    for (const char* key : {"eot_token_id", "eom_token_id"})
      if (const auto end = id(key)) info.end_ids.push_back(*end);
    if (file_.has("tokenizer.chat_template"))
      info.chat_template = file_.get_string("tokenizer.chat_template");
    tokenizer->set_info(std::move(info));
    return tokenizer;
  }

 private:
  void check_size(const char* key, size_t size) const {
    if (size != texts_.size())
      fail("{}: tokenizer.ggml.{} has {} entries, tokenizer.ggml.tokens {}", path_, key, size, texts_.size());
  }

  std::optional<int32_t> id(const std::string& name) const {
    const std::string key = "tokenizer.ggml." + name;
    if (!file_.has(key)) return std::nullopt;
    const int64_t value = file_.get_int(key);
    if (value < 0 || value >= static_cast<int64_t>(texts_.size()))
      fail("{}: {} is {}, but there are {} tokens", path_, key, value, texts_.size());
    return static_cast<int32_t>(value);
  }

  std::unique_ptr<Tokenizer> byte_level(PreTokenizer pre) {
    pipeline::Spec spec;
    StringIds vocab;
    std::vector<int32_t> special;
    for (size_t i = 0; i < texts_.size(); ++i) {
      const auto type = static_cast<Type>(types_[i]);
      const auto id = static_cast<int32_t>(i);
      const bool is_special = type == Type::kControl || type == Type::kUnknown;
      const bool added = is_special || type == Type::kUserDefined;
      spec.tokens.push_back({texts_[i], true, added, is_special, ""});
      if (is_special) special.push_back(id);
      if (added && !texts_[i].empty()) spec.raw_added.add({id, texts_[i], is_special});
      if (!vocab.emplace(texts_[i], id).second && !texts_[i].empty())
        fail("{}: tokenizer.ggml.tokens has '{}' twice (ids {} and {})", path_, texts_[i], vocab[texts_[i]],
             i);
    }
    spec.pre_tokenizer = std::move(pre.steps);
    spec.has_decoder = true;
    spec.decoder.emplace_back(std::in_place_type<pipeline::DecodeByteLevel>);
    const auto& lines = file_.get_strings("tokenizer.ggml.merges");
    std::vector<std::pair<std::string_view, std::string_view>> merges;
    for (size_t i = 0; i < lines.size(); ++i) {
      const std::string_view line = lines[i];
      // From byte 1 on: a token is never empty.
      const size_t space = line.find(' ', 1);
      if (line.empty() || space == std::string_view::npos || space + 1 == line.size())
        fail("{}: tokenizer.ggml.merges[{}]: expected two tokens with a space between, got '{}'", path_, i,
             line);
      merges.emplace_back(line.substr(0, space), line.substr(space + 1));
    }
    spec.bpe.emplace(std::move(vocab), merges, Bpe::Options{std::nullopt, false, false, pre.ignore_merges},
                     special, path_ + ": tokenizer.ggml.merges");
    return std::make_unique<pipeline::PipelineTokenizer>(std::move(spec));
  }

  std::unique_ptr<Tokenizer> scored() {
    const auto& scores = file_.get_floats("tokenizer.ggml.scores");
    check_size("scores", scores.size());
    std::vector<ScoreTokenizer::Token> tokens;
    for (size_t i = 0; i < texts_.size(); ++i)
      tokens.push_back({texts_[i], static_cast<float>(scores[i]), static_cast<Type>(types_[i])});
    const char* key = "tokenizer.ggml.add_space_prefix";
    const bool prefix = !file_.has(key) || file_.get_bool(key);
    return std::make_unique<ScoreTokenizer>(std::move(tokens), "\u2581", prefix, id("unknown_token_id"),
                                            path_);
  }

  GgufFile file_;
  std::string path_;
  std::vector<std::string> texts_;
  std::vector<int64_t> types_;
};

}  // namespace

std::unique_ptr<Tokenizer> read_gguf_tokenizer(const std::string& path) { return Reader(path).read(); }

}  // namespace gantrain
