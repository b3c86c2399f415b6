#include "bench/support/devices.h"

#include <algorithm>
#include <thread>

#include "cpu/cpu_device.h"
#include "cuda/cuda_device.h"

namespace gantrain::bench {

int thread_count(int threads) {
  return threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::unique_ptr<Device> make_device(DeviceKind kind, int threads) {
  return kind == DeviceKind::kCuda ? make_cuda_device() : make_cpu_device(thread_count(threads));
}

std::unique_ptr<Device> make_cudnn_device(std::string* why) {
  try {
    return make_cuda_device({.attention = CudaAttention::kCudnn});
  } catch (const Error& e) {
    *why = e.what();
    return nullptr;
  }
}

bool is_software_gpu(const Device& device) {
  return device.kind() == DeviceKind::kCuda && device.description().find("softgpu") != std::string::npos;
}

}  // namespace gantrain::bench
