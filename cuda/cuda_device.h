// The CUDA device: our own kernels on an NVIDIA GPU of compute capability 8.0 or newer.
#pragma once

#include <memory>
#include <string>

#include "core/device.h"

namespace gantrain {

// Why a CUDA device cannot be made here, in one line; empty: it can.
std::string cuda_unavailable();
// Device `index` of the CUDA runtime. Throws Error with the line of cuda_unavailable() and what to do.
std::unique_ptr<Device> make_cuda_device(int index = 0);

}  // namespace gantrain
