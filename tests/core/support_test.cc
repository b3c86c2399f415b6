// The comparators and the gradient check are themselves checked: what they must reject is rejected.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/compare.h"
#include "tests/support/complex_step.h"
#include "tests/support/fill.h"

namespace gantrain::test {
namespace {

using V = std::vector<double>;
const double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(Compare, AcceptsWithinTheLimitOnly) {
  EXPECT_TRUE(within("equal", V{1.0}, V{1.0}, 0.0));
  EXPECT_TRUE(within("at the limit", V{1.5}, V{1.0}, 0.5));
  EXPECT_FALSE(within("above", V{1.5000001}, V{1.0}, 0.5));
  EXPECT_FALSE(within("second above", V{1.0, 2.0}, V{1.0, 1.0}, std::vector<double>{1.0, 0.5}));
}

TEST(Compare, NeverLetsNanOrInfinityPass) {
  EXPECT_FALSE(within("got NaN", V{kNan}, V{1.0}, 1e30));
  EXPECT_FALSE(within("expected NaN", V{1.0}, V{kNan}, 1e30));
  EXPECT_FALSE(within("both NaN", V{kNan}, V{kNan}, 1e30));
  EXPECT_FALSE(within("limit NaN", V{1.0}, V{1.0}, kNan));
  EXPECT_FALSE(within("infinite limit", V{1.0}, V{2.0}, HUGE_VAL));
  EXPECT_FALSE(within("infinite", V{HUGE_VAL}, V{HUGE_VAL}, 1.0));
}

TEST(Compare, SizesComeFirst) {
  EXPECT_FALSE(within("shorter", V{1.0}, V{1.0, 2.0}, 1.0));
  EXPECT_FALSE(within("limits", V{1.0}, V{1.0}, std::vector<double>{}));
  EXPECT_FALSE(within("nothing", std::vector<double>{}, std::vector<double>{}, 1.0));
  EXPECT_FALSE(bitwise_equal("shorter", {1.0f}, {1.0f, 1.0f}));
}

TEST(Compare, BitwiseTellsZeroesApart) {
  EXPECT_TRUE(bitwise_equal("same", {1.0f, -2.0f}, {1.0f, -2.0f}));
  EXPECT_FALSE(bitwise_equal("signed zero", {0.0f}, {-0.0f}));
  EXPECT_FALSE(bitwise_equal("last place", {1.0f}, {std::nextafter(1.0f, 2.0f)}));
}

TEST(Compare, BaselineSetsTheBound) {
  EXPECT_TRUE(within_baseline("within twice", {1.2f}, {1.1f}, {1.0}, 1e-3));
  EXPECT_FALSE(within_baseline("three times", {1.31f}, {1.1f}, {1.0}, 1e-3));
}

TEST(ComplexStep, IsExactForAKnownGradient) {
  const std::vector<double> x = {0.3, -1.7};
  const auto f = [](const std::vector<Complex>& v) { return std::exp(v[0]) * std::sin(v[1]) + v[0] * v[0]; };
  const auto g = complex_step_gradient(x, f);
  EXPECT_TRUE(
      within("gradient", g, {std::exp(0.3) * std::sin(-1.7) + 0.6, std::exp(0.3) * std::cos(-1.7)}, 1e-15));
  EXPECT_NEAR(complex_step_along(x, {2.0, -1.0}, f), 2.0 * g[0] - g[1], 1e-15);
}

TEST(Fill, StaysInRangeAndLooksNormal) {
  const auto normal = to_double(random_normal(20001, 7, 2.0f));
  double mean = 0.0, square = 0.0;
  for (double x : normal) mean += x / 20001.0, square += x * x / 20001.0;
  EXPECT_NEAR(mean, 0.0, 5.0 * 2.0 / std::sqrt(20001.0));  // five standard errors
  EXPECT_NEAR(square, 4.0, 5.0 * 4.0 * std::sqrt(2.0 / 20001.0));
  bool low = false, high = false;
  for (int32_t i : random_ints(1000, 3, -2, 2)) {
    ASSERT_TRUE(i >= -2 && i <= 2);
    low |= i == -2;
    high |= i == 2;
  }
  EXPECT_TRUE(low && high);
}

}  // namespace
}  // namespace gantrain::test
