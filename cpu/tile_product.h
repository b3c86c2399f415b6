// bf16 products on a CPU with matrix tiles (AMX): c (M, N) = or += a (M, K) b, where b is (N, K) and used
// transposed, or (K, N). Weights are read as they lie; 32 columns at a time are put into the order of the
// tiles and stay in the cache for all rows. Every output element is one chain over k in steps of 32, whatever
// M, N and the cutting into tiles are: a row's bits do not depend on its neighbours.
#pragma once

#include "core/dtype.h"

namespace gantrain {

// Built for them, the processor has them, and the system lets this process use them.
bool has_tile_product();

// On the calling thread; leading dimensions in elements. c is f32, or bf16 without `accumulate`.
void tile_product(bool transpose_b, int64_t m, int64_t n, int64_t k, const bf16* a, int64_t lda,
                  const bf16* b, int64_t ldb, void* c, int64_t ldc, DType c_dtype, bool accumulate);

}  // namespace gantrain
