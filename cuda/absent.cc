// In the place of the CUDA backend where the project is built without nvcc.
#include "cuda/cuda_device.h"

namespace gantrain {

std::string cuda_unavailable() {
  return "this build has no CUDA backend (no nvcc was found when it was configured)";
}
std::unique_ptr<Device> make_cuda_device(const CudaOptions&) {
  fail("device cuda: {}; use --device cpu", cuda_unavailable());
}
std::unique_ptr<Communicator> make_cuda_communicator(Device&, std::unique_ptr<HostCommunicator>) {
  fail("device cuda: {}", cuda_unavailable());
}
void* cuda_stream(const Device&) { fail("device cuda: {}", cuda_unavailable()); }

}  // namespace gantrain
