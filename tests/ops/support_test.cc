// Guarded memory must catch what it is there for.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/devices.h"

namespace gantrain::test {
namespace {

class Guarded : public OpsTest {};
GT_ALL_DEVICES(Guarded);

// One byte written through the device at an offset from the tensor's start.
void poke(Device& device, ConstTensor t, int64_t offset) {
  auto* at = static_cast<std::byte*>(const_cast<void*>(t.raw())) + offset;
  const std::byte value{0x11};
  device.copy_in(Tensor(at, DType::kU8, {1}, device.kind()), &value);
}

TEST_P(Guarded, CatchesWritesAroundATensorAndIntoAnInput) {
  Device& d = device();
  EXPECT_NONFATAL_FAILURE(
      {
        GuardedMemory m(d);
        poke(d, m.output({3}), -1);
      },
      "in front of its first element");
  EXPECT_NONFATAL_FAILURE(
      {
        GuardedMemory m(d);
        poke(d, m.output({3}), 12);
      },
      "behind its last element");
  EXPECT_NONFATAL_FAILURE(
      {
        GuardedMemory m(d);
        poke(d, m.input(std::vector<float>{1.0f, 2.0f}, {2}), 3);
      },
      "an input was changed");
  GuardedMemory m(d);
  poke(d, m.output({3}), 3);
  EXPECT_TRUE(m.verify());
}

TEST_P(Guarded, OutputsStartAsNan) {
  GuardedMemory m(device());
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (float x : m.read(m.output({5}, dtype))) EXPECT_TRUE(std::isnan(x));
}

}  // namespace
}  // namespace gantrain::test
