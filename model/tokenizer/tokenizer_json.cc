// Hugging Face's tokenizer.json: its BPE models with the stages that Llama-family files use.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/check.h"
#include "model/formats/json_text.h"
#include "model/formats/mapped_file.h"
#include "model/tokenizer/formats.h"
#include "model/tokenizer/pipeline.h"
#include "model/tokenizer/utf8.h"

namespace gantrain {
namespace {

using nlohmann::json;
using namespace pipeline;

constexpr int64_t kLargestFile = int64_t{256} << 20;
constexpr int64_t kLargestId = (int64_t{1} << 24) - 1;

// A value with its place in the file, so that every message can name it.
struct Node {
  const json* value;
  std::string where;  // "FILE: pre_tokenizer.pretokenizers[1]"

  Node operator[](const char* key) const {
    return {&at(key), where + (where.ends_with(": ") ? "" : ".") + key};
  }
  Node operator[](size_t i) const { return {&(*value)[i], fmt::format("{}[{}]", where, i)}; }
  bool null() const { return value->is_null(); }
  bool has(const char* key) const {
    return value->is_object() && value->contains(key) && !(*value)[key].is_null();
  }

  const json& at(const char* key) const {
    static const json none;
    if (!value->is_object()) fail("{}: expected an object, got {}", where, value->type_name());
    const auto found = value->find(key);
    return found == value->end() ? none : *found;
  }
  const std::string& text() const {
    if (!value->is_string()) fail("{}: expected a string, got {}", where, value->type_name());
    return value->get_ref<const std::string&>();
  }
  bool flag() const {
    if (!value->is_boolean()) fail("{}: expected true or false, got {}", where, value->type_name());
    return value->get<bool>();
  }
  bool flag(const char* key, bool otherwise) const { return has(key) ? (*this)[key].flag() : otherwise; }
  int64_t number(int64_t low, int64_t high) const {
    if (!value->is_number_integer()) fail("{}: expected an integer, got {}", where, value->type_name());
    const bool too_large =
        value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(high);
    const int64_t n = too_large ? 0 : value->get<int64_t>();
    if (too_large || n < low || n > high) fail("{}: {} is outside [{}, {}]", where, value->dump(), low, high);
    return n;
  }
  const json& array() const {
    if (!value->is_array()) fail("{}: expected an array, got {}", where, value->type_name());
    return *value;
  }
  // What the file asks for and this program does not do.
  [[noreturn]] void refuse(std::string_view type, std::string_view supported) const {
    fail("{}: type '{}' is not supported; supported: {}", where, type, supported);
  }
  // Refuses keys that are neither known nor null: they would change the ids without our knowing.
  void only(std::set<std::string_view> known) const {
    for (const auto& [key, entry] : value->items())
      if (!known.contains(key) && !entry.is_null())
        fail("{}: the setting '{}' is not supported; supported: {}", where, key, listed(known));
  }
};

Pattern read_pattern(const Node& node) {
  node.only({"String", "Regex"});
  if (node.has("String")) {
    if (node["String"].text().empty()) fail("{}: the pattern is empty", node.where);
    return Pattern::literal(node["String"].text());
  }
  if (node.has("Regex")) return Pattern::regex(node["Regex"].text(), node.where);
  fail("{}: expected {{\"String\": ...}} or {{\"Regex\": ...}}", node.where);
}

void read_normalizer(const Node& node, std::vector<NormalizerStep>& steps) {
  if (node.null()) return;
  const std::string& type = node["type"].text();
  if (type == "Sequence") {
    node.only({"type", "normalizers"});
    const Node list = node["normalizers"];
    for (size_t i = 0; i < list.array().size(); ++i) read_normalizer(list[i], steps);
  } else if (type == "Prepend") {
    node.only({"type", "prepend"});
    steps.push_back(Prepend{node["prepend"].text()});
  } else if (type == "Replace") {
    node.only({"type", "pattern", "content"});
    steps.push_back(Replace{read_pattern(node["pattern"]), node["content"].text()});
  } else {
    node.refuse(type, "Sequence, Prepend, Replace");
  }
}

std::string one_character(const Node& node) {
  const std::string& text = node.text();
  if (text.empty() || utf8::length_at(text, 0) != static_cast<int>(text.size()))
    fail("{}: expected one character, got '{}'", node.where, text);
  return text;
}

PrependScheme read_prepend_scheme(const Node& node) {
  PrependScheme scheme = PrependScheme::kAlways;
  if (node.has("prepend_scheme")) {
    const std::string& name = node["prepend_scheme"].text();
    if (name == "first")
      scheme = PrependScheme::kFirst;
    else if (name == "never")
      scheme = PrependScheme::kNever;
    else if (name != "always")
      fail("{}.prepend_scheme: expected always, first or never, got '{}'", node.where, name);
    if (!node.flag("add_prefix_space", true) && scheme != PrependScheme::kNever)
      fail("{}: add_prefix_space is false, but prepend_scheme is '{}'", node.where, name);
  } else if (!node.flag("add_prefix_space", true)) {
    scheme = PrependScheme::kNever;
  }
  return scheme;
}

SplitBehavior read_behavior(const Node& node) {
  const std::string& name = node.text();
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  fail("{}: expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous, got '{}'",
       node.where, name);
}

void read_pre_tokenizer(const Node& node, std::vector<PreTokenizerStep>& steps) {
  if (node.null()) return;
  const std::string& type = node["type"].text();
  if (type == "Sequence") {
    node.only({"type", "pretokenizers"});
    const Node list = node["pretokenizers"];
    for (size_t i = 0; i < list.array().size(); ++i) read_pre_tokenizer(list[i], steps);
  } else if (type == "Split") {
    node.only({"type", "pattern", "behavior", "invert"});
    steps.push_back(
        Split{read_pattern(node["pattern"]), read_behavior(node["behavior"]), node.flag("invert", false)});
  } else if (type == "Digits") {
    node.only({"type", "individual_digits"});
    steps.push_back(digits(node.flag("individual_digits", false)));
  } else if (type == "ByteLevel") {
    // trim_offsets concerns offsets into the text, which nobody asks for here.
    node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    ByteLevel step{node.flag("add_prefix_space", true), std::nullopt};
    if (node.flag("use_regex", true)) step.regex = Pattern::regex(kGpt2Regex, node.where);
    steps.push_back(std::move(step));
  } else if (type == "Metaspace") {
    node.only({"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"});
    steps.push_back(
        Metaspace{one_character(node["replacement"]), read_prepend_scheme(node), node.flag("split", true)});
  } else {
    node.refuse(type, "Sequence, Split, Digits, ByteLevel, Metaspace");
  }
}

void read_decoder(const Node& node, std::vector<DecoderStep>& steps) {
  if (node.null()) return;
  const std::string& type = node["type"].text();
  if (type == "Sequence") {
    node.only({"type", "decoders"});
    const Node list = node["decoders"];
    for (size_t i = 0; i < list.array().size(); ++i) read_decoder(list[i], steps);
  } else if (type == "ByteLevel") {
    node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    steps.push_back(DecodeByteLevel{});
  } else if (type == "Metaspace") {
    node.only({"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"});
    steps.push_back(DecodeMetaspace{one_character(node["replacement"]),
                                    read_prepend_scheme(node) != PrependScheme::kNever});
  } else if (type == "Replace") {
    node.only({"type", "pattern", "content"});
    const Node pattern = node["pattern"];
    pattern.only({"String"});
    steps.push_back(DecodeReplace{pattern["String"].text(), node["content"].text()});
  } else if (type == "ByteFallback") {
    node.only({"type"});
    steps.push_back(DecodeByteFallback{});
  } else if (type == "Fuse") {
    node.only({"type"});
    steps.push_back(DecodeFuse{});
  } else if (type == "Strip") {
    node.only({"type", "content", "start", "stop"});
    steps.push_back(DecodeStrip{one_character(node["content"]), node["start"].number(0, kLargestId),
                                node["stop"].number(0, kLargestId)});
  } else {
    node.refuse(type, "Sequence, ByteLevel, Metaspace, Replace (of a string), ByteFallback, Fuse, Strip");
  }
}

// The special token that a template puts in front of a text, if it does.
std::optional<std::string> read_post_processor(const Node& node) {
  if (node.null()) return std::nullopt;
  const std::string& type = node["type"].text();
  if (type == "ByteLevel") return std::nullopt;  // it only moves offsets
  if (type == "Sequence") {
    node.only({"type", "processors"});
    std::optional<std::string> found;
    const Node list = node["processors"];
    for (size_t i = 0; i < list.array().size(); ++i)
      if (auto token = read_post_processor(list[i])) found = token;
    return found;
  }
  if (type != "TemplateProcessing") node.refuse(type, "Sequence, ByteLevel, TemplateProcessing");
  const Node single = node["single"];
  if (single.array().empty() || !single[size_t{0}].has("SpecialToken")) return std::nullopt;
  return single[size_t{0}]["SpecialToken"]["id"].text();
}

// "a b" (legacy) or ["a", "b"].
std::vector<std::pair<std::string_view, std::string_view>> read_merges(const Node& node) {
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  const json& list = node.array();
  merges.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const json& entry = list[i];
    if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      merges.emplace_back(entry[0].get_ref<const std::string&>(), entry[1].get_ref<const std::string&>());
    } else if (entry.is_string()) {
      const std::string_view text = entry.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
        fail("{}[{}]: expected two tokens with one space between, got '{}'", node.where, i, text);
      merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else {
      fail("{}[{}]: expected \"a b\" or [\"a\", \"b\"], got {}", node.where, i, entry.dump());
    }
  }
  return merges;
}

void put_token(std::vector<Token>& tokens, int64_t id, const std::string& text, const std::string& where) {
  if (static_cast<size_t>(id) >= tokens.size()) tokens.resize(static_cast<size_t>(id) + 1);
  if (tokens[id].used && tokens[id].text != text)
    fail("{}: id {} is '{}', but '{}' has it already", where, id, text, tokens[id].text);
  tokens[id].text = text;
  tokens[id].used = true;
}

// Ids may leave holes, but a few entries cannot ask for a table of millions.
int64_t largest_id(size_t entries) {
  constexpr int64_t kHoles = 65536;
  return std::min(kLargestId, 2 * static_cast<int64_t>(entries) + kHoles);
}

// The model's options, and its vocabulary into `tokens` and `vocab`.
Bpe::Options read_model(const Node& model, std::vector<Token>& tokens, StringIds& vocab) {
  const std::string type = model.has("type") ? model["type"].text() : model.has("merges") ? "BPE" : "(none)";
  if (type != "BPE") model.refuse(type, "BPE");
  model.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
              "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (model.has("dropout") &&
      !(model["dropout"].value->is_number() && model["dropout"].value->get<double>() == 0))
    fail("{}.dropout: expected null, got {}; random merges are not supported", model.where,
         model["dropout"].value->dump());
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (model.has(key) && !model[key].text().empty())
      fail("{}.{}: '{}' is not supported; supported: none", model.where, key, model[key].text());
  const Node list = model["vocab"];
  if (!list.value->is_object()) fail("{}: expected an object, got {}", list.where, list.value->type_name());
  vocab.reserve(list.value->size());
  const int64_t largest = largest_id(list.value->size());
  for (const auto& [text, value] : list.value->items()) {
    const int64_t id = Node{&value, fmt::format("{}['{}']", list.where, text)}.number(0, largest);
    put_token(tokens, id, text, list.where);
    vocab.emplace(text, static_cast<int32_t>(id));
  }
  Bpe::Options options;
  options.fuse_unk = model.flag("fuse_unk", false);
  options.byte_fallback = model.flag("byte_fallback", false);
  options.ignore_merges = model.flag("ignore_merges", false);
  if (model.has("unk_token")) {
    const std::string& unk = model["unk_token"].text();
    const auto found = vocab.find(unk);
    if (found == vocab.end()) fail("{}.unk_token: '{}' is not in the vocabulary", model.where, unk);
    options.unk = found->second;
  }
  return options;
}

void read_added_tokens(const Node& list, const StringIds& vocab, Spec& spec, std::vector<int32_t>& special) {
  const int64_t largest = largest_id(vocab.size() + list.array().size());
  for (size_t i = 0; i < list.array().size(); ++i) {
    const Node node = list[i];
    node.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    const std::string& text = node["content"].text();
    const int64_t id = node["id"].number(0, largest);
    if (text.empty()) fail("{}.content: an added token must not be empty", node.where);
    if (const auto found = vocab.find(text); found != vocab.end() && found->second != id)
      fail("{}: '{}' has id {} here and {} in model.vocab", node.where, text, id, found->second);
    put_token(spec.tokens, id, text, node.where);
    Token& token = spec.tokens[id];
    token.added = true;
    token.special = node.flag("special", false);
    if (token.special) special.push_back(static_cast<int32_t>(id));
    AddedToken added{static_cast<int32_t>(id),
                     text,
                     token.special,
                     node.flag("lstrip", false),
                     node.flag("rstrip", false),
                     node.flag("single_word", false)};
    if (node.flag("normalized", !token.special)) {
      added.text = normalize(spec.normalizer, text);
      if (added.text.empty()) fail("{}: the normaliser leaves nothing of '{}'", node.where, text);
      token.decoded = added.text;  // so does the reference: decoding undoes the normaliser
      spec.normalized_added.add(std::move(added));
    } else {
      spec.raw_added.add(std::move(added));
    }
  }
}

}  // namespace

std::unique_ptr<Tokenizer> read_tokenizer_json(const std::string& path) {
  const MappedFile file(path);
  if (file.size() > kLargestFile)
    fail("{}: {} bytes; a tokenizer has at most {}", path, file.size(), kLargestFile);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const json root = parse_json(text, path);
  const Node top{&root, path + ": "};
  top.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
            "post_processor", "decoder", "model"});
  for (const char* key : {"truncation", "padding"})
    if (top.has(key))
      fail("{}{}: not supported; set it to null: the program cuts and packs texts itself", top.where, key);
  if (!top.has("model")) fail("{}no 'model'; is this a tokenizer.json?", top.where);

  Spec spec;
  read_normalizer(top["normalizer"], spec.normalizer);
  read_pre_tokenizer(top["pre_tokenizer"], spec.pre_tokenizer);
  spec.has_decoder = top.has("decoder");
  read_decoder(top["decoder"], spec.decoder);
  const auto prefix = read_post_processor(top["post_processor"]);

  StringIds vocab;
  const Bpe::Options options = read_model(top["model"], spec.tokens, vocab);
  std::vector<int32_t> special;
  if (top.has("added_tokens")) read_added_tokens(top["added_tokens"], vocab, spec, special);
  const Node merges = top["model"]["merges"];
  spec.bpe.emplace(std::move(vocab), read_merges(merges), options, special, merges.where);
  auto tokenizer = std::make_unique<PipelineTokenizer>(std::move(spec));
  TokenizerInfo info = tokenizer->info();
  info.unk = options.unk;
  if (prefix) {
    info.bos = tokenizer->special_id(*prefix);
    if (!info.bos) fail("{}post_processor: the template's '{}' is no added token", top.where, *prefix);
    info.adds_bos = true;
  }
  tokenizer->set_info(std::move(info));
  return tokenizer;
}

}  // namespace gantrain
