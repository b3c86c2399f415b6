// The time of work on a device, and the device's own peaks to hold it against.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/device.h"

namespace gantrain::bench {

// What a machine can do at most; 0: not known.
struct Peaks {
  double flops_f32 = 0, flops_bf16 = 0;  // a second
  double bandwidth = 0;                  // bytes a second
  std::string source;                    // where the figures come from, for people
  double flops(DType t) const { return t == DType::kF32 ? flops_f32 : flops_bf16; }
};

// CUDA: events on the device's stream around the work, after the second-level cache was written over, so that
// inputs come from memory as they do within a training step.
class CudaTimer {
 public:
  virtual ~CudaTimer() = default;
  virtual double seconds(const std::function<void()>& work) = 0;
};
// Throws Error where this build has no CUDA backend.
std::unique_ptr<CudaTimer> make_cuda_timer(Device& device);
Peaks cuda_peaks();  // from the properties of the present device

// CPU: oneDNN's products of 512 x 512 matrices, and a sum over 96 MiB a thread, on all threads at once;
// the best of five windows in `seconds` for each of f32, bf16 and the sum. `seconds` 0: not measured.
Peaks measure_cpu_peaks(int threads, double seconds);

}  // namespace gantrain::bench
