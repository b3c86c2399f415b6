// The composition root of the benchmarks: the only place here that names concrete backends.
#pragma once

#include <memory>
#include <string>

#include "core/device.h"

namespace gantrain::bench {

std::unique_ptr<Device> make_device(DeviceKind kind, int threads);
// A CUDA device whose attention of plain batches is cuDNN's; null where it cannot be made, and `why` says so.
std::unique_ptr<Device> make_cudnn_device(std::string* why);
int thread_count(int threads);  // 0: one a core
// Whether the device is the software GPU (docs/softgpu.md), whose times mean nothing.
bool is_software_gpu(const Device& device);

}  // namespace gantrain::bench
