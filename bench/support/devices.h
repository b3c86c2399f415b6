// The composition root of the benchmarks: the only place here that names concrete backends.
#pragma once

#include <memory>

#include "core/device.h"

namespace gantrain::bench {

std::unique_ptr<Device> make_device(DeviceKind kind, int threads);
int thread_count(int threads);  // 0: one a core
// Whether the device is the software GPU (docs/softgpu.md), whose times mean nothing.
bool is_software_gpu(const Device& device);

}  // namespace gantrain::bench
