#include "core/digest.h"

#include <gtest/gtest.h>

namespace gantrain {
namespace {

uint64_t of(std::string_view bytes) {
  Digest digest;
  digest.add_bytes(bytes);
  return digest.value;
}

// The first three stand among the test vectors of the function's authors; the others were computed outside.
TEST(Digest, IsFnv1a) {
  EXPECT_EQ(of(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(of("a"), 0xaf63dc4c8601ec8cull);
  EXPECT_EQ(of("foobar"), 0x85944171f73967e8ull);
  EXPECT_EQ(of(std::string_view("\0", 1)), 0xaf63bd4c8601b7dfull);
  EXPECT_EQ(of("\xff"), 0xaf64724c8602eb6eull);  // 255, not -1
}

TEST(Digest, AWordIsOneStep) {
  Digest one, two;
  one.add(0x12345678u);
  EXPECT_EQ(one.value, 0xa3b5f56b08296d07ull);
  two.add(0xffffffffu);
  two.add(1);
  EXPECT_EQ(two.value, 0x014f8f294b11ae9dull);
}

}  // namespace
}  // namespace gantrain
