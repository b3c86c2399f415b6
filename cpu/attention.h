// What the two ways to do attention share.
#pragma once

#include <algorithm>
#include <vector>

#include "core/ops/attention.h"
#include "cpu/block_product.h"
#include "cpu/parallel.h"

namespace gantrain {

inline int64_t span_keys(const AttentionPlan& plan, const AttentionSegment& s) {
  int64_t keys = 0;
  for (int32_t i = 0; i < s.span_count; ++i) keys += plan.spans[static_cast<size_t>(s.span_begin + i)].count;
  return keys;
}

struct QueryTask {
  int32_t segment;
  int32_t begin, count;  // queries of the segment
};
// All queries of a plan, at most `block` a task.
inline std::vector<QueryTask> query_tasks(const AttentionPlan& plan, int64_t block) {
  std::vector<QueryTask> tasks;
  for (size_t s = 0; s < plan.segments.size(); ++s) {
    const int32_t count = plan.segments[s].q_count;
    for (int32_t q = 0; q < count; q += static_cast<int32_t>(block))
      tasks.push_back({static_cast<int32_t>(s), q, std::min(static_cast<int32_t>(block), count - q)});
  }
  return tasks;
}

// The keys of a segment in one order: its spans one after the other, then its own causal rows. Writes the
// rows of keys [begin, begin + count).
inline void key_rows(const AttentionPlan& plan, const AttentionSegment& s, int64_t begin, int64_t count,
                     int64_t* rows) {
  int64_t at = 0, done = 0;
  const auto take = [&](int64_t first, int64_t length) {
    while (done < count && begin + done < at + length) rows[done] = first + begin + done - at, ++done;
    at += length;
  };
  for (int32_t i = 0; i < s.span_count && done < count; ++i) {
    const KvSpan& span = plan.spans[static_cast<size_t>(s.span_begin + i)];
    take(span.begin, span.count);
  }
  if (s.kv_begin >= 0) take(s.kv_begin, s.q_count);
}

struct Sizes {
  int64_t n, h, m, k, d, group, dp;  // dp: d rounded up to whole vectors
};
template <typename Args>
Sizes sizes(const Args& a) {
  Sizes z{a.q.dim(0), a.q.dim(1), a.k.dim(0), a.k.dim(1), a.q.dim(2), 0, 0};
  z.group = z.h / z.k;
  z.dp = round_up_lanes(z.d);
  return z;
}

// Where the gradients of a row's heads go: to tensors of their own, or side by side into dy, but for those of
// the `front` key rows before dy's.
template <typename T>
class GradientRows {
 public:
  GradientRows(const AttentionBackward& a, const Sizes& z)
      : front_(a.dy.empty() ? z.m : z.m - z.n), q_stride_(z.h * z.d), front_stride_(z.k * z.d) {
    if (front_ > 0) front_k_ = a.dk.data<T>(), front_v_ = a.dv.data<T>();
    if (a.dy.empty()) {
      q_ = a.dq.data<T>();
    } else {
      q_ = a.dy.data<T>();
      q_stride_ = (z.h + 2 * z.k) * z.d;
      k_ = q_ + z.h * z.d;
      v_ = k_ + z.k * z.d;
    }
  }
  T* q(int64_t row) const { return q_ + row * q_stride_; }
  T* k(int64_t row) const {
    return row < front_ ? front_k_ + row * front_stride_ : k_ + (row - front_) * q_stride_;
  }
  T* v(int64_t row) const {
    return row < front_ ? front_v_ + row * front_stride_ : v_ + (row - front_) * q_stride_;
  }

 private:
  int64_t front_, q_stride_, front_stride_;
  T *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *front_k_ = nullptr, *front_v_ = nullptr;
};

// How many keys of the block [k0, k0 + count) query j of the segment sees: they are the first ones.
inline int64_t visible(int64_t spans, bool causal, int64_t j, int64_t k0, int64_t count) {
  return std::clamp<int64_t>(spans + (causal ? j + 1 : 0) - k0, 0, count);
}

// Backward on matrix tiles (cpu/tiles.h), of gradients in bf16, where the processor has them.
bool attention_fits_tiles(const AttentionBackward& a);
int64_t attention_tiles_scratch(const AttentionBackward& a);
void attention_backward_on_tiles(ThreadPool& pool, const AttentionBackward& a);

}  // namespace gantrain
