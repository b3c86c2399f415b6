#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>

namespace gantrain {
namespace {

// Every half-precision bit pattern survives the trip through float, NaNs staying NaN.
TEST(F16, EveryValueRoundTrips) {
  for (uint32_t i = 0; i <= 0xffffu; ++i) {
    f16 h;
    h.bits = static_cast<uint16_t>(i);
    const float f = static_cast<float>(h);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(f16(f))));
    } else {
      EXPECT_EQ(f16(f).bits, h.bits) << i;
    }
  }
}

// Rounding is to nearest even, against the compiler's own _Float16.
TEST(F16, RoundsToNearestEven) {
  for (uint64_t i = 0; i < (1ull << 32); i += 977) {
    const float f = std::bit_cast<float>(static_cast<uint32_t>(i));
    if (std::isnan(f)) continue;
    ASSERT_EQ(f16(f).bits, std::bit_cast<uint16_t>(static_cast<_Float16>(f))) << f;
  }
}

TEST(BF16, EveryValueRoundTripsAndTiesGoToEven) {
  for (uint32_t i = 0; i <= 0xffffu; ++i) {
    bf16 b;
    b.bits = static_cast<uint16_t>(i);
    const float f = static_cast<float>(b);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(bf16(f))));
    } else {
      EXPECT_EQ(bf16(f).bits, b.bits) << i;
    }
  }
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);
}

}  // namespace
}  // namespace gantrain
