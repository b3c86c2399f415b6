// SentencePiece .model files, through the sentencepiece library.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <cctype>

#include "core/check.h"
#include "model/formats/mapped_file.h"
#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/formats.h"

namespace gantrain {
namespace {

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string_view model, const std::string& path) {
    std::string problem;
    try {
      const auto status = processor_.LoadFromSerializedProto({model.data(), model.size()});
      if (!status.ok()) problem = status.ToString();
    } catch (const std::exception& error) {  // its trie throws, at a piece that begins with a zero byte
      problem = error.what();
    }
    if (!problem.empty())
      fail("{}: the sentencepiece library cannot read it ({}); expected a SentencePiece .model", path,
           problem);
    info_.vocab_size = processor_.GetPieceSize();
    const auto known = [](int id) { return id >= 0 ? std::optional<int32_t>(id) : std::nullopt; };
    info_.bos = known(processor_.bos_id());
    info_.eos = known(processor_.eos_id());
    info_.unk = known(processor_.unk_id());
    info_.adds_bos = info_.bos.has_value();  // Llama's default; tokenizer_config.json may say otherwise
    for (int32_t id = 0; id < vocab_size(); ++id)
      if (special(id) && !processor_.IdToPiece(id).empty()) added_.add({id, processor_.IdToPiece(id), true});
  }

  std::string decode(std::span<const int32_t> ids, bool skip_special) const override {
    return decode_with(ids, skip_special, false);
  }
  std::string decode_text(std::span<const int32_t> ids, bool skip_special) const override {
    return decode_with(ids, skip_special, true);
  }
  std::string token_text(int32_t id) const override {
    check_id(id);
    return processor_.IdToPiece(id);
  }
  std::optional<int32_t> find_token(std::string_view spelling) const override {
    const int32_t id = processor_.PieceToId({spelling.data(), spelling.size()});
    if (id < 0 || id >= vocab_size() || processor_.IdToPiece(id) != spelling) return std::nullopt;
    return id;
  }
  std::optional<int32_t> special_id(std::string_view text) const override {
    for (int32_t id = 0; id < vocab_size(); ++id)
      if (special(id) && processor_.IdToPiece(id) == text) return id;
    return std::nullopt;
  }

 protected:
  std::vector<int32_t> encode_text(std::string_view text, Trusted trusted) const override {
    std::vector<int32_t> ids;
    for (const AddedSplit& part : added_.split(text, trusted)) {
      if (part.id) {
        ids.push_back(*part.id);
        continue;
      }
      std::vector<int> section;
      const auto status = processor_.Encode({text.data() + part.begin, part.end - part.begin}, &section);
      if (!status.ok()) fail("the sentencepiece library cannot encode the text: {}", status.ToString());
      ids.insert(ids.end(), section.begin(), section.end());
    }
    return ids;
  }

 private:
  bool special(int32_t id) const { return processor_.IsControl(id) || processor_.IsUnknown(id); }

  // The library writes U+FFFD for stray bytes and nothing for control pieces; its surfaces tell what each id
  // gave.
  std::string decode_with(std::span<const int32_t> ids, bool skip_special, bool valid_utf8) const {
    for (int32_t id : ids) check_id(id);
    const auto pieces = processor_.DecodeIdsAsImmutableProto({ids.begin(), ids.end()});
    std::string out;
    for (size_t i = 0; i < ids.size(); ++i) {
      const int32_t id = ids[i];
      if (!valid_utf8 && processor_.IsByte(id))
        out += static_cast<char>(std::stoi(processor_.IdToPiece(id).substr(3, 2), nullptr, 16));
      else if (!processor_.IsUnknown(id) || !skip_special)
        out += pieces.pieces(static_cast<int>(i)).surface();
    }
    return out;
  }

  sentencepiece::SentencePieceProcessor processor_;
  AddedTokenMatcher added_;
};

// Meta's Llama-3 tokenizer.model is no SentencePiece file but lines of "base64 rank".
bool is_tiktoken(std::string_view text) {
  const std::string_view line = text.substr(0, std::min<size_t>(text.find('\n'), 64));
  const size_t space = line.find(' ');
  return space != std::string_view::npos && space > 0 && space + 1 < line.size() &&
         line.substr(space + 1).find_first_not_of("0123456789\r") == std::string_view::npos &&
         std::all_of(line.begin(), line.begin() + static_cast<int64_t>(space),
                     [](unsigned char c) { return std::isalnum(c) || c == '+' || c == '/' || c == '='; });
}

}  // namespace

std::unique_ptr<Tokenizer> read_sentencepiece_model(const std::string& path) {
  const MappedFile file(path);
  const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  if (bytes.empty()) fail("{}: the file is empty; expected a SentencePiece .model", path);
  if (is_tiktoken(bytes))
    fail(
        "{}: tiktoken ranks (Meta's Llama-3 tokenizer.model), which are not supported; use the "
        "tokenizer.json that "
        "Hugging Face has for the same model",
        path);
  return std::make_unique<SentencePieceTokenizer>(bytes, path);
}

}  // namespace gantrain
