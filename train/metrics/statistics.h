// Summaries of numbers: quantiles, and standard errors by the bootstrap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace gantrain::metrics {

// The arithmetic mean; 0 of nothing.
double mean(std::span<const double> values);

// The q-quantile, 0 <= q <= 1, by linear interpolation between order statistics (type 7 of Hyndman and Fan
// 1996, numpy's default). At least one value, all of them finite (Error otherwise).
double quantile(std::span<const double> values, double q);
inline double median(std::span<const double> values) { return quantile(values, 0.5); }

// The five numbers reported over seeds and over lengths.
struct Summary {
  double mean = 0, minimum = 0, lower_quartile = 0, median = 0, upper_quartile = 0, maximum = 0;
  size_t count = 0;
  double interquartile_range() const { return upper_quartile - lower_quartile; }
};

// All zeros for no values; otherwise as above.
Summary summarize(std::span<const double> values);

// Bootstrap (Efron 1979): the standard deviation (n - 1 below) over `resamples` draws of n items out of n
// with replacement of statistic(indices of the items drawn). The draws are a function of `seed` and n alone.
// Fewer than two items or resamples: 0.
double bootstrap_standard_error(size_t n, const std::function<double(std::span<const size_t>)>& statistic,
                                int resamples = 1000, uint64_t seed = 1);

// The same for the mean of `values`.
double bootstrap_standard_error(std::span<const double> values, int resamples = 1000, uint64_t seed = 1);

}  // namespace gantrain::metrics
