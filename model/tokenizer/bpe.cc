#include "model/tokenizer/bpe.h"

#include <algorithm>
#include <functional>

#include "core/check.h"
#include "model/tokenizer/byte_token.h"
#include "model/tokenizer/utf8.h"

namespace gantrain {

MergeTable::MergeTable(size_t count) {
  size_t slots = 16;
  while (slots < 2 * count) slots *= 2;
  slots_.resize(slots);
}

size_t MergeTable::slot(uint64_t key) const {
  // Fibonacci hashing: the high bits of the product are well mixed.
  size_t at = (key * 0x9e3779b97f4a7c15ull) >> 20 & (slots_.size() - 1);
  while (slots_[at].key != kFree && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
  return at;
}

void MergeTable::set(int32_t left, int32_t right, Merge merge) {
  Slot& s = slots_[slot(key(left, right))];
  s.key = key(left, right);
  s.merge = merge;
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  const Slot& s = slots_[slot(key(left, right))];
  return s.key == kFree ? nullptr : &s.merge;
}

Bpe::Bpe(StringIds vocab, const std::vector<std::pair<std::string_view, std::string_view>>& merges,
         Options options, const std::vector<int32_t>& whole_excluded, const std::string& where)
    : vocab_(std::move(vocab)),
      options_(options),
      low_characters_(0x180, -1),
      byte_ids_(256, -1),
      merges_(merges.size()) {
  int32_t largest = -1;
  for (const auto& [text, id] : vocab_) {
    largest = std::max(largest, id);
    const unsigned char first = text.empty() ? 0 : text[0];
    if (text.size() == 1 && first < 0x80) low_characters_[first] = id;
    if (text.size() == 2 && first >= 0xc2 && first < 0xc6 && (text[1] & 0xc0) == 0x80)  // 0x80 to 0x17f
      low_characters_[(first & 0x1f) << 6 | (text[1] & 0x3f)] = id;
    if (const int byte = byte_token(text); byte >= 0) byte_ids_[byte] = id;
  }
  whole_excluded_.resize(static_cast<size_t>(largest) + 1);
  for (int32_t id : whole_excluded)
    if (id >= 0 && id <= largest) whole_excluded_[id] = true;
  const auto id_of = [&](std::string_view token, size_t rank) {
    const auto found = vocab_.find(token);
    if (found == vocab_.end())
      fail("{}: merge {} needs the token '{}', which is not in the vocabulary", where, rank, token);
    return found->second;
  };
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    joined.assign(left);
    joined += right;
    const int32_t a = id_of(left, rank), b = id_of(right, rank);
    merges_.set(a, b, {static_cast<int32_t>(rank), id_of(joined, rank)});
  }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.empty()) return;
  if (options_.ignore_merges) {
    const auto found = vocab_.find(piece);
    if (found != vocab_.end() && !whole_excluded_[found->second]) {
      ids.push_back(found->second);
      return;
    }
  }
  std::vector<int32_t> word;
  split(piece, word);
  merge(word);
  ids.insert(ids.end(), word.begin(), word.end());
}

void Bpe::split(std::string_view piece, std::vector<int32_t>& ids) const {
  int64_t pending_unk = 0;  // how many unks wait to be written: the reference writes them late
  const auto flush = [&] {
    ids.insert(ids.end(), static_cast<size_t>(pending_unk), options_.unk.value_or(0));
    pending_unk = 0;
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t begin = at;
    const uint32_t c = utf8::next(piece, at);
    int32_t id = -1;
    if (c < low_characters_.size()) {
      id = low_characters_[c];
    } else if (const auto found = vocab_.find(piece.substr(begin, at - begin)); found != vocab_.end()) {
      id = found->second;
    }
    if (id >= 0) {
      flush();
      ids.push_back(id);
      continue;
    }
    const auto byte_id = [&](size_t i) { return byte_ids_[static_cast<unsigned char>(piece[i])]; };
    bool all_bytes = options_.byte_fallback;
    for (size_t i = begin; i < at; ++i) all_bytes = all_bytes && byte_id(i) >= 0;
    if (all_bytes) {
      for (size_t i = begin; i < at; ++i) ids.push_back(byte_id(i));
    } else if (options_.unk) {
      if (pending_unk > 0 && !options_.fuse_unk) flush();
      pending_unk = 1;
    }
  }
  flush();
}

void Bpe::merge(std::vector<int32_t>& ids) const {
  // A linked list over the symbols and a queue of possible merges: the lowest rank first, then the leftmost.
  // An entry is stale when its pair no longer stands there, which shows when the pair would give another id.
  if (ids.size() < 2) return;
  struct Candidate {
    int32_t rank, at, id;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  struct Symbol {
    int32_t id, previous, next;
  };
  thread_local std::vector<Symbol> symbols;
  thread_local std::vector<Candidate> queue;  // a heap
  symbols.clear();
  queue.clear();
  const auto n = static_cast<int32_t>(ids.size());
  for (int32_t i = 0; i < n; ++i) symbols.push_back({ids[i], i - 1, i + 1 < n ? i + 1 : -1});
  const auto push = [&](int32_t at) {
    const Symbol& s = symbols[at];
    if (const auto* m = merges_.find(s.id, symbols[s.next].id)) {
      queue.push_back({m->rank, at, m->id});
      std::push_heap(queue.begin(), queue.end(), std::greater<>());
    }
  };
  for (int32_t i = 0; i + 1 < n; ++i) push(i);
  constexpr int32_t kGone = -1;
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const Candidate top = queue.back();
    queue.pop_back();
    Symbol& s = symbols[top.at];
    if (s.id == kGone || s.next < 0) continue;
    Symbol& right = symbols[s.next];
    const auto* m = merges_.find(s.id, right.id);
    if (!m || m->id != top.id) continue;
    s.id = top.id;
    s.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = top.at;
    right.id = kGone;
    if (s.previous >= 0) push(s.previous);
    if (s.next >= 0) push(top.at);
  }
  ids.clear();
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace gantrain
