// Tokens that are found in the text before anything else cuts it: special tokens and those added to a
// vocabulary.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gantrain {

struct AddedToken {
  int32_t id = 0;
  std::string text;
  bool special = false;
  bool lstrip = false, rstrip = false;  // take the white space before, behind
  bool single_word = false;             // only where no word character touches it
};

// A piece of text, and its id where it is an added token.
struct AddedSplit {
  size_t begin = 0, end = 0;
  std::optional<int32_t> id;
};

// Finds tokens in text, leftmost first, the longest of those that start there.
class AddedTokenMatcher {
 public:
  void add(AddedToken token);  // its text must not be empty
  bool empty() const { return tokens_.empty(); }

  // The whole text in pieces. A token counts only where it lies inside one of the `trusted` ranges (sorted,
  // apart).
  std::vector<AddedSplit> split(std::string_view text,
                                std::span<const std::pair<size_t, size_t>> trusted) const;

 private:
  std::vector<AddedToken> tokens_;
  std::vector<std::vector<int32_t>> by_first_byte_{256};  // indices into tokens_, longest text first
};

}  // namespace gantrain
