// Every call of the CUDA runtime is checked: GT_CUDA(cudaMalloc(&p, n)) throws Error with the call, its place
// and what the runtime says.
#pragma once

#include <cuda_runtime_api.h>

#include "core/check.h"

namespace gantrain::cuda {

[[noreturn]] void call_failed(cudaError_t error, const char* call, const char* file, int line);
inline void check_call(cudaError_t error, const char* call, const char* file, int line) {
  if (error != cudaSuccess) call_failed(error, call, file, line);
}

}  // namespace gantrain::cuda

#define GT_CUDA(call) ::gantrain::cuda::check_call((call), #call, __FILE__, __LINE__)
