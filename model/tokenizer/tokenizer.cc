#include "model/tokenizer/tokenizer.h"

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "model/formats/gguf.h"
#include "model/tokenizer/formats.h"
#include "model/tokenizer/utf8.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSupported =
    "supported: a Hugging Face folder with tokenizer.json or tokenizer.model, a .gguf, a llama2.c .bin with "
    "a "
    "tokenizer.model, tokenizer.bin, tok*.model or tok*.bin beside it, or one of these tokenizer files "
    "itself";

// Whether a file is a tokenizer by its name: llama2.c's checkpoints and tokenizers both end in .bin.
bool named_tokenizer(const fs::path& file, const char* ending) {
  return file.extension() == ending && file.filename().string().starts_with("tok");
}

std::unique_ptr<Tokenizer> open_beside(const fs::path& checkpoint) {
  const fs::path folder = checkpoint.has_parent_path() ? checkpoint.parent_path() : fs::path(".");
  for (const char* ending : {".model", ".bin"}) {
    if (const fs::path usual = folder / (std::string("tokenizer") + ending); fs::is_regular_file(usual))
      return open_tokenizer(usual.string());
  }
  for (const char* ending : {".model", ".bin"}) {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.is_regular_file() && named_tokenizer(entry.path(), ending))
        found.push_back(entry.path().string());
    std::sort(found.begin(), found.end());
    if (found.size() > 1)
      fail(
          "{}: several tokenizers lie beside it ({}); give the right one itself, or rename it to tokenizer{}",
          checkpoint.string(), listed(found), ending);
    if (found.size() == 1) return open_tokenizer(found[0]);
  }
  fail("{}: no tokenizer beside it; {}", checkpoint.string(), kSupported);
}

std::unique_ptr<Tokenizer> open_folder(const fs::path& folder) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"})
    if (fs::is_regular_file(folder / name)) {
      auto tokenizer = name == std::string("tokenizer.json")
                           ? read_tokenizer_json((folder / name).string())
                           : read_sentencepiece_model((folder / name).string());
      read_folder_settings(folder.string(), *tokenizer);
      return tokenizer;
    }
  fail("{}: neither tokenizer.json nor tokenizer.model in this folder; {}", folder.string(), kSupported);
}

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool allow_special) const {
  if (const size_t bad = utf8::find_invalid(text); bad != std::string_view::npos)
    fail("the text is no valid UTF-8 at byte {} of {} (0x{:x})", bad, text.size(),
         static_cast<unsigned char>(text[bad]));
  const std::pair<size_t, size_t> whole{0, text.size()};
  return encode_text(text, allow_special ? Trusted(&whole, 1) : Trusted());
}

std::vector<int32_t> Tokenizer::encode_parts(std::span<const TextPart> parts) const {
  std::string text;
  std::vector<std::pair<size_t, size_t>> trusted;
  for (const TextPart& part : parts) {
    if (const size_t bad = utf8::find_invalid(part.text); bad != std::string::npos)
      fail("a part of the text is no valid UTF-8 at byte {} of {}", bad, part.text.size());
    const size_t begin = text.size();
    text += part.text;
    if (!part.trusted || part.text.empty()) continue;
    if (!trusted.empty() && trusted.back().second == begin)
      trusted.back().second = text.size();
    else
      trusted.emplace_back(begin, text.size());
  }
  return encode_text(text, trusted);
}

void Tokenizer::check_id(int32_t id) const {
  if (id < 0 || id >= vocab_size()) fail("token id {} is outside the vocabulary [0, {})", id, vocab_size());
}

void complete_end_ids(Tokenizer& tokenizer) {
  TokenizerInfo info = tokenizer.info();
  auto& ends = info.end_ids;
  if (info.eos) ends.push_back(*info.eos);
  for (const char* text :
       {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>"})
    if (const auto id = tokenizer.special_id(text)) ends.push_back(*id);
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  tokenizer.set_info(std::move(info));
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& model_path) {
  const fs::path path(model_path);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) fail("{}: no such file or folder", model_path);
  std::unique_ptr<Tokenizer> tokenizer;
  if (fs::is_directory(status))
    tokenizer = open_folder(path);
  else if (GgufFile::has_magic(model_path))
    tokenizer = read_gguf_tokenizer(model_path);
  else if (path.extension() == ".json") {
    tokenizer = read_tokenizer_json(model_path);
    read_folder_settings(path.has_parent_path() ? path.parent_path().string() : ".", *tokenizer);
  } else if (path.extension() == ".model")
    tokenizer = read_sentencepiece_model(model_path);
  else if (named_tokenizer(path, ".bin"))
    tokenizer = read_llama2c_tokenizer(model_path);
  else if (path.extension() == ".bin")
    return open_beside(path);
  else
    fail("{}: no tokenizer that is known; {}", model_path, kSupported);
  complete_end_ids(*tokenizer);
  return tokenizer;
}

}  // namespace gantrain
