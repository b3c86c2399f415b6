// mbarriers, tensor maps and matrix descriptors for the programs of compute_90a.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "tests/softgpu/check.h"

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ inline void barrier_init(uint64_t* b, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
__device__ inline void barrier_expect(uint64_t* b, uint32_t bytes) {  // arrives as well
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}
__device__ inline void barrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
// Until the phase of this parity has completed.
__device__ inline void barrier_wait(uint64_t* b, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nwait_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra "
      "done_%=;\nbra "
      "wait_%=;\ndone_%=:\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}
__device__ inline void tensor_load2(void* to, const CUtensorMap* map, int c0, int c1, uint64_t* b) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3}], "
      "[%4];" ::"r"(shared_address(to)),
      "l"(map), "r"(c0), "r"(c1), "r"(shared_address(b))
      : "memory");
}
// swizzle: 0 none, 1 128 bytes, 2 64, 3 32
__device__ inline uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride, uint64_t swizzle) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | swizzle << 62;
}

inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* f = nullptr;
  cudaDriverEntryPointQueryResult status;
  CHECK_CUDA(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &status));
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(f);
}
inline CUtensorMap make_map(void* p, CUtensorMapDataType type, int rank, const cuuint64_t* dims,
                            const cuuint64_t* strides, const cuuint32_t* box, CUtensorMapSwizzle swizzle) {
  CUtensorMap m;
  const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
  if (tensor_map_encoder()(&m, type, rank, p, dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
    std::printf("cuTensorMapEncodeTiled failed\n");
    std::exit(1);
  }
  return m;
}
// A dense matrix of `rows` rows of `cols` elements.
inline CUtensorMap map2(void* p, CUtensorMapDataType type, int bytes, uint64_t cols, uint64_t rows,
                        uint32_t box_cols, uint32_t box_rows, CUtensorMapSwizzle swizzle) {
  const cuuint64_t dims[] = {cols, rows}, strides[] = {cols * bytes};
  const cuuint32_t box[] = {box_cols, box_rows};
  return make_map(p, type, 2, dims, strides, box, swizzle);
}
inline CUtensorMap map3(float* p, uint64_t d0, uint64_t d1, uint64_t d2, uint32_t b0, uint32_t b1,
                        uint32_t b2, CUtensorMapSwizzle swizzle) {
  const cuuint64_t dims[] = {d0, d1, d2}, strides[] = {d0 * 4, d0 * d1 * 4};
  const cuuint32_t box[] = {b0, b1, b2};
  return make_map(p, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3, dims, strides, box, swizzle);
}
