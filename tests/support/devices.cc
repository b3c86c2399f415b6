#include "tests/support/devices.h"

#include "cpu/cpu_device.h"

namespace gantrain::test {

std::unique_ptr<Device> make_cpu(int threads) { return make_cpu_device(threads); }

std::vector<DeviceCase> device_cases() {
  return {{"cpu", [](int threads) { return make_cpu(threads); }}};
}

}  // namespace gantrain::test
