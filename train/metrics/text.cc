#include "train/metrics/text.h"

#include <array>

namespace gantrain::metrics {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Bytes of the white-space character at the start of `text`, 0 if there is none. The set is Python's
// str.isspace(): the ASCII controls 9-13 and 28-31, space, and Unicode's separators.
size_t white_space(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned a = byte(0);
  if ((a >= 9 && a <= 13) || (a >= 28 && a <= 32)) return 1;
  if (a == 0xC2) return byte(1) == 0x85 || byte(1) == 0xA0 ? 2 : 0;  // U+0085, U+00A0
  if (a == 0xE1) return byte(1) == 0x9A && byte(2) == 0x80 ? 3 : 0;  // U+1680
  if (a == 0xE3) return byte(1) == 0x80 && byte(2) == 0x80 ? 3 : 0;  // U+3000
  if (a != 0xE2) return 0;
  if (byte(1) == 0x81) return byte(2) == 0x9F ? 3 : 0;  // U+205F
  if (byte(1) != 0x80) return 0;
  const unsigned c = byte(2);
  return (c >= 0x80 && c <= 0x8A) || c == 0xA8 || c == 0xA9 || c == 0xAF
             ? 3
             : 0;  // U+2000-200A, 2028, 2029, 202F
}

std::string_view without_trailing_white_space(std::string_view text) {
  for (bool again = true; again;) {
    again = false;
    for (size_t n : {1, 2, 3}) {
      if (n <= text.size() && white_space(text.substr(text.size() - n)) == n) {
        text.remove_suffix(n);
        again = true;
        break;
      }
    }
  }
  return text;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  std::string out;
  size_t at = 0;
  for (size_t hit; (hit = text.find(from, at)) != std::string::npos; at = hit + from.size())
    out.append(text, at, hit - at).append(to);
  if (at > 0) text = out.append(text, at, std::string::npos);
}

// ASCII punctuation that always stands alone: { to ~, [ to `, space to &, ( to +, : to @, and /.
constexpr std::array<bool, 256> kAlone = [] {
  std::array<bool, 256> alone{};
  for (auto [first, last] :
       {std::array{'{', '~'}, {'[', '`'}, {' ', '&'}, {'(', '+'}, {':', '@'}, {'/', '/'}})
    for (int c = first; c <= last; ++c) alone[c] = true;
  return alone;
}();

// Replace every pair (a, b) of neighbours with first(a) and second(b), from left to right and without
// overlap, by before + a + between + b + after. Bytes stand for characters here: every pair has an ASCII
// member, and "not a digit" holds for the last byte of a character as it does for the first.
template <typename First, typename Second>
std::string replace_pairs(const std::string& text, First first, Second second, const char* before,
                          const char* after) {
  std::string out;
  out.reserve(text.size() + text.size() / 4 + 8);
  for (size_t i = 0; i < text.size(); ++i) {
    if (i + 1 < text.size() && first(text[i]) && second(text[i + 1])) {
      out.append(before) += text[i];
      (out += ' ') += text[i + 1];
      out += after;
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

void add_token(Tokens& tokens, std::string_view token) {
  if (!tokens.joined.empty()) tokens.joined += ' ';
  tokens.begin.push_back(static_cast<uint32_t>(tokens.joined.size()));
  tokens.joined += token;
  tokens.end.push_back(static_cast<uint32_t>(tokens.joined.size()));
}

char ascii_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

Tokens split_words(std::string_view text) {
  Tokens tokens;
  size_t start = 0, at = 0;
  while (at < text.size()) {
    const size_t space = white_space(text.substr(at));
    if (space == 0) {
      ++at;
      continue;
    }
    if (at > start) add_token(tokens, text.substr(start, at - start));
    start = at += space;
  }
  if (at > start) add_token(tokens, text.substr(start));
  return tokens;
}

Tokens tokenize_13a(std::string_view text) {
  std::string line(without_trailing_white_space(text));
  replace_all(line, "<skipped>", "");
  replace_all(line, "-\n", "");
  replace_all(line, "\n", " ");
  if (line.find('&') != std::string::npos) {
    replace_all(line, "&quot;", "\"");
    replace_all(line, "&amp;", "&");
    replace_all(line, "&lt;", "<");
    replace_all(line, "&gt;", ">");
  }
  std::string apart = " ";
  for (char c : line) {
    if (kAlone[static_cast<unsigned char>(c)]) {
      ((apart += ' ') += c) += ' ';
    } else {
      apart += c;
    }
  }
  apart += ' ';
  const auto point = [](char c) { return c == '.' || c == ','; };
  const auto no_digit = [](char c) { return !is_digit(c); };
  apart = replace_pairs(apart, no_digit, point, "", " ");
  apart = replace_pairs(apart, point, no_digit, " ", "");
  apart = replace_pairs(
      apart, is_digit, [](char c) { return c == '-'; }, "", " ");
  return split_words(apart);
}

Tokens tokenize_rouge(std::string_view text) {
  Tokens tokens;
  std::string token;
  const auto finish = [&] {
    if (!token.empty()) add_token(tokens, token);
    token.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = ascii_lower(text[i]);
    if ((c >= 'a' && c <= 'z') || is_digit(c)) {
      token += c;
    } else if (text.substr(i, 3) == "\xE2\x84\xAA") {  // U+212A, lower case k
      token += 'k';
      i += 2;
    } else if (text.substr(i, 2) ==
               "\xC4\xB0") {  // U+0130, lower case i and a combining dot, which separates
      token += 'i';
      finish();
      i += 1;
    } else {
      finish();
    }
  }
  finish();
  return tokens;
}

std::string normalize_answer(std::string_view text) {
  std::string out = split_words(text).joined;
  for (char& c : out) c = ascii_lower(c);
  while (!out.empty() && std::string_view(" .,!?;:").find(out.back()) != std::string_view::npos)
    out.pop_back();
  return out;
}

}  // namespace gantrain::metrics
