// The devices a test runs on, and the fixture of op tests. This folder is the tests' composition root: only
// here are concrete backends named.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "core/device.h"
#include "tests/support/compare.h"
#include "tests/support/guarded.h"

namespace gantrain::test {

struct DeviceCase {
  std::string name;
  // A device with this many worker threads (a hint that only CPU backends follow); null where there is none.
  std::function<std::unique_ptr<Device>(int threads)> make;
};
// The name of a case in test lists.
inline void PrintTo(const DeviceCase& device, std::ostream* out) { *out << device.name; }
// Every backend of this build; "cpu" comes first.
std::vector<DeviceCase> device_cases();
std::unique_ptr<Device> make_cpu(int threads = 2);

// One op test runs on every device:  class X : public OpsTest {};  TEST_P(X, Case) {...}  GT_ALL_DEVICES(X);
class OpsTest : public testing::TestWithParam<DeviceCase> {
 protected:
  void SetUp() override {
    device_ = GetParam().make(2);
    if (!device_) GTEST_SKIP() << "no " << GetParam().name << " device on this machine";
  }
  Device& device() { return *device_; }
  // Indices and other values in memory are looked at by the host on the CPU only (core/ops/contract.h).
  bool host_sees_values() const { return device_->kind() == DeviceKind::kCpu; }

  // Runs `outputs(Device&) -> vector of results` twice, and on the CPU a third time with one thread; all bits
  // must agree. Returns the first run's results. `outputs` makes its own GuardedMemory.
  std::vector<std::vector<float>> run_deterministic(
      const std::function<std::vector<std::vector<float>>(Device&)>& outputs) {
    const auto first = outputs(*device_), second = outputs(*device_);
    EXPECT_EQ(first.size(), second.size());
    for (size_t i = 0; i < first.size(); ++i)
      EXPECT_TRUE(bitwise_equal("output " + std::to_string(i) + ", two runs", first[i], second.at(i)));
    if (device_->kind() != DeviceKind::kCpu) return first;
    const auto single = GetParam().make(1);
    const auto third = outputs(*single);
    for (size_t i = 0; i < first.size(); ++i)
      EXPECT_TRUE(
          bitwise_equal("output " + std::to_string(i) + ", two threads and one", first[i], third.at(i)));
    return first;
  }

 private:
  std::unique_ptr<Device> device_;
};

}  // namespace gantrain::test

#define GT_ALL_DEVICES(FIXTURE)                                                              \
  INSTANTIATE_TEST_SUITE_P(On, FIXTURE, testing::ValuesIn(::gantrain::test::device_cases()), \
                           [](const auto& info) { return info.param.name; })
