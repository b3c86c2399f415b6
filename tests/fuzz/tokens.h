// What every tokenizer that could be read must survive: a text of all kinds there and back.
#pragma once

#include <algorithm>

#include "model/tokenizer/tokenizer.h"

namespace gantrain::fuzz {

inline void use(const Tokenizer& tokenizer) {
  const std::string text = "Hello  <s>w\u00f6rld\u2581</s>\n 123\t\U0001f600\xc2\x85 <|im_end|> don't";
  for (const bool special : {false, true}) {
    const std::vector<int32_t> ids = tokenizer.encode(text, special);
    tokenizer.decode(ids, special);
    tokenizer.decode_text(ids, special);
  }
  for (int32_t id = 0; id < std::min<int64_t>(tokenizer.vocab_size(), 300); ++id)
    tokenizer.find_token(tokenizer.token_text(id));
}

}  // namespace gantrain::fuzz
