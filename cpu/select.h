// The most likely entries of a row, exactly and in linear time: a histogram over the distance to the maximum
// finds the bin where the limit falls, and only that bin is sorted.
#pragma once

#include <cstdint>

namespace gantrain {

// Entry j is kept if x[j] > value, or x[j] == value and j <= index: the order is by value, ties by lower
// index.
struct Cut {
  float value = 0;
  int64_t index = 0;
  bool keeps(float x, int64_t j) const { return x > value || (x == value && j <= index); }
};

// The cut that keeps the `count` largest of x (n entries, 0 < count).
Cut cut_top_k(const float* x, int64_t n, int64_t count);
// The cut that keeps the smallest leading set, in the same order, whose weights add up to `target` or more;
// only entries that `among` keeps take part. weight[j] >= 0 belongs to x[j].
Cut cut_top_p(const float* x, const float* weight, int64_t n, double target, const Cut& among);
Cut keep_all();

}  // namespace gantrain
