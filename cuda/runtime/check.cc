#include "cuda/runtime/check.h"

namespace gantrain::cuda {

void call_failed(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaErrorMemoryAllocation) {
    size_t free_bytes = 0, total = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&free_bytes, &total);
    throw Error(
        fmt::format("out of memory on the GPU: {} of {} MiB are free; use a smaller batch or model ({})",
                    free_bytes >> 20, total >> 20, call),
        ErrorKind::kOutOfMemory);
  }
  fail("{}:{}: {}: {} ({})", file, line, call, cudaGetErrorString(error), cudaGetErrorName(error));
}

}  // namespace gantrain::cuda
