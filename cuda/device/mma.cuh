// Tensor cores by warp: ldmatrix and mma.sync m16n8k16 on bf16 with f32 accumulation (PTX ISA, "Matrix
// fragments for mma.m16n8k16"). Every lane of the warp must call.
//
// With group = lane / 4 and pair = 2 * (lane % 4), lane holds
//   A (16, 16) row-major   a[0] = A[group    ][pair, pair + 1]   a[2] = A[group    ][pair + 8, pair + 9]
//                          a[1] = A[group + 8][pair, pair + 1]   a[3] = A[group + 8][pair + 8, pair + 9]
//   B (16, 8)              b[0] = B[pair, pair + 1][group]       b[1] = B[pair + 8, pair + 9][group]
//   C, D (16, 8)           d[0], d[1] = D[group][pair, pair + 1]   d[2], d[3] = D[group + 8][pair, pair + 1]
// The first of two values lies in the low half of its register.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace gantrain::cuda {

// The address of shared memory as PTX takes it.
__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// aligned), and gets out[i] = matrix i [lane / 4][2 * (lane % 4), + 1]. A (16, 16) of a row-major tile: row
// lane % 16, column 8 * (lane / 16). B (16, 8) twice, of a tile stored (n, k): row n = lane % 8 + 8 * (lane /
// 16), column k = 8 * (lane / 8 % 2): out[0, 1] is b of the first eight columns, out[2, 3] of the next.
__device__ inline void load_matrices(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}
// Each of the four transposed: out[i] = matrix i [2 * (lane % 4), + 1][lane / 4].
// B (16, 8) twice, of a tile stored (k, n): row k = lane % 16, column n = 8 * (lane / 16).
__device__ inline void load_matrices_transposed(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// d += a b
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = a b + c; c may be d.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}

// Two values rounded to bf16 in one register, `low` in its low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

}  // namespace gantrain::cuda
