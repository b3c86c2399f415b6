// The stages of a Hugging Face tokenizer, and the tokenizer made of them: added tokens, normaliser,
// pre-tokenizer, byte-pair encoding, decoder. tokenizer.json and GGUF's byte-level vocabularies both become
// one of these.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/tokenizer.h"

namespace gantrain::pipeline {

// Puts the text in front of a text that is not empty.
struct Prepend {
  std::string text;
};
// Every match becomes the content.
struct Replace {
  Pattern pattern;
  std::string content;
};
using NormalizerStep = std::variant<Prepend, Replace>;

// What happens to the matches of a pattern that cuts a text.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
struct Split {
  Pattern pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // cut by what lies between the matches
};
// Cuts by the regex (where there is one), then writes bytes as GPT-2's alphabet.
struct ByteLevel {
  bool add_prefix_space = false;
  std::optional<Pattern> regex;
};
enum class PrependScheme { kAlways, kFirst, kNever };
// Spaces become `replacement`, one is put in front; with `split` a piece begins at each.
struct Metaspace {
  std::string replacement;
  PrependScheme prepend = PrependScheme::kAlways;
  bool split = true;
};
using PreTokenizerStep = std::variant<Split, ByteLevel, Metaspace>;

struct DecodeByteLevel {};
struct DecodeMetaspace {
  std::string replacement;
  bool strip_first = true;
};
struct DecodeReplace {
  std::string from, to;
};
struct DecodeByteFallback {};
struct DecodeFuse {};
// Takes up to `start` times the content from each token's front, up to `stop` times from its end.
struct DecodeStrip {
  std::string content;
  int64_t start = 0, stop = 0;
};
using DecoderStep = std::variant<DecodeByteLevel, DecodeMetaspace, DecodeReplace, DecodeByteFallback,
                                 DecodeFuse, DecodeStrip>;

// One id of the vocabulary.
struct Token {
  std::string text;
  bool used = false;     // ids may have holes
  bool added = false;    // recognised in text when asked for
  bool special = false;  // left out by skip_special
  std::string decoded;   // what decoding starts from, where it is not the text
};

struct Spec {
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  std::optional<Bpe> bpe;
  AddedTokenMatcher raw_added;         // found in the text as it is
  AddedTokenMatcher normalized_added;  // found behind the normaliser (their texts went through it)
  std::vector<Token> tokens;           // by id
  std::vector<DecoderStep> decoder;
  bool has_decoder = false;  // without one, tokens are joined with spaces
};

// GPT-2's and Llama-3's patterns.
extern const char* const kGpt2Regex;
extern const char* const kLlama3Regex;
// Digits (Rust's char::is_numeric), each on its own or in runs.
Split digits(bool individual);

std::string normalize(const std::vector<NormalizerStep>& steps, std::string text);

class PipelineTokenizer : public Tokenizer {
 public:
  explicit PipelineTokenizer(Spec spec);
  std::string decode(std::span<const int32_t> ids, bool skip_special) const override;
  std::string decode_text(std::span<const int32_t> ids, bool skip_special) const override;
  std::string token_text(int32_t id) const override;
  std::optional<int32_t> find_token(std::string_view spelling) const override;
  std::optional<int32_t> special_id(std::string_view text) const override;

 protected:
  std::vector<int32_t> encode_text(std::string_view text, Trusted trusted) const override;

 private:
  void encode_section(std::string text, bool first, std::vector<int32_t>& ids) const;
  std::string decode_with(std::span<const int32_t> ids, bool skip_special, bool valid_utf8) const;

  Spec spec_;
  StringIds special_ids_;
};

}  // namespace gantrain::pipeline
