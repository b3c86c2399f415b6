// Copies of boxes of a tensor from global to shared memory by the tensor memory accelerator (compute
// capability 9.0). One thread starts a box; it completes on an mbarrier of the block, to which its bytes were
// announced (cuda/device/mbarrier.cuh). What lies outside the tensor arrives as zeros, and counts.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace gantrain::cuda {

// Where the box lies: `inner` along the rows of the tensor, then outwards. The map is a __grid_constant__
// parameter of the kernel; the shared address is a multiple of 128, of 1024 with the 128-byte swizzle, of 512
// with that of 64.
__device__ inline void tensor_load(uint32_t to_shared, const CUtensorMap* map, int inner, int c1,
                                   uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to_shared),
      "l"(map), "r"(inner), "r"(c1), "r"(barrier)
      : "memory");
}
__device__ inline void tensor_load(uint32_t to_shared, const CUtensorMap* map, int inner, int c1, int c2,
                                   int c3, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, "
      "%5}], [%6];" ::"r"(to_shared),
      "l"(map), "r"(inner), "r"(c1), "r"(c2), "r"(c3), "r"(barrier)
      : "memory");
}

}  // namespace gantrain::cuda
