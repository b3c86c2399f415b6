#include "model/tokenizer/score_bpe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "core/check.h"
#include "model/formats/mapped_file.h"
#include "model/tokenizer/byte_token.h"
#include "model/tokenizer/formats.h"
#include "model/tokenizer/utf8.h"

namespace gantrain {
namespace {

constexpr std::string_view kSpaceMark = "\u2581", kUnknownSurface = " \u2047 ";

}  // namespace

ScoreTokenizer::ScoreTokenizer(std::vector<Token> tokens, std::string space, bool add_space_prefix,
                               std::optional<int32_t> unknown, const std::string& where)
    : tokens_(std::move(tokens)),
      space_(std::move(space)),
      add_space_prefix_(add_space_prefix),
      byte_ids_(256, -1),
      byte_of_(tokens_.size(), -1) {
  info_.vocab_size = static_cast<int64_t>(tokens_.size());
  info_.unk = unknown;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const Token& token = tokens_[i];
    const auto id = static_cast<int32_t>(i);
    if (!std::isfinite(token.score)) fail("{}: token {} ('{}') has no finite score", where, id, token.text);
    switch (token.type) {
      case Type::kByte: {
        const int byte = byte_token(token.text);
        if (byte < 0) fail("{}: byte token {} is '{}', not <0x00> to <0xFF>", where, id, token.text);
        byte_ids_[byte] = id;
        byte_of_[i] = static_cast<int16_t>(byte);
        break;
      }
      case Type::kUnknown:
      case Type::kControl:
      case Type::kUserDefined:
        if (!token.text.empty() && special_ids_.emplace(token.text, id).second)
          added_.add({id, token.text, token.type != Type::kUserDefined});
        if (token.type != Type::kUserDefined) break;
        [[fallthrough]];
      case Type::kNormal:
      case Type::kUnused:
        if (token.text.empty()) break;
        ordinary_.emplace(token.text, id);
        longest_ = std::max(longest_, token.text.size());
        break;
    }
  }
  if (!info_.unk && std::find(byte_ids_.begin(), byte_ids_.end(), -1) != byte_ids_.end())
    fail("{}: no unknown token, and not all of <0x00> to <0xFF> are tokens: some texts would have no ids",
         where);
}

std::vector<int32_t> ScoreTokenizer::encode_text(std::string_view text, Trusted trusted) const {
  std::vector<int32_t> ids;
  for (const AddedSplit& part : added_.split(text, trusted)) {
    if (part.id)
      ids.push_back(*part.id);
    else
      encode_section(text.substr(part.begin, part.end - part.begin), ids);
  }
  return ids;
}

void ScoreTokenizer::encode_section(std::string_view section, std::vector<int32_t>& ids) const {
  std::string text;
  if (add_space_prefix_) text = space_;
  // SentencePiece writes a space as U+2581, so to it the two are one character.
  for (size_t at = 0; at < section.size();) {
    const bool mark = section.substr(at).starts_with(kSpaceMark);
    if (mark || section[at] == ' ')
      text += space_;
    else
      text += section[at];
    at += mark ? kSpaceMark.size() : 1;
  }
  // Symbols are pieces of `text`, in a linked list; a merge makes the left one longer.
  struct Symbol {
    size_t begin, size;
    int64_t previous, next;
  };
  struct Candidate {
    float score;
    int64_t at;
    size_t size;  // of both together when it was found: another size means that it is stale
    bool operator<(const Candidate& o) const { return score != o.score ? score < o.score : at > o.at; }
  };
  std::vector<Symbol> symbols;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    utf8::next(text, at);
    const auto i = static_cast<int64_t>(symbols.size());
    symbols.push_back({begin, at - begin, i - 1, at < text.size() ? i + 1 : -1});
  }
  const std::string_view view = text;
  std::vector<Candidate> queue;  // a heap
  const auto push = [&](int64_t at) {
    const Symbol& left = symbols[at];
    const size_t size = left.size + symbols[left.next].size;
    if (size > longest_) return;
    const auto found = ordinary_.find(view.substr(left.begin, size));
    if (found == ordinary_.end()) return;
    queue.push_back({tokens_[found->second].score, at, size});
    std::push_heap(queue.begin(), queue.end());
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) push(static_cast<int64_t>(i));
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end());
    const Candidate top = queue.back();
    queue.pop_back();
    Symbol& left = symbols[top.at];
    if (left.size == 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    if (left.size + right.size != top.size) continue;
    left.size = top.size;
    right.size = 0;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = top.at;
    if (left.previous >= 0) push(left.previous);
    if (left.next >= 0) push(top.at);
  }
  for (int64_t i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[i].next) {
    const std::string_view piece = view.substr(symbols[i].begin, symbols[i].size);
    if (const auto found = ordinary_.find(piece); found != ordinary_.end()) {
      ids.push_back(found->second);
      continue;
    }
    const auto byte_id = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
    if (std::all_of(piece.begin(), piece.end(), [&](char c) { return byte_id(c) >= 0; })) {
      for (char c : piece) ids.push_back(byte_id(c));
    } else {
      ids.push_back(*info_.unk);
    }
  }
}

std::string ScoreTokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  return decode_with(ids, skip_special, false);
}

std::string ScoreTokenizer::decode_text(std::span<const int32_t> ids, bool skip_special) const {
  return decode_with(ids, skip_special, true);
}

std::string ScoreTokenizer::decode_with(std::span<const int32_t> ids, bool skip_special,
                                        bool valid_utf8) const {
  std::string out, bytes;
  bool at_start = true;  // nothing but special tokens so far
  const auto flush = [&] {
    // SentencePiece writes one U+FFFD for each byte that starts no character.
    for (size_t at = 0; at < bytes.size();) {
      const int n = utf8::length_at(bytes, at);
      if (n > 0 || !valid_utf8)
        out.append(bytes, at, n > 0 ? n : 1);
      else
        out += utf8::kReplacement;
      at += n > 0 ? n : 1;
    }
    bytes.clear();
  };
  for (int32_t id : ids) {
    check_id(id);
    const Token& token = tokens_[id];
    if (byte_of_[id] >= 0) {
      bytes += static_cast<char>(byte_of_[id]);
      at_start = false;
      continue;
    }
    flush();
    // As SentencePiece: nothing for control tokens, its mark for what the vocabulary does not know.
    if (token.type == Type::kControl) continue;
    if (token.type == Type::kUnknown) {
      if (skip_special) continue;
      out += kUnknownSurface;
      at_start = false;
      continue;
    }
    std::string_view rest = token.text;
    if (at_start && add_space_prefix_ && rest.starts_with(space_)) rest.remove_prefix(space_.size());
    at_start = false;
    for (size_t at; (at = rest.find(space_)) != std::string_view::npos;
         rest.remove_prefix(at + space_.size())) {
      out += rest.substr(0, at);
      out += ' ';
    }
    out += rest;
  }
  flush();
  return out;
}

std::string ScoreTokenizer::token_text(int32_t id) const {
  check_id(id);
  return tokens_[id].text;
}

std::optional<int32_t> ScoreTokenizer::find_token(std::string_view spelling) const {
  if (const auto found = ordinary_.find(spelling); found != ordinary_.end()) return found->second;
  for (int32_t id : byte_ids_)
    if (id >= 0 && tokens_[id].text == spelling) return id;
  return special_id(spelling);
}

std::optional<int32_t> ScoreTokenizer::special_id(std::string_view text) const {
  const auto found = special_ids_.find(text);
  return found == special_ids_.end() ? std::nullopt : std::optional(found->second);
}

// llama2.c's tokenizer.bin: i32 longest token, then for each token f32 score, i32 length, the bytes. By
// convention token 0 is <unk>, 1 is "\n<s>\n", 2 is "\n</s>\n", and <0x00> to <0xFF> follow.
std::unique_ptr<Tokenizer> read_llama2c_tokenizer(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  size_t at = 0;
  std::vector<ScoreTokenizer::Token> tokens;
  const auto read = [&](auto& value, bool header = false) {
    if (bytes.size() - at < sizeof(value))
      fail("{}: the file ends at byte {} inside {}; is it llama2.c's tokenizer.bin?", path, bytes.size(),
           header ? "its header" : fmt::format("token {}", tokens.size()));
    std::memcpy(&value, bytes.data() + at, sizeof(value));
    at += sizeof(value);
  };
  int32_t longest = 0;
  read(longest, true);
  constexpr int32_t kLongestToken = 1 << 16;
  if (longest < 1 || longest > kLongestToken)
    fail(
        "{}: expected the longest token's length, 1 to {}, at byte 0, got {}; is it llama2.c's "
        "tokenizer.bin?",
        path, kLongestToken, longest);
  using Type = ScoreTokenizer::Type;
  while (at < bytes.size()) {
    ScoreTokenizer::Token token;
    int32_t length = 0;
    read(token.score);
    read(length);
    if (length < 0 || length > longest || static_cast<size_t>(length) > bytes.size() - at)
      fail("{}: token {} at byte {}: length {} is not in [0, {}] or leaves the file of {} bytes", path,
           tokens.size(), at, length, longest, bytes.size());
    token.text.assign(reinterpret_cast<const char*>(bytes.data()) + at, static_cast<size_t>(length));
    at += static_cast<size_t>(length);
    if (const size_t bad = utf8::find_invalid(token.text); bad != std::string::npos)
      fail("{}: token {} is no valid UTF-8", path, tokens.size());
    tokens.push_back(std::move(token));
  }
  constexpr size_t kBytesEnd = 3 + 256;
  if (tokens.size() < kBytesEnd)
    fail("{}: {} tokens; expected at least {}: <unk>, <s>, </s> and 256 bytes", path, tokens.size(),
         kBytesEnd);
  tokens[0].type = Type::kUnknown;
  tokens[1] = {"<s>", tokens[1].score, Type::kControl};
  tokens[2] = {"</s>", tokens[2].score, Type::kControl};
  for (size_t i = 3; i < kBytesEnd; ++i) tokens[i].type = Type::kByte;
  auto tokenizer = std::make_unique<ScoreTokenizer>(std::move(tokens), " ", true, 0, path);
  TokenizerInfo info = tokenizer->info();
  info.bos = 1;
  info.eos = 2;
  info.adds_bos = true;  // as llama2.c's own run.c
  tokenizer->set_info(std::move(info));
  return tokenizer;
}

}  // namespace gantrain
