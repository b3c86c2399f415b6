// Byte-pair encoding by scores, as SentencePiece does it, over a vocabulary that lies in a GGUF
// (tokenizer.ggml.model = llama) or in llama2.c's tokenizer.bin: of all neighbours that make a token, the
// pair with the highest score is merged first; characters without a token become bytes.
#pragma once

#include <string>
#include <vector>

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/tokenizer.h"

namespace gantrain {

class ScoreTokenizer : public Tokenizer {
 public:
  // GGUF's numbers of the types.
  enum class Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  struct Token {
    std::string text;
    float score = 0;
    Type type = Type::kNormal;
  };
  // `space`: how the vocabulary spells a space. `add_space_prefix`: a text starts with a space, which
  // decoding takes away again. Throws Error naming `where` when a byte has no token and there is no unk.
  ScoreTokenizer(std::vector<Token> tokens, std::string space, bool add_space_prefix,
                 std::optional<int32_t> unk, const std::string& where);

  std::string decode(std::span<const int32_t> ids, bool skip_special) const override;
  std::string decode_text(std::span<const int32_t> ids, bool skip_special) const override;
  std::string token_text(int32_t id) const override;
  std::optional<int32_t> find_token(std::string_view spelling) const override;
  std::optional<int32_t> special_id(std::string_view text) const override;

 protected:
  std::vector<int32_t> encode_text(std::string_view text, Trusted trusted) const override;

 private:
  void encode_section(std::string_view text, std::vector<int32_t>& ids) const;
  std::string decode_with(std::span<const int32_t> ids, bool skip_special, bool valid_utf8) const;

  std::vector<Token> tokens_;
  std::string space_;
  bool add_space_prefix_;
  StringIds ordinary_, special_ids_;  // texts that merges may make; texts recognised on demand
  size_t longest_ = 0;                // bytes of the longest ordinary token
  std::vector<int32_t> byte_ids_;     // byte -> id or -1
  std::vector<int16_t> byte_of_;      // id -> byte or -1
  AddedTokenMatcher added_;
};

}  // namespace gantrain
