#include "model/batch_ends.h"

#include <algorithm>

namespace gantrain {
namespace {

std::vector<uint8_t> marked(std::span<const int32_t> rows, int64_t n) {
  std::vector<uint8_t> marks(static_cast<size_t>(n));
  for (const int32_t row : rows) {
    GT_CHECK(row >= 0 && row < n, "row {} of a batch of {}", row, n);
    marks[static_cast<size_t>(row)] = 1;
  }
  return marks;
}

// f(begin, count) for each run of marked rows in [begin, begin + count).
template <typename F>
void each_run(const std::vector<uint8_t>& marks, int32_t begin, int32_t count, F f) {
  const auto is_marked = [&](int32_t row) { return marks[static_cast<size_t>(row)] != 0; };
  for (int32_t row = begin; row < begin + count;) {
    int32_t end = row;
    while (end < begin + count && is_marked(end)) ++end;
    if (end > row) f(row, end - row);
    row = end + 1;
  }
}

// Ascending and distinct; empty where that is all rows.
std::vector<int32_t> chosen(std::vector<int32_t> rows, int64_t n) {
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  if (std::ssize(rows) == n) rows.clear();
  return rows;
}

}  // namespace

int32_t BatchEnds::place(const std::vector<int32_t>& among, int32_t row) {
  if (among.empty()) return row;
  const auto at = std::lower_bound(among.begin(), among.end(), row);
  GT_CHECK(at != among.end() && *at == row, "row {} is not among those that forward was told of", row);
  return static_cast<int32_t>(at - among.begin());
}

std::vector<int32_t> BatchEnds::places_read(std::span<const int32_t> rows) const {
  std::vector<int32_t> places;
  for (const int32_t row : rows) places.push_back(place_read(row));
  return places;
}

BatchEnds ends_of(const PackedBatch& batch, const BatchRows& rows, int layers, bool backward,
                  const Adapters& adapters) {
  const int64_t n = batch.rows();
  BatchEnds ends;
  if (layers == 0) return ends;
  if (adapters.dropout == 0.0f) ends.read = chosen(rows.read, n);
  if (!ends.read.empty()) ends.read_plan = attention_of_queries(batch.plan(), ends.read, n);
  if (!backward || adapters) return ends;
  std::vector<int32_t> wanted = rows.gradient;
  if (wanted.empty())
    for (int32_t i = 0; i < n; ++i)
      if (batch.tokens()[static_cast<size_t>(i)] < 0) wanted.push_back(i);
  ends.wanted = chosen(std::move(wanted), n);
  if (!ends.wanted.empty())
    ends.wanted_plan = attention_of_keys(layers == 1 && !ends.read.empty() ? ends.read_plan : batch.plan(),
                                         ends.wanted, n, batch.prefix());
  return ends;
}

AttentionPlan attention_of_queries(const AttentionPlan& whole, std::span<const int32_t> rows, int64_t n) {
  const std::vector<uint8_t> marks = marked(rows, n);
  AttentionPlan plan;
  for (const AttentionSegment& s : whole.segments)
    each_run(marks, s.q_begin, s.q_count, [&](int32_t begin, int32_t count) {
      const int32_t before = begin - s.q_begin;
      AttentionSegment run{.q_begin = begin,
                           .q_count = count,
                           .span_begin = static_cast<int32_t>(plan.spans.size()),
                           .span_count = s.span_count,
                           .kv_begin = s.kv_begin};
      const auto first = whole.spans.begin() + s.span_begin;
      plan.spans.insert(plan.spans.end(), first, first + s.span_count);
      if (s.kv_begin >= 0) {
        run.kv_begin += before;
        if (before > 0) {
          plan.spans.push_back({s.kv_begin, before});
          ++run.span_count;
        }
      }
      plan.segments.push_back(run);
    });
  return plan;
}

AttentionPlan attention_of_keys(const AttentionPlan& whole, std::span<const int32_t> rows, int64_t n,
                                int32_t front) {
  const std::vector<uint8_t> marks = marked(rows, n);
  AttentionPlan plan;
  for (const AttentionSegment& s : whole.segments) {
    GT_CHECK(s.kv_begin == front + s.q_begin, "queries from {} with keys from {}: no self-attention",
             s.q_begin, s.kv_begin);
    bool holds = false;
    each_run(marks, s.q_begin, s.q_count, [&](int32_t, int32_t) { holds = true; });
    AttentionSegment kept = s;
    kept.span_begin = static_cast<int32_t>(plan.spans.size());
    if (!holds) kept.kv_begin = -1;
    for (int32_t i = 0; i < s.span_count; ++i) {
      const KvSpan& span = whole.spans[static_cast<size_t>(s.span_begin + i)];
      if (holds)
        plan.spans.push_back(span);
      else if (span.begin >= front)
        each_run(marks, span.begin - front, span.count, [&](int32_t begin, int32_t count) {
          plan.spans.push_back({front + begin, count});
        });
    }
    kept.span_count = static_cast<int32_t>(plan.spans.size()) - kept.span_begin;
    if (holds || kept.span_count > 0) plan.segments.push_back(kept);
  }
  return plan;
}

}  // namespace gantrain
