// What every op of the backend works with: one device, one stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/cuda_device.h"

namespace gantrain::cuda {

class BlasLt;
class Cudnn;
class Memory;
class Staging;
class GemmChoices;

// Counters of arrivals at the end of a product (cuda/device/parts.cuh).
constexpr int64_t kMostArrivals = int64_t{1} << 16;

struct Context {
  cudaStream_t stream = nullptr;
  int device = 0;
  int processors = 1;            // streaming multiprocessors
  int capability = 80;           // compute capability, times ten
  int64_t shared_per_block = 0;  // the most dynamic shared memory a block may ask for
  // Memory of the device's own for sums over whole tensors (cuda/ops/sums.h) and for all_finite.
  double* partials = nullptr;    // (256)
  double* total = nullptr;       // (1)
  int* flag = nullptr;           // (1)
  unsigned* arrivals = nullptr;  // (kMostArrivals), zero between launches
  Gemm gemm = Gemm::kOwn;
  BlasLt* library = nullptr;  // cuda/runtime/blaslt.h; null with kOwn, and with kAuto where there is none
  GemmChoices* choices = nullptr;  // cuda/runtime/gemm_choices.h; with kAuto and a library
  Cudnn* attention = nullptr;      // cuda/runtime/cudnn.h; null with CudaAttention::kOwn
  Memory* memory = nullptr;        // cuda/runtime/memory.h: what buffers are made of
  Staging* staging = nullptr;      // cuda/runtime/staging.h: pinned, for copies that do not wait
};

}  // namespace gantrain::cuda
