// The readers of the single formats, for open_tokenizer. All throw Error naming the file and the place.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "model/tokenizer/tokenizer.h"

namespace gantrain {

std::unique_ptr<Tokenizer> read_tokenizer_json(const std::string& path);
std::unique_ptr<Tokenizer> read_gguf_tokenizer(const std::string& path);
std::unique_ptr<Tokenizer> read_sentencepiece_model(const std::string& path);
std::unique_ptr<Tokenizer> read_llama2c_tokenizer(const std::string& path);

// Fills bos, eos, adds_bos, end_ids and chat_template from the files beside a Hugging Face tokenizer, as
// far as they exist: tokenizer_config.json, special_tokens_map.json, chat_template.jinja,
// generation_config.json, config.json.
void read_folder_settings(const std::string& folder, Tokenizer& tokenizer);

// Adds every eos and the well-known end-of-turn tokens of the vocabulary to end_ids; sorts it.
void complete_end_ids(Tokenizer& tokenizer);

// "a, b, c".
template <typename Texts>
std::string listed(const Texts& texts) {
  std::string out;
  for (std::string_view text : texts) {
    if (!out.empty()) out += ", ";
    out += text;
  }
  return out;
}

}  // namespace gantrain
