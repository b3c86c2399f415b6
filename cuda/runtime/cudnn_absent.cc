// In the place of cudnn.cc where the build has found no headers of cuDNN and its front end.
#include "cuda/runtime/cudnn.h"

namespace gantrain::cuda {

std::unique_ptr<Cudnn> Cudnn::open(std::string* why) {
  *why = "this build has no cuDNN (its headers were not found when it was configured)";
  return nullptr;
}

}  // namespace gantrain::cuda
