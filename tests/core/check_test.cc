#include "core/check.h"

#include <gtest/gtest.h>

#include "core/broken_contracts.h"

namespace gantrain {
namespace {

// The fuzz targets tell a broken contract by this count: words may be caught, changed, or quoted from an
// input.
TEST(Check, BrokenContractsAreCountedWhoeverCatchesThem) {
  const int64_t before = broken_contracts();
  EXPECT_THROW(fail("{}: not ours [check failed: x at y.cc:1]", "file"), Error);
  EXPECT_THROW(fail_usage("no such flag"), Error);
  GT_CHECK(before >= 0, "holds");
  EXPECT_EQ(broken_contracts(), before);
  const auto broken = [] { GT_CHECK(1 + 1 == 3, "expected {}", 3); };
  try {
    broken();
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "expected 3 [check failed: 1 + 1 == 3 at tests/core/check_test.cc:18]");
  }
  EXPECT_EQ(broken_contracts(), before + 1);
}

}  // namespace
}  // namespace gantrain
