#include "train/metrics/statistics.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"
#include "core/rng.h"

namespace gantrain::metrics {
namespace {

constexpr uint64_t kBootstrapPurpose = 0x626f6f74;  // "boot": keeps these draws apart from a run's others

std::vector<double> sorted_copy(std::span<const double> values) {
  for (double value : values)
    GT_CHECK(std::isfinite(value), "a quantile of values of which one is {}", value);
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

double sorted_quantile(std::span<const double> sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(place);
  if (below + 1 >= sorted.size()) return sorted.back();
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[below + 1] - sorted[below]);
}

}  // namespace

double mean(std::span<const double> values) {
  double sum = 0;
  for (double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double quantile(std::span<const double> values, double q) {
  GT_CHECK(!values.empty(), "a quantile of no values");
  GT_CHECK(q >= 0 && q <= 1, "quantile {}: expected 0 to 1", q);
  return sorted_quantile(sorted_copy(values), q);
}

Summary summarize(std::span<const double> values) {
  if (values.empty()) return {};
  const std::vector<double> sorted = sorted_copy(values);
  return {.mean = mean(values),
          .minimum = sorted.front(),
          .lower_quartile = sorted_quantile(sorted, 0.25),
          .median = sorted_quantile(sorted, 0.5),
          .upper_quartile = sorted_quantile(sorted, 0.75),
          .maximum = sorted.back(),
          .count = sorted.size()};
}

double bootstrap_standard_error(size_t n, const std::function<double(std::span<const size_t>)>& statistic,
                                int resamples, uint64_t seed) {
  if (n < 2 || resamples < 2) return 0;
  const Philox random{derive_key(seed, kBootstrapPurpose)};
  std::vector<size_t> drawn(n);
  std::vector<double> results(static_cast<size_t>(resamples));
  for (size_t r = 0; r < results.size(); ++r) {
    for (size_t i = 0; i < n; ++i) {
      // 64 random bits scaled to 0..n-1; the bias, n / 2^64, is far below any error of the bootstrap itself.
      const auto words = random(r, i);
      const uint64_t bits = uint64_t{words[0]} << 32 | words[1];
      drawn[i] = static_cast<size_t>((static_cast<unsigned __int128>(bits) * n) >> 64);
    }
    results[r] = statistic(drawn);
  }
  const double center = mean(results);
  double squares = 0;
  for (double result : results) squares += (result - center) * (result - center);
  return std::sqrt(squares / static_cast<double>(results.size() - 1));
}

double bootstrap_standard_error(std::span<const double> values, int resamples, uint64_t seed) {
  return bootstrap_standard_error(
      values.size(),
      [&](std::span<const size_t> drawn) {
        double sum = 0;
        for (size_t i : drawn) sum += values[i];
        return sum / static_cast<double>(drawn.size());
      },
      resamples, seed);
}

}  // namespace gantrain::metrics
