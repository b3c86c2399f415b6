// A tokenizer of 97 tokens held in memory, one a letter but for what tests want to be otherwise.
#pragma once

#include <string>
#include <vector>

#include "core/check.h"
#include "model/tokenizer/tokenizer.h"

namespace gantrain::testing {

// 0 <s>, 1 </s> (the end), 2 a line break, 3 "ab" (the only way it is written), 4 and 5 the two bytes of
// e with acute accent, 6 to 96 the characters from space to "z".
class FakeTokenizer : public Tokenizer {
 public:
  static constexpr int32_t kAb = 3, kHalf = 4, kOtherHalf = 5, kFirstLetter = 6, kVocab = 97;

  explicit FakeTokenizer(std::vector<int32_t> end_ids = {1}) {
    info_.vocab_size = kVocab;
    info_.bos = 0;
    info_.eos = 1;
    info_.end_ids = std::move(end_ids);
  }
  std::string decode(std::span<const int32_t> ids, bool skip_special) const override {
    std::string out;
    for (int32_t id : ids) {
      check_id(id);
      if (id > 1 || !skip_special) out += token_text(id);
    }
    return out;
  }
  // Half a character becomes U+FFFD.
  std::string decode_text(std::span<const int32_t> ids, bool skip_special) const override {
    std::string out;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] == kHalf && i + 1 < ids.size() && ids[i + 1] == kOtherHalf) {
        out += "\xc3\xa9";
        ++i;
      } else if (ids[i] == kHalf || ids[i] == kOtherHalf) {
        out += "\xef\xbf\xbd";
      } else {
        out += decode(ids.subspan(i, 1), skip_special);
      }
    }
    return out;
  }
  std::string token_text(int32_t id) const override {
    switch (id) {
      case 0:
        return "<s>";
      case 1:
        return "</s>";
      case 2:
        return "\n";
      case kAb:
        return "ab";
      case kHalf:
        return "\xc3";
      case kOtherHalf:
        return "\xa9";
      default:
        return std::string(1, static_cast<char>(' ' + id - kFirstLetter));
    }
  }
  std::optional<int32_t> find_token(std::string_view spelling) const override {
    for (int32_t id = 0; id < kVocab; ++id)
      if (token_text(id) == spelling) return id;
    return std::nullopt;
  }
  std::optional<int32_t> special_id(std::string_view text) const override {
    return text == "<s>"    ? std::optional<int32_t>(0)
           : text == "</s>" ? std::optional<int32_t>(1)
                            : std::nullopt;
  }

 protected:
  std::vector<int32_t> encode_text(std::string_view text, Trusted) const override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      const size_t n = text.substr(i, 2) == "ab" ? 2 : 1;
      const std::optional<int32_t> id = find_token(text.substr(i, n));
      GT_CHECK(id.has_value(), "the fake tokenizer has no token for byte {} of \"{}\"", i, std::string(text));
      ids.push_back(*id);
      i += n - 1;
    }
    return ids;
  }
};

}  // namespace gantrain::testing
