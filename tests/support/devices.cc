#include "tests/support/devices.h"

#include "cpu/cpu_device.h"
#include "cuda/cuda_device.h"

namespace gantrain::test {

std::unique_ptr<Device> make_cpu(int threads) { return make_cpu_device(threads); }

std::vector<DeviceCase> device_cases() {
  return {{"cpu", [](int threads) { return make_cpu(threads); }},
          {"cuda", [](int) { return cuda_unavailable().empty() ? make_cuda_device() : nullptr; }}};
}

}  // namespace gantrain::test
