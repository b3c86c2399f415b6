// Matrix products, cut into tiles that the thread pool runs: in bf16 by cpu/tile_product.h where the
// processor has matrix tiles, else by cpu/row_product.h against weights as they lie where it can, else by
// oneDNN. Tiles do not depend on the number of threads, so neither do the bits; and a row's bits do not
// depend on how many other rows there are (tests/ops: ARowDoesNotDependOnItsNeighbours).
#pragma once

#include "core/tensor.h"
#include "cpu/parallel.h"

namespace gantrain {

class PackedWeights;

// c (M, N) = or += a (M, K) b;  b is (N, K) and used transposed if `transpose_b`, else (K, N). All row-major
// with leading dimensions in elements. a and b have one type, f32 or bf16; c is f32, or bf16 without
// `accumulate`. Accumulation is in f32.
struct MatMul {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  int64_t lda = 0;
  const void* b = nullptr;
  int64_t ldb = 0;
  bool transpose_b = false;
  DType dtype = DType::kF32;
  void* c = nullptr;
  int64_t ldc = 0;
  DType c_dtype = DType::kF32;
  bool accumulate = false;
  // Adds up over ranges of k of this length, in order, one partial product each: for products with few
  // outputs and a long k. 0: one range. Needs `partials`: matmul_partials(...) floats.
  int64_t k_range = 0;
  float* partials = nullptr;
  // In place of b: expanded some rows or columns at a time. The bits are those of the expanded matrix.
  const PackedWeights* packed = nullptr;
};
void matmul(ThreadPool& pool, const MatMul& p);
int64_t matmul_partials(const MatMul& p);  // floats

// c (m, n) = or += op(a) op(b) in f32 on the calling thread alone, for use inside a chunk. No padding: the
// shape should come from a small set, because each is compiled once.
void matmul_serial(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
                   int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, bool accumulate);

bool cpu_has_bf16();  // AVX512_BF16

void convert_to_f32(const bf16* from, float* to, int64_t count);
void convert_to_bf16(const float* from, bf16* to, int64_t count);

}  // namespace gantrain
