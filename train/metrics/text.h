// How the metrics cut text into tokens. Text is UTF-8; bytes that are not are kept as they are and never
// rejected, for a model may write anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gantrain::metrics {

// A text cut into tokens: `joined` holds them with one space between. No token holds white space, so an
// n-gram is a piece of `joined`, and two n-grams are equal exactly when those pieces are.
struct Tokens {
  std::string joined;
  std::vector<uint32_t> begin;  // (size) offset of each token in `joined`
  std::vector<uint32_t> end;    // (size) offset one past it

  size_t size() const { return begin.size(); }
  std::string_view operator[](size_t i) const { return ngram(i, 1); }
  // Tokens i .. i+n-1, n >= 1, i+n <= size(). The view lives as long as this object stays where it is.
  std::string_view ngram(size_t i, size_t n) const {
    return std::string_view(joined).substr(begin[i], end[i + n - 1] - begin[i]);
  }
};

// Cut at runs of white space (Unicode's, as Python's str.split() does).
Tokens split_words(std::string_view text);

// The tokens of mteval-v13a, as in sacrebleu's `13a` (its default): trailing white space removed, <skipped>
// and hyphen-newline removed, four XML entities resolved, then punctuation set apart: all ASCII punctuation
// but apostrophe, hyphen, comma and full stop; comma and full stop unless they stand between digits; a hyphen
// after a digit. Case is kept. Source: https://github.com/mjpost/sacrebleu, tokenizer_13a.py and
// tokenizer_re.py; NIST mteval-v13a.pl.
Tokens tokenize_13a(std::string_view text);

// The tokens of the rouge_score package without stemming: lower case, then every maximal run of [a-z0-9].
// Letters outside ASCII separate, except U+212A (Kelvin) and U+0130, whose lower case begins with k and i.
// Source: https://github.com/google-research/google-research/tree/master/rouge, tokenize.py.
Tokens tokenize_rouge(std::string_view text);

// For exact match: ASCII lower case, each run of white space one space, none at the ends, and of what is left
// no closing . , ! ? ; : (so "Positive." and " positive" are the same answer; "no" and "not" are not).
std::string normalize_answer(std::string_view text);

}  // namespace gantrain::metrics
