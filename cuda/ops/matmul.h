// Matrix products of the backend: one entry, several kernels behind it.
#pragma once

#include "core/tensor.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// c (m, n) = a b + bias + addend, f32 accumulation. All row-major; a row's result does not depend on m.
struct Matmul {
  int64_t m, n, k;
  const void* a;  // (m, k), or (k, m) with transpose_a
  int64_t lda;
  bool transpose_a = false;
  const void* b;  // (k, n), or (n, k) with transpose_b
  int64_t ldb;
  bool transpose_b = false;
  DType dtype = DType::kF32;  // of a and b: f32 or bf16
  void* c;
  int64_t ldc;
  DType c_dtype = DType::kF32;    // f32 or bf16
  const float* bias = nullptr;    // (n)
  const float* addend = nullptr;  // (m, n) with ldc; may be c itself (f32): accumulate
};
void matmul(const Context&, const Matmul&);

}  // namespace gantrain::cuda
