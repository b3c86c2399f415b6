// An attention plan in device memory, flattened into lists for kernels: core/ops/attention.h.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "core/ops/attention.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// Blocks of work, in int32 words; kernels read these structures as they lie.
struct QueryTask {
  int32_t segment, begin, count;  // queries of the segment
  int32_t span_keys;              // keys in the segment's spans
  int32_t keys;                   // where its keys' rows begin in DevicePlan::keys; -1: they are not listed
};
// The part of one segment's keys that lies in one block of key rows.
struct KeyPart {
  int32_t segment, row, count;  // key rows
  int32_t key;                  // place of `row` among the segment's keys
};
// Queries that see keys of one block, cut into tiles of PlanShape::run_queries from `query` on. Row r of the
// block is seen by query `query + j` if low <= r < high and r + shift <= j; where `masked` is 0, every row is
// seen by all.
struct alignas(16) KeyRun {
  int32_t query, queries;
  int32_t head, width;  // heads [head, head + width) of those that share a key head
  int32_t shift, low, high, masked;
};
// Keys [first, first + PlanShape::piece_keys) of a task of few queries. Its partial result goes to `slot`;
// -1: the task has this one piece, and its result is final.
struct KeyPiece {
  int32_t task, first, slot;
};
struct PieceMerge {
  int32_t task, slot, count;  // slots [slot, slot + count) of the task
};

struct DevicePlan {
  const AttentionSegment* segments = nullptr;
  const KvSpan* spans = nullptr;
  const QueryTask* tasks = nullptr;
  const int32_t* keys = nullptr;  // rows of keys; each list a multiple of kListed long, its last row repeated
  const int32_t* part_offsets = nullptr;  // (key_blocks + 1) into parts
  const KeyPart* parts = nullptr;
  const int32_t* run_offsets = nullptr;  // (key_blocks + 1) into runs
  const KeyRun* runs = nullptr;
  const KeyPiece* pieces = nullptr;
  const PieceMerge* merges = nullptr;
  int32_t task_count = 0, key_blocks = 0, piece_count = 0, merge_count = 0;
  int32_t few_begin = 0;        // tasks from here on are segments of at most PlanShape::few_queries queries
  bool covers_queries = false;  // every query row belongs to a segment
  bool operator==(const DevicePlan&) const = default;
};

// The longest tile of keys. Each list is a multiple of it long, its last row repeated; reading up to two
// tiles past a list's end is valid.
constexpr int32_t kListed = 64;

// How kernels want a plan cut.
struct PlanShape {
  int32_t queries_per_task;
  int32_t keys_per_block;  // 0: no blocks of keys (forward)
  int32_t few_queries;
  int64_t query_rows, key_rows;
  int32_t piece_keys = 0;  // of segments of few queries; 0: no pieces
  // Whether rows of keys are listed: not at all, for segments of more than few queries, for all.
  enum class Lists : uint8_t { kNone, kMany, kAll } lists = Lists::kNone;
  int32_t run_queries = 0;           // queries of a tile of key backward; 0: no runs, but parts
  int32_t run_heads = 0, group = 0;  // heads a tile takes of the `group` that share a key head
  bool operator==(const PlanShape&) const = default;
};

// What decoding leaves in scratch: slots of partial results, and the most queries of a task that is in
// pieces.
struct PartialResults {
  int64_t slots = 0;
  int32_t queries = 0;
};
PartialResults partial_results(const AttentionPlan& plan, const PlanShape& shape);

// Device copies of the plans used last. A plan is found by its content, so that another plan at a former
// one's address is never mistaken for it. Layers of one pass ask for the same plan again and again: nothing
// is allocated or copied then.
class PlanCache {
 public:
  explicit PlanCache(const Context& context) : context_(context) {}
  ~PlanCache();
  PlanCache(const PlanCache&) = delete;
  PlanCache& operator=(const PlanCache&) = delete;
  const DevicePlan& get(const AttentionPlan& plan, const PlanShape& shape);

  // Plans that change in place (AttentionPlan::id): Ops::open_plan and its siblings.
  uint64_t open() { return ++last_id_; }
  uint64_t update(const AttentionPlan& plan);
  void close(uint64_t id);
  void forget();  // all of them

 private:
  struct Entry {
    AttentionPlan plan;
    PlanShape shape;
    void* memory = nullptr;
    size_t words = 0;  // of the memory
    DevicePlan device;
  };
  // Puts the plan, cut to the entry's shape, into the entry's memory; more of it where it does not suffice.
  void fill(Entry& entry);

  const Context& context_;
  std::list<Entry> entries_;  // found by content; the one used last comes first
  std::list<Entry> open_;     // found by id
  uint64_t last_id_ = 0, revision_ = 0;
};

}  // namespace gantrain::cuda
