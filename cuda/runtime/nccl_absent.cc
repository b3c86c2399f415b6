// In the place of nccl.cc where the build has found no header of NCCL.
#include "core/check.h"
#include "cuda/cuda_device.h"

namespace gantrain {

std::unique_ptr<Communicator> make_cuda_communicator(Device&, std::unique_ptr<HostCommunicator>) {
  fail(
      "several ranks on GPUs need NCCL, whose header was not found when this was built; bring it with "
      "tools/venv nccl -c '', then configure and build again");
}

}  // namespace gantrain
