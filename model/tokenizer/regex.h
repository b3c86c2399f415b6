// Patterns that cut text into pieces: a literal string, or a regular expression in Oniguruma's syntax (what
// the Hugging Face tokenizers use), translated to PCRE2 with its JIT compiler.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gantrain {

using ByteRange = std::pair<size_t, size_t>;  // [begin, end)

// An Oniguruma pattern (Ruby syntax, UTF-8) in PCRE2's: \s becomes Unicode's White_Space, \p{L} and the like
// know Unicode 16, ^ and $ match at every line. Throws Error naming `where` and the first construct that the
// two engines read differently and that is not translated.
std::string translate_regex(std::string_view pattern, const std::string& where);

class Pattern {
 public:
  static Pattern literal(std::string text);
  // `where` is for messages: the file and the place in it.
  static Pattern regex(std::string_view oniguruma, const std::string& where);
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;
  ~Pattern();

  // All matches from left to right, without overlap; empty matches are left out. `text` must be valid UTF-8.
  // Throws Error where the engine gives up (its limits on memory or backtracking).
  std::vector<ByteRange> find_all(std::string_view text) const;

 private:
  struct Compiled;
  Pattern();
  std::string literal_;
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace gantrain
