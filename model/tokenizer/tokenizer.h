// Text to token ids and back, for every tokenizer a Llama comes with. One interface; the formats are files
// beside this one. Reading a tokenizer refuses, by name, whatever it asks for and this program does not do.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gantrain {

// A part of a text. In a trusted part (a template) special tokens are recognised; in the others (what a user
// wrote) they are plain text.
struct TextPart {
  std::string text;
  bool trusted = false;
  bool operator==(const TextPart&) const = default;
};

// What the model's own files say beside the vocabulary.
struct TokenizerInfo {
  int64_t vocab_size = 0;  // one more than the largest id
  std::optional<int32_t> bos, eos, unk;
  bool adds_bos = false;         // the model expects BOS at the start of a text; encode never adds it
  std::vector<int32_t> end_ids;  // ids that end an answer: every eos, <|eot_id|>, <|im_end|>; ascending
  std::string chat_template;     // the Jinja text found with the model; may be empty
};

// All const methods may be called from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The ids of `text`, which must be valid UTF-8: throws Error naming the offset of the first bad byte. No
  // BOS is ever added. With `allow_special` added and special tokens in the text are recognised, else they
  // are plain text.
  std::vector<int32_t> encode(std::string_view text, bool allow_special = false) const;

  // The ids of the parts' texts in a row, as if they were one text, except that a special token is recognised
  // only where all of it lies in trusted parts. So nothing in an untrusted part can become a special token.
  std::vector<int32_t> encode_parts(std::span<const TextPart> parts) const;

  // The bytes of the ids; half a character may be among them. `skip_special` leaves special tokens out.
  // Throws Error on an id outside [0, vocab_size).
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special = false) const = 0;

  // The same as valid UTF-8: bytes that form no character become U+FFFD, as many as the format's own
  // reference implementation writes.
  virtual std::string decode_text(std::span<const int32_t> ids, bool skip_special = false) const = 0;

  // The token as the vocabulary spells it ("\u0120the", "\u2581the", "<0x0A>"), for display. Empty for an
  // unused id.
  virtual std::string token_text(int32_t id) const = 0;

  // The id of a spelling of the vocabulary, special tokens included.
  virtual std::optional<int32_t> find_token(std::string_view spelling) const = 0;

  // The id of a special or added token spelled `text`; nothing for ordinary tokens.
  virtual std::optional<int32_t> special_id(std::string_view text) const = 0;

  int64_t vocab_size() const { return info_.vocab_size; }
  std::optional<int32_t> bos() const { return info_.bos; }
  std::optional<int32_t> eos() const { return info_.eos; }
  std::optional<int32_t> unk() const { return info_.unk; }
  bool adds_bos() const { return info_.adds_bos; }
  const std::vector<int32_t>& end_ids() const { return info_.end_ids; }
  const std::string& chat_template() const { return info_.chat_template; }
  const TokenizerInfo& info() const { return info_; }
  void set_info(TokenizerInfo info) { info_ = std::move(info); }

 protected:
  // Byte ranges of the text where special tokens may be recognised: sorted, apart from each other.
  using Trusted = std::span<const std::pair<size_t, size_t>>;
  virtual std::vector<int32_t> encode_text(std::string_view text, Trusted trusted) const = 0;
  void check_id(int32_t id) const;

  TokenizerInfo info_;
};

// Opens the tokenizer of a model: a Hugging Face folder (tokenizer.json, else tokenizer.model), a .gguf, a
// llama2.c .bin (a tokenizer.model, tokenizer.bin, tok*.model or tok*.bin beside it), or a tokenizer file
// itself. Throws Error naming the file, the place, what was expected and what is supported.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& model_path);

}  // namespace gantrain
