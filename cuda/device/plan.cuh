// An attention plan as kernels see it: segments of queries, the key rows they see, and tasks over them. The
// layouts are those of core/ops/attention.h and cuda/runtime/plan.h, word for word (checked where kernels are
// launched).
#pragma once

#include <cstdint>

namespace gantrain::cuda {

struct PlanSegment {
  int32_t q_begin, q_count, span_begin, span_count, kv_begin;
};
struct PlanSpan {
  int32_t begin, count;
};
struct PlanTask {
  int32_t segment, begin, count, span_keys, keys;
};
struct PlanPart {
  int32_t segment, row, count, key;
};
struct alignas(16) PlanRun {
  int32_t query, queries, head, width, shift, low, high, masked;
};
struct PlanPiece {
  int32_t task, first, slot;
};
struct PlanMerge {
  int32_t task, slot, count;
};

// Keys of a segment in one order: its spans one after the other, then its own causal rows.
__device__ inline int span_keys(const PlanSegment& s, const PlanSpan* spans) {
  int keys = 0;
  for (int i = 0; i < s.span_count; ++i) keys += spans[s.span_begin + i].count;
  return keys;
}
// The row of the segment's key number `key`, of which its spans hold `spans_total`.
__device__ inline int64_t key_row(const PlanSegment& s, const PlanSpan* spans, int spans_total, int key) {
  if (key >= spans_total) return s.kv_begin + key - spans_total;
  int i = s.span_begin;
  while (key >= spans[i].count) key -= spans[i++].count;
  return spans[i].begin + key;
}

}  // namespace gantrain::cuda
