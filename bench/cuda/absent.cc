// In the place of bench/cuda/timer.cc where the project is built without nvcc.
#include "bench/timer.h"
#include "core/check.h"

namespace gantrain::bench {

std::unique_ptr<CudaTimer> make_cuda_timer(Device&) { fail("this build has no CUDA backend"); }
Peaks cuda_peaks() { fail("this build has no CUDA backend"); }

}  // namespace gantrain::bench
