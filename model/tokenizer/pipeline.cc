#include "model/tokenizer/pipeline.h"

#include <algorithm>

#include "core/check.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/unicode_additions.h"
#include "model/tokenizer/utf8.h"

namespace gantrain::pipeline {
namespace {

template <typename... F>
struct Overload : F... {
  using F::operator()...;
};
template <typename... F>
Overload(F...) -> Overload<F...>;

// A part of the text on its way to the merges. `first` tells that it starts where the whole text starts.
struct Piece {
  std::string text;
  bool first = false;
};

struct Cut {
  size_t begin, end;
  bool match;
};

// The text in pieces that match and pieces that do not, in order.
std::vector<Cut> cut(const Pattern& pattern, std::string_view text, bool invert) {
  std::vector<Cut> cuts;
  size_t done = 0;
  for (const auto& [begin, end] : pattern.find_all(text)) {
    if (done < begin) cuts.push_back({done, begin, invert});
    cuts.push_back({begin, end, !invert});
    done = end;
  }
  if (done < text.size()) cuts.push_back({done, text.size(), invert});
  return cuts;
}

std::vector<ByteRange> arrange(const std::vector<Cut>& cuts, SplitBehavior behavior) {
  std::vector<ByteRange> out;
  bool previous = false;  // was the cut before this one a match
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const Cut& c : cuts)
        if (!c.match) out.emplace_back(c.begin, c.end);
      break;
    case SplitBehavior::kIsolated:
      for (const Cut& c : cuts) out.emplace_back(c.begin, c.end);
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const Cut& c : cuts) {
        if (c.match && !previous && !out.empty())
          out.back().second = c.end;
        else
          out.emplace_back(c.begin, c.end);
        previous = c.match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (auto c = cuts.rbegin(); c != cuts.rend(); ++c) {
        if (c->match && !previous && !out.empty())
          out.back().first = c->begin;
        else
          out.emplace_back(c->begin, c->end);
        previous = c->match;
      }
      std::reverse(out.begin(), out.end());
      break;
    case SplitBehavior::kContiguous:
      for (const Cut& c : cuts) {
        if (c.match == previous && !out.empty())
          out.back().second = c.end;
        else
          out.emplace_back(c.begin, c.end);
        previous = c.match;
      }
      break;
  }
  return out;
}

void split_into(const Piece& piece, const Pattern& pattern, SplitBehavior behavior, bool invert,
                std::vector<Piece>& out) {
  const std::string_view text = piece.text;
  for (const auto& [begin, end] : arrange(cut(pattern, text, invert), behavior))
    if (begin < end) out.push_back({std::string(text.substr(begin, end - begin)), piece.first && begin == 0});
}

// Each step of a file that nobody vouches for may multiply a text. Real ones make a few bytes of one.
class Room {
 public:
  Room(const char* stage, size_t bytes) : stage_(stage), bytes_(bytes) {}
  void check(size_t grown) const {
    if (grown > 16 * bytes_ + 4096)
      fail("the tokenizer's {} makes more than {} bytes of a text of {}: it is damaged or made to harm",
           stage_, 16 * bytes_ + 4096, bytes_);
  }

 private:
  const char* stage_;
  size_t bytes_;
};

std::string replace_all(std::string_view text, std::string_view from, std::string_view to,
                        const Room* room = nullptr) {
  if (from.empty()) return std::string(text);
  std::string out;
  size_t done = 0;
  for (size_t at; (at = text.find(from, done)) != std::string_view::npos; done = at + from.size()) {
    out += text.substr(done, at - done);
    out += to;
    if (room) room->check(out.size());
  }
  out += text.substr(done);
  return out;
}

void apply(const Split& step, Piece piece, std::vector<Piece>& out) {
  split_into(piece, step.pattern, step.behavior, step.invert, out);
}

void apply(const ByteLevel& step, Piece piece, std::vector<Piece>& out) {
  if (step.add_prefix_space && !piece.text.empty() && piece.text[0] != ' ')
    piece.text.insert(piece.text.begin(), ' ');
  const size_t begin = out.size();
  if (step.regex)
    split_into(piece, *step.regex, SplitBehavior::kIsolated, false, out);
  else
    out.push_back(std::move(piece));
  for (size_t i = begin; i < out.size(); ++i) out[i].text = byte_level::encode(out[i].text);
}

void apply(const Metaspace& step, Piece piece, std::vector<Piece>& out) {
  piece.text = replace_all(piece.text, " ", step.replacement);
  const bool wanted =
      step.prepend == PrependScheme::kAlways || (step.prepend == PrependScheme::kFirst && piece.first);
  if (wanted && !piece.text.empty() && !piece.text.starts_with(step.replacement))
    piece.text.insert(0, step.replacement);
  if (step.split)
    split_into(piece, Pattern::literal(step.replacement), SplitBehavior::kMergedWithNext, false, out);
  else
    out.push_back(std::move(piece));
}

// The byte that a token "<0xNN>" stands for, or -1.
int byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  for (char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = 16 * value + digit;
  }
  return value;
}

using Texts = std::vector<std::string>;

Texts decode_bytes(const Texts& in, bool valid_utf8) {
  Texts out;
  std::string run;
  const auto flush = [&] {
    if (run.empty()) return;
    if (!valid_utf8 || utf8::find_invalid(run) == std::string::npos) {
      out.push_back(run);
    } else {
      // The reference gives up on the whole run: one U+FFFD a byte, each a token of its own.
      out.insert(out.end(), run.size(), std::string(utf8::kReplacement));
    }
    run.clear();
  };
  for (const std::string& token : in) {
    if (const int byte = byte_of(token); byte >= 0) {
      run += static_cast<char>(byte);
    } else {
      flush();
      out.push_back(token);
    }
  }
  flush();
  return out;
}

std::string join(const Texts& texts, std::string_view between) {
  std::string out;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i > 0) out += between;
    out += texts[i];
  }
  return out;
}

size_t bytes_of(const Texts& texts) {
  size_t bytes = 0;
  for (const std::string& text : texts) bytes += text.size();
  return bytes;
}

Texts apply(const DecoderStep& step, Texts in, bool valid_utf8, const Room& room) {
  return std::visit(Overload{[&](const DecodeByteLevel&) -> Texts {
                               std::string bytes;
                               for (const std::string& token : in) bytes += byte_level::decode(token);
                               return {valid_utf8 ? utf8::lossy(bytes) : bytes};
                             },
                             [&](const DecodeMetaspace& s) {
                               for (size_t i = 0; i < in.size(); ++i)
                                 in[i] =
                                     replace_all(in[i], s.replacement, i == 0 && s.strip_first ? "" : " ");
                               return std::move(in);
                             },
                             [&](const DecodeReplace& s) {
                               size_t bytes = 0;
                               for (std::string& token : in) {
                                 token = replace_all(token, s.from, s.to, &room);
                                 room.check(bytes += token.size());
                               }
                               return std::move(in);
                             },
                             [&](const DecodeByteFallback&) { return decode_bytes(in, valid_utf8); },
                             [&](const DecodeFuse&) -> Texts { return {join(in, "")}; },
                             [&](const DecodeStrip& s) {
                               for (std::string& token : in) {
                                 std::string_view rest = token;
                                 for (int64_t i = 0; i < s.start && rest.starts_with(s.content); ++i)
                                   rest.remove_prefix(s.content.size());
                                 for (int64_t i = 0; i < s.stop && rest.ends_with(s.content); ++i)
                                   rest.remove_suffix(s.content.size());
                                 token = std::string(rest);
                               }
                               return std::move(in);
                             }},
                    step);
}

}  // namespace

const char* const kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char* const kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Split digits(bool individual) {
  std::string members = "[\\p{N}";
  for (const unicode::Addition& a : unicode::kRustNumbers) {
    utf8::append(members, a.first);
    members += '-';
    utf8::append(members, a.last);
  }
  return {Pattern::regex(members + "]", "Digits"),
          individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, false};
}

std::string normalize(const std::vector<NormalizerStep>& steps, std::string text) {
  const Room room("normaliser", text.size());
  for (const NormalizerStep& step : steps) {
    if (const auto* prepend = std::get_if<Prepend>(&step)) {
      if (!text.empty()) text.insert(0, prepend->text);
    } else {
      const auto& replace = std::get<Replace>(step);
      std::string out;
      size_t done = 0;
      for (const auto& [begin, end] : replace.pattern.find_all(text)) {
        out.append(text, done, begin - done);
        out += replace.content;
        done = end;
        room.check(out.size());
      }
      out.append(text, done);
      text = std::move(out);
    }
    room.check(text.size());
  }
  return text;
}

PipelineTokenizer::PipelineTokenizer(Spec spec) : spec_(std::move(spec)) {
  GT_CHECK(spec_.bpe.has_value(), "a pipeline needs its merges");
  info_.vocab_size = static_cast<int64_t>(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); ++id)
    if (const Token& token = spec_.tokens[id]; token.used && (token.added || token.special))
      special_ids_.emplace(token.text, static_cast<int32_t>(id));
}

std::vector<int32_t> PipelineTokenizer::encode_text(std::string_view text, Trusted trusted) const {
  std::vector<int32_t> ids;
  const auto emit = [&](std::optional<int32_t> token, auto&& otherwise) {
    if (token)
      ids.push_back(*token);
    else
      otherwise();
  };
  for (const AddedSplit& section : spec_.raw_added.split(text, trusted)) {
    emit(section.id, [&] {
      const std::string normal =
          normalize(spec_.normalizer, std::string(text.substr(section.begin, section.end - section.begin)));
      // Behind the normaliser offsets are no longer those of the text: all of the section must be trusted.
      const bool all = std::any_of(trusted.begin(), trusted.end(), [&](const auto& range) {
        return range.first <= section.begin && section.end <= range.second;
      });
      std::vector<std::pair<size_t, size_t>> everything;
      if (all) everything.emplace_back(0, normal.size());
      for (const AddedSplit& part : spec_.normalized_added.split(normal, everything))
        emit(part.id, [&] {
          encode_section(normal.substr(part.begin, part.end - part.begin),
                         section.begin == 0 && part.begin == 0, ids);
        });
    });
  }
  return ids;
}

void PipelineTokenizer::encode_section(std::string text, bool first, std::vector<int32_t>& ids) const {
  const Room room("pre-tokenizer", text.size());
  std::vector<Piece> pieces;
  pieces.push_back({std::move(text), first});
  for (const PreTokenizerStep& step : spec_.pre_tokenizer) {
    std::vector<Piece> cut;
    for (Piece& piece : pieces) std::visit([&](const auto& s) { apply(s, std::move(piece), cut); }, step);
    pieces = std::move(cut);
    size_t bytes = 0;
    for (const Piece& piece : pieces) bytes += piece.text.size();
    room.check(bytes);
  }
  for (const Piece& piece : pieces) spec_.bpe->encode(piece.text, ids);
}

std::string PipelineTokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  return decode_with(ids, skip_special, false);
}

std::string PipelineTokenizer::decode_text(std::span<const int32_t> ids, bool skip_special) const {
  return decode_with(ids, skip_special, true);
}

std::string PipelineTokenizer::decode_with(std::span<const int32_t> ids, bool skip_special,
                                           bool valid_utf8) const {
  Texts texts;
  for (int32_t id : ids) {
    check_id(id);
    const Token& token = spec_.tokens[id];
    if (token.used && !(skip_special && token.special))
      texts.push_back(token.decoded.empty() ? token.text : token.decoded);
  }
  if (!spec_.has_decoder) return join(texts, " ");
  const Room room("decoder", bytes_of(texts));
  for (const DecoderStep& step : spec_.decoder) {
    texts = apply(step, std::move(texts), valid_utf8, room);
    room.check(bytes_of(texts));
  }
  return join(texts, "");
}

std::string PipelineTokenizer::token_text(int32_t id) const {
  check_id(id);
  return spec_.tokens[id].text;
}

std::optional<int32_t> PipelineTokenizer::find_token(std::string_view spelling) const {
  const auto found = spec_.bpe->vocab().find(spelling);
  return found == spec_.bpe->vocab().end() ? special_id(spelling) : std::optional(found->second);
}

std::optional<int32_t> PipelineTokenizer::special_id(std::string_view text) const {
  const auto found = special_ids_.find(text);
  return found == special_ids_.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace gantrain::pipeline
