#include "tests/support/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>

namespace gantrain::test {
namespace {

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

std::vector<double> widen(const std::vector<float>& v) { return {v.begin(), v.end()}; }

}  // namespace

std::vector<double> rounding_limits(double c, double u_store, double n,
                                    const std::vector<double>& magnitudes) {
  std::vector<double> limits(magnitudes.size());
  for (size_t i = 0; i < limits.size(); ++i) limits[i] = c * (u_store + n * kUnitF32) * magnitudes[i];
  return limits;
}

AssertionResult within(const std::string& what, const std::vector<double>& got,
                       const std::vector<double>& want, const std::vector<double>& limits) {
  if (got.size() != want.size() || limits.size() != want.size())
    return AssertionFailure() << fmt::format("{}: {} values and {} limits for {} expected", what, got.size(),
                                             limits.size(), want.size());
  size_t worst = 0, rejected = 0;
  double worst_share = -1.0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i]) || !std::isfinite(want[i]) || !std::isfinite(limits[i]))
      return AssertionFailure() << fmt::format("{}: not finite at {}: got {}, expected {}, limit {}", what, i,
                                               got[i], want[i], limits[i]);
    const double err = std::abs(got[i] - want[i]);
    const bool accepted = err <= limits[i];
    if (!accepted) ++rejected;
    const double share = err == 0.0 ? 0.0 : limits[i] > 0.0 ? err / limits[i] : HUGE_VAL;
    if (share > worst_share) {
      worst_share = share;
      worst = i;
    }
  }
  if (got.empty()) return AssertionFailure() << what << ": nothing to compare";
  const std::string line = fmt::format(
      "{}: worst at {} of {}: got {:.9g}, expected {:.9g}, error {:.3g} is {:.3g} of the limit {:.3g}", what,
      worst, got.size(), got[worst], want[worst], std::abs(got[worst] - want[worst]), worst_share,
      limits[worst]);
  if (rejected > 0) return AssertionFailure() << fmt::format("{} ({} over their limits)", line, rejected);
  std::printf("[  limit   ] %s\n", line.c_str());
  return AssertionSuccess();
}

AssertionResult within(const std::string& what, const std::vector<float>& got,
                       const std::vector<double>& want, const std::vector<double>& limits) {
  return within(what, widen(got), want, limits);
}

AssertionResult within(const std::string& what, const std::vector<float>& got,
                       const std::vector<double>& want, double limit) {
  return within(what, widen(got), want, std::vector<double>(want.size(), limit));
}

AssertionResult within(const std::string& what, const std::vector<double>& got,
                       const std::vector<double>& want, double limit) {
  return within(what, got, want, std::vector<double>(want.size(), limit));
}

AssertionResult within_baseline(const std::string& what, const std::vector<float>& got,
                                const std::vector<float>& baseline, const std::vector<double>& want,
                                double u_store) {
  if (baseline.size() != want.size())
    return AssertionFailure() << fmt::format("{}: baseline has {} values for {} expected", what,
                                             baseline.size(), want.size());
  double baseline_error = 0.0, largest = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(baseline[i]))
      return AssertionFailure() << what << ": the baseline is not finite at " << i;
    baseline_error = std::max(baseline_error, std::abs(baseline[i] - want[i]));
    largest = std::max(largest, std::abs(want[i]));
  }
  return within(what, got, want, 2.0 * baseline_error + 2.0 * u_store * largest);
}

AssertionResult unbiased(const std::string& what, const std::vector<float>& got,
                         const std::vector<double>& want, double u_store) {
  if (got.size() != want.size())
    return AssertionFailure() << fmt::format("{}: {} values for {} expected", what, got.size(), want.size());
  if (want.size() < 1000 || u_store == 0) return AssertionSuccess();
  double drift = 0.0, size = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    drift += want[i] < 0 ? want[i] - got[i] : got[i] - want[i];
    size += std::abs(want[i]);
  }
  if (std::abs(drift) <= u_store / 4 * size) return AssertionSuccess();
  return AssertionFailure() << fmt::format(
             "{}: the errors of {} values drift by {:.3g} of a unit roundoff: not rounded to nearest", what,
             want.size(), drift / size / u_store);
}

AssertionResult bitwise_equal(const std::string& what, const std::vector<float>& a,
                              const std::vector<float>& b) {
  if (a.size() != b.size())
    return AssertionFailure() << fmt::format("{}: {} values against {}", what, a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]))
      return AssertionFailure() << fmt::format("{}: bits differ at {} of {}: {:.9g} against {:.9g}", what, i,
                                               a.size(), a[i], b[i]);
  return AssertionSuccess();
}

}  // namespace gantrain::test
