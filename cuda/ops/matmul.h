// Matrix products of the backend: one entry, several kernels behind it (docs/kernels/matmul.md).
#pragma once

#include "core/tensor.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

enum class MatmulKernel : uint8_t {
  kChosen,  // by type, alignment and shape
  kSimt,    // f32 units: any type, shape and alignment
  kLarge,   // tensor cores, tiles of 128 x 128
  kMedium,  // of 64 x 128
  kNarrow,  // of 128 x 64
  kSmall,   // of 16 x 32: few rows
  // Hopper's tensor cores (compute capability 9.0): the same bits.
  kHopperLarge,   // tiles of 128 x 256
  kHopperMiddle,  // of 128 x 192
  kHopperMedium,  // of 128 x 128
  kHopperSmall    // of 64 x 32: few rows
};

// More of a product's k, of its type and orders: c = [a, more.a] [b; more.b]. On tensor cores only: k, lda
// and ldb multiples of 8 (the last also where it is not transposed, as n), addresses of 16. k 0: none.
struct MatmulMore {
  int64_t k = 0;
  const void* a = nullptr;  // (m, k)
  int64_t lda = 0;
  const void* b = nullptr;  // (k, n), or (n, k) with transpose_b
  int64_t ldb = 0;
};
// c (m, n) = a b + bias + addend, f32 accumulation. All row-major. By our own kernels a row's result does not
// depend on m; cuBLASLt (Context::gemm) promises no such thing.
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
  // With an f32 c, where matmul_fuses: 1 / sqrt(mean(c^2) + eps), the statistic of the norm that follows.
  float* rstd = nullptr;  // (m)
  float eps = 0;
  float* parts = nullptr;                       // (row_parts(m, n)), for it
  void* rounded = nullptr;                      // (m, n) bf16: c * rounded_gain, for a product that follows
  const float* rounded_gain = nullptr;          // (n), or ones
  MatmulKernel kernel = MatmulKernel::kChosen;  // one by name is never the library's
  // Whether ours ends in an epilogue where the library's would need a pass over c behind it.
  bool fused = false;
  MatmulMore more = {};
};
void matmul(const Context&, const Matmul&);

// Whether our tensor-core kernel takes a product: bf16, a not transposed, rows of 16-byte pieces. Does not
// depend on m.
bool matmul_on_tensor_cores(const Matmul&);
// Whether a product goes to cuBLASLt; `a` and `c` are not looked at. With Gemm::kAuto the first of its
// shape is timed, unless the stream is being captured: then it is ours.
bool matmul_by_library(const Context&, const Matmul&);
// Whether a product goes to our tensor cores now, and so may have an epilogue of its own
// (cuda/ops/matmul_tensor.cuh); whether every one like it always will, so that its c is never needed.
bool matmul_fuses(const Context&, const Matmul&);
bool matmul_always_fuses(const Context&, const Matmul&);
// Values that sums over rows of an (m, n) product take on the way (cuda/device/parts.cuh).
int64_t row_parts(int64_t m, int64_t n);
// How a product's epilogue takes its columns (cuda/ops/matmul_wgmma.cuh).
struct HopperColumns {
  bool allowed;      // Hopper's kernel may be taken
  int64_t half = 0;  // paired: of a head's columns; else 0
};
// Its tile: kLarge, kMedium, kNarrow or kSmall, or, where it is allowed, on compute capability 9.0 one of
// Hopper's. Which of both does not depend on m.
MatmulKernel matmul_tile(const Context&, const Matmul&, const HopperColumns&);

}  // namespace gantrain::cuda
