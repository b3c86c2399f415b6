// An attention plan in device memory, flattened into tasks for kernels: core/ops/attention.h.
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
};
// The part of one segment's keys that lies in one block of key rows.
struct KeyPart {
  int32_t segment, row, count;  // key rows
  int32_t key;                  // place of `row` among the segment's keys
};

struct DevicePlan {
  const AttentionSegment* segments = nullptr;
  const KvSpan* spans = nullptr;
  const QueryTask* tasks = nullptr;
  const int32_t* part_offsets = nullptr;  // (key_blocks + 1) into parts
  const KeyPart* parts = nullptr;
  int32_t task_count = 0, key_blocks = 0;
  int32_t few_begin = 0;        // tasks from here on have at most PlanShape::few_queries queries
  bool covers_queries = false;  // every query row belongs to a segment
  bool operator==(const DevicePlan&) const = default;
};

// How a kernel wants a plan cut.
struct PlanShape {
  int32_t queries_per_task, keys_per_block, few_queries;
  int64_t query_rows, key_rows;
  bool operator==(const PlanShape&) const = default;
};

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
