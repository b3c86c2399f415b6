// The CPU device: the default where there is no GPU, and the plain baseline the others are judged by.
#pragma once

#include <memory>

#include "core/device.h"

namespace gantrain {

// threads <= 0: one a core.
std::unique_ptr<Device> make_cpu_device(int threads);

}  // namespace gantrain
