#include "model/batch.h"

#include <algorithm>

namespace gantrain {

int32_t PackedBatch::add(int32_t parent, std::span<const int32_t> tokens) {
  GT_CHECK(parent >= -1 && parent < segments(), "segment {} has no parent {}", segments(), parent);
  GT_CHECK(rows() + static_cast<int64_t>(tokens.size()) < (int64_t{1} << 31),
           "a batch holds less than 2^31 rows");
  Segment s;
  s.row_begin = static_cast<int32_t>(tokens_.size());
  s.rows = static_cast<int32_t>(tokens.size());
  s.parent = parent;
  s.position_begin = parent >= 0 ? end_position(parent) : sees_ == Sees::kAll ? prefix_ : 0;
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  for (int32_t i = 0; i < s.rows; ++i) positions_.push_back(s.position_begin + i);
  if (s.rows > 0) {
    AttentionSegment a;
    a.q_begin = s.row_begin;
    a.kv_begin = prefix_ + s.row_begin;
    a.q_count = s.rows;
    a.span_begin = static_cast<int32_t>(plan_.spans.size());
    const std::vector<KvSpan> seen = visible_rows(parent);
    plan_.spans.insert(plan_.spans.end(), seen.begin(), seen.end());
    a.span_count = static_cast<int32_t>(plan_.spans.size()) - a.span_begin;
    plan_.segments.push_back(a);
  }
  segments_.push_back(s);
  return segments() - 1;
}

int32_t PackedBatch::add_cached(KvSpan front) {
  GT_CHECK(
      sees_ == Sees::kNamed && front.begin >= 0 && front.count > 0 && front.begin + front.count <= prefix_,
      "keys {} to {} of {} in front", front.begin, front.begin + front.count, prefix_);
  Segment s;
  s.row_begin = static_cast<int32_t>(tokens_.size());
  s.cached = front;
  segments_.push_back(s);
  return segments() - 1;
}

int32_t PackedBatch::add_prompt(int64_t first, int64_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = prompt_token(first + i);
  return add(-1, tokens);
}

int32_t PackedBatch::last_row(int32_t i) const {
  for (; i >= 0; i = segment(i).parent)
    if (segment(i).rows > 0) return segment(i).row_begin + segment(i).rows - 1;
  return -1;
}

int32_t PackedBatch::end_position(int32_t i) const {
  const Segment& s = segment(i);
  return s.position_begin + s.rows + s.cached.count;
}

std::vector<KvSpan> PackedBatch::visible_rows(int32_t i) const {
  std::vector<KvSpan> spans;
  for (; i >= 0; i = segment(i).parent) {
    if (segment(i).rows > 0) spans.push_back({prefix_ + segment(i).row_begin, segment(i).rows});
    if (segment(i).cached.count > 0) spans.push_back(segment(i).cached);
  }
  if (prefix_ > 0 && sees_ == Sees::kAll) spans.push_back({0, prefix_});
  std::reverse(spans.begin(), spans.end());
  return spans;
}

namespace {
template <typename T>
OwnedTensor upload_any(Device& device, std::span<const T> values) {
  OwnedTensor t(device, dtype_of<T>::value, {static_cast<int64_t>(values.size())});
  if (!values.empty()) device.copy_in(t, values.data());
  return t;
}
}  // namespace

OwnedTensor upload(Device& device, std::span<const int32_t> values) { return upload_any(device, values); }
OwnedTensor upload(Device& device, std::span<const float> values) { return upload_any(device, values); }
OwnedTensor upload(Device& device, std::span<const int64_t> values) { return upload_any(device, values); }

std::vector<float> download(Device& device, ConstTensor t) {
  GT_CHECK(t.dtype() == DType::kF32, "download wants f32, got {}", dtype_name(t.dtype()));
  std::vector<float> values(static_cast<size_t>(t.count()));
  if (!values.empty()) device.copy_out(values.data(), t);
  return values;
}

}  // namespace gantrain
