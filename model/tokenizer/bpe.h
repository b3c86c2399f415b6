// Byte-pair encoding by merge ranks, as the BPE model of a tokenizer.json does it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace gantrain {

// Lets an unordered_map of strings be asked with a string_view.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using StringIds = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// Pairs of ids to (rank, merged id): open addressing, a power of two of slots.
class MergeTable {
 public:
  struct Merge {
    int32_t rank = 0, id = 0;
  };
  explicit MergeTable(size_t count = 0);
  // The last of two entries for one pair wins. At most `count` pairs.
  void set(int32_t left, int32_t right, Merge merge);
  const Merge* find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = kFree;
    Merge merge;
  };
  static constexpr uint64_t kFree = ~uint64_t{0};
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t slot(uint64_t key) const;
  std::vector<Slot> slots_;
};

class Bpe {
 public:
  struct Options {
    std::optional<int32_t> unk;  // for characters that are not in the vocabulary; without it they vanish
    bool fuse_unk = false;       // one unk for a run of them
    bool byte_fallback = false;  // <0xNN> tokens for them, where all are in the vocabulary
    bool ignore_merges = false;  // a piece that is a token as a whole stays whole
  };
  // `vocab` in ids; merges by rank, pairs of tokens. `whole_excluded`: ids that ignore_merges never gives
  // (special tokens: text must not become one). Throws Error naming `where`, the merge, and the token that is
  // missing.
  Bpe(StringIds vocab, const std::vector<std::pair<std::string_view, std::string_view>>& merges,
      Options options, const std::vector<int32_t>& whole_excluded, const std::string& where);

  // Appends the ids of one piece (valid UTF-8). O(n log n) in its length.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;
  const StringIds& vocab() const { return vocab_; }

 private:
  void split(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge(std::vector<int32_t>& ids) const;

  StringIds vocab_;
  Options options_;
  std::vector<bool> whole_excluded_;
  std::vector<int32_t> low_characters_;  // code point below 0x180 -> id or -1
  std::vector<int32_t> byte_ids_;        // byte -> id of <0xNN> or -1
  MergeTable merges_;
};

}  // namespace gantrain
