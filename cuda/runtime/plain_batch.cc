#include "cuda/runtime/cudnn.h"

namespace gantrain::cuda {

bool is_plain_batch(const AttentionPlan& plan, int64_t query_rows, int64_t key_rows) {
  if (plan.segments.empty() || query_rows != key_rows) return false;
  int64_t end = 0;
  for (const AttentionSegment& s : plan.segments) {
    if (s.span_count != 0 || s.kv_begin != s.q_begin || s.q_begin != end || s.q_count == 0) return false;
    end += s.q_count;
  }
  return end == query_rows;
}

}  // namespace gantrain::cuda
