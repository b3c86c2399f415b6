// Comparators. They accept on `err <= limit` and on nothing else, so that a NaN never passes; size and
// finiteness come first; the worst element and its share of the limit are printed even on success.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace gantrain::test {

inline constexpr double kUnitF32 = 0x1p-24;  // unit roundoff: half the distance from 1 to the next float
inline constexpr double kUnitBF16 = 0x1p-8;
inline constexpr double kUnitF16 = 0x1p-11;

// The bound of a sum of n terms kept in f32 and stored with unit roundoff u_store:
//   c * (u_store + n * u_f32) * sum |terms|        (Higham, Accuracy and Stability, section 3.1)
std::vector<double> rounding_limits(double c, double u_store, double n,
                                    const std::vector<double>& magnitudes);

// Element by element: |got - want| <= limit. `what` names the tensor in the printed line.
testing::AssertionResult within(const std::string& what, const std::vector<double>& got,
                                const std::vector<double>& want, const std::vector<double>& limits);
testing::AssertionResult within(const std::string& what, const std::vector<float>& got,
                                const std::vector<double>& want, const std::vector<double>& limits);
testing::AssertionResult within(const std::string& what, const std::vector<float>& got,
                                const std::vector<double>& want, double limit);
testing::AssertionResult within(const std::string& what, const std::vector<double>& got,
                                const std::vector<double>& want, double limit);

// Another backend against the plain one: max err <= 2 * max err(baseline) + 2 * u_store * max |want|.
testing::AssertionResult within_baseline(const std::string& what, const std::vector<float>& got,
                                         const std::vector<float>& baseline, const std::vector<double>& want,
                                         double u_store);

// Rounding leaves no drift: over at least 1,000 values, the sum of the errors in the direction of `want` is
// at most u_store / 4 of the sum of |want|. Nearest rounding leaves about 0.4 u / sqrt(n), rounding toward
// zero 0.7 u (half of a last place each, over values spread between two powers of two). True for fewer
// values, and for u_store 0.
testing::AssertionResult unbiased(const std::string& what, const std::vector<float>& got,
                                  const std::vector<double>& want, double u_store);

// The same bits, NaN payloads included. `a` and `b` are of equal size in bytes.
testing::AssertionResult bitwise_equal(const std::string& what, const std::vector<float>& a,
                                       const std::vector<float>& b);

}  // namespace gantrain::test
