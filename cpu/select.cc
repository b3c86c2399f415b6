#include "cpu/select.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/vec_math.h"

namespace gantrain {
namespace {

constexpr int kBins = 2048;
constexpr float kBinsPerNat = 64.0f;

// Bin 0 holds the largest values; monotone in x because every step is.
int bin_of(float max, float x) {
  const float distance = (max - x) * kBinsPerNat;
  return distance < static_cast<float>(kBins - 1) ? static_cast<int>(distance) : kBins - 1;
}

// Walks the bins until `target` is reached, then the entries of that bin in order.
template <typename Weight>
Cut cut(const float* x, int64_t n, double target, const Cut& among, Weight weight) {
  const float max = row_max(x, n);
  std::array<double, kBins> mass{};
  for (int64_t j = 0; j < n; ++j)
    if (among.keeps(x[j], j)) mass[static_cast<size_t>(bin_of(max, x[j]))] += weight(j);
  double before = 0;
  int bin = 0;
  while (bin < kBins - 1 && before + mass[static_cast<size_t>(bin)] < target)
    before += mass[static_cast<size_t>(bin++)];
  thread_local std::vector<int64_t> entries;
  entries.clear();
  for (int64_t j = 0; j < n; ++j)
    if (among.keeps(x[j], j) && bin_of(max, x[j]) == bin) entries.push_back(j);
  std::sort(entries.begin(), entries.end(),
            [&](int64_t a, int64_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); });
  for (const int64_t j : entries) {
    before += weight(j);
    if (before >= target) return {x[j], j};
  }
  // Rounding left the sum just short: everything in the bin, and nothing lies below it with weight.
  return entries.empty() ? among : Cut{x[entries.back()], entries.back()};
}

}  // namespace

Cut keep_all() { return {-std::numeric_limits<float>::infinity(), std::numeric_limits<int64_t>::max()}; }

Cut cut_top_k(const float* x, int64_t n, int64_t count) {
  if (count >= n) return keep_all();
  return cut(x, n, static_cast<double>(count), keep_all(), [](int64_t) { return 1.0; });
}

Cut cut_top_p(const float* x, const float* weight, int64_t n, double target, const Cut& among) {
  return cut(x, n, target, among, [&](int64_t j) { return static_cast<double>(weight[j]); });
}

}  // namespace gantrain
