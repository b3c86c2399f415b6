#include "model/tokenizer/added_tokens.h"

#include <algorithm>

#include "core/check.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"

namespace gantrain {
namespace {

bool is_white_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

size_t character_before(std::string_view text, size_t at) {
  do --at;
  while ((static_cast<unsigned char>(text[at]) & 0xc0) == 0x80);
  return at;
}

size_t skip_space_back(std::string_view text, size_t at) {
  while (at > 0) {
    size_t before = character_before(text, at), i = before;
    if (!is_white_space(utf8::next(text, i))) break;
    at = before;
  }
  return at;
}

size_t skip_space(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if (!is_white_space(utf8::next(text, next))) break;
    at = next;
  }
  return at;
}

// Rust's \w: alphabetic, marks, decimal digits, connectors, joiners. PCRE2's own \w lacks marks and joiners.
bool is_word_character(std::string_view character) {
  static const Pattern word = Pattern::regex(
      "[\\p{L}\\p{Nl}\\p{M}\\p{Nd}\\p{Pc}\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169"
      "\U0001f170-\U0001f189]",
      "word characters");
  return !word.find_all(character).empty();
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    const size_t before = character_before(text, begin);
    if (is_word_character(text.substr(before, begin - before))) return true;
  }
  if (end < text.size()) {
    size_t next = end;
    utf8::next(text, next);
    if (is_word_character(text.substr(end, next - end))) return true;
  }
  return false;
}

}  // namespace

void AddedTokenMatcher::add(AddedToken token) {
  GT_CHECK(!token.text.empty(), "added token {} has no text", token.id);
  auto& list = by_first_byte_[static_cast<unsigned char>(token.text[0])];
  const auto longer = [&](int32_t i) { return tokens_[i].text.size() >= token.text.size(); };
  const auto place = std::partition_point(list.begin(), list.end(), longer);
  list.insert(place, static_cast<int32_t>(tokens_.size()));
  tokens_.push_back(std::move(token));
}

std::vector<AddedSplit> AddedTokenMatcher::split(std::string_view text,
                                                 std::span<const std::pair<size_t, size_t>> trusted) const {
  std::vector<AddedSplit> pieces;
  size_t done = 0;  // everything before is in a piece
  if (!tokens_.empty()) {
    for (const auto& [range_begin, range_end] : trusted) {
      for (size_t at = range_begin; at < range_end;) {
        const AddedToken* found = nullptr;
        for (int32_t i : by_first_byte_[static_cast<unsigned char>(text[at])]) {
          const std::string& token = tokens_[i].text;
          if (token.size() <= range_end - at && text.compare(at, token.size(), token) == 0) {
            found = &tokens_[i];
            break;
          }
        }
        if (!found) {
          ++at;
          continue;
        }
        size_t begin = at, end = at + found->text.size();
        at = end;
        if (found->single_word && touches_word(text, begin, end)) continue;
        if (found->lstrip) begin = std::max(skip_space_back(text, begin), done);
        if (found->rstrip) end = skip_space(text, end);
        if (done < begin) pieces.push_back({done, begin, std::nullopt});
        pieces.push_back({begin, end, found->id});
        done = end;
      }
    }
  }
  if (done < text.size()) pieces.push_back({done, text.size(), std::nullopt});
  return pieces;
}

}  // namespace gantrain
