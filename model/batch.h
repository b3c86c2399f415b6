// Packed batches: rows of many sequences side by side, no padding anywhere.
//
// A batch is a forest of segments. A segment sees all rows of its ancestors and its own rows causally; its
// positions go on where its parent's end. One shared soft prompt is a root with every input as its child;
// several answers to one input are children of that input. Every row is computed once, however many segments
// see it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "core/ops/attention.h"

namespace gantrain {

// Token id of row `r` of the soft-prompt tensor (EmbedForward: negative tokens are prompt rows).
constexpr int32_t prompt_token(int64_t r) { return static_cast<int32_t>(-1 - r); }

class PackedBatch {
 public:
  // prefix: keys and values that stand in front of the batch's own, which no row of it makes: row i's own key
  // is row prefix + i. With kAll (PrefixAdapter) every segment sees them, and positions begin behind them;
  // with kNamed (CachedContexts) those see them that name them (add_cached).
  enum class Sees { kAll, kNamed };
  explicit PackedBatch(int32_t prefix = 0, Sees sees = Sees::kAll) : prefix_(prefix), sees_(sees) {}

  struct Segment {
    int32_t row_begin = 0, rows = 0;
    int32_t parent = -1;         // segment index, or -1
    int32_t position_begin = 0;  // position of the first row
    KvSpan cached = {};          // a root without rows: what its children see of the keys in front
  };

  // Appends a segment after `parent` (-1: a root). Tokens may mix vocabulary ids and prompt_token(r). Empty
  // segments are allowed and see what their parent sees. Returns the segment's index.
  int32_t add(int32_t parent, std::span<const int32_t> tokens);
  // A root segment without rows: a context whose keys are these of those in front. Nothing can be predicted
  // from it alone (last_row is -1).
  int32_t add_cached(KvSpan front);
  // A root segment of `count` soft-prompt rows starting at row `first` of the prompt tensor.
  int32_t add_prompt(int64_t first, int64_t count);

  int32_t prefix() const { return prefix_; }
  int64_t rows() const { return static_cast<int64_t>(tokens_.size()); }
  const Segment& segment(int32_t i) const { return segments_[static_cast<size_t>(i)]; }
  int32_t segments() const { return static_cast<int32_t>(segments_.size()); }
  // Row whose output predicts the first token after segment i's end (its last row, or its nearest non-empty
  // ancestor's).
  int32_t last_row(int32_t i) const;
  // Position of the first row after segment i.
  int32_t end_position(int32_t i) const;
  // Keys of the prefix, the ancestors and segment i's own, as spans: what a continuation of i sees.
  std::vector<KvSpan> visible_rows(int32_t i) const;

  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<int32_t>& positions() const { return positions_; }
  const AttentionPlan& plan() const { return plan_; }

 private:
  int32_t prefix_;
  Sees sees_;
  std::vector<int32_t> tokens_, positions_;
  std::vector<Segment> segments_;
  AttentionPlan plan_;
};

// An int32 / f32 / i64 vector on the device.
OwnedTensor upload(Device&, std::span<const int32_t>);
OwnedTensor upload(Device&, std::span<const float>);
OwnedTensor upload(Device&, std::span<const int64_t>);
std::vector<float> download(Device&, ConstTensor);

}  // namespace gantrain
