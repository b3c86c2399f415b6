// Products against weights as they lie, c (M, N) = or += a (M, K) b^T with b (N, K) row-major: no packing, no
// copy, each weight read once for all rows. Every output element is one dot product in a fixed order of k,
// whatever M, N and the cutting into tiles are: a row's bits do not depend on its neighbours.
#pragma once

#include "core/dtype.h"

namespace gantrain {

// Whether this build has the kernel for inputs of this type; else oneDNN does these products.
bool has_row_product(DType dtype);

// On the calling thread; leading dimensions in elements; c is f32.
void row_product(DType dtype, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const void* b,
                 int64_t ldb, float* c, int64_t ldc, bool accumulate);

}  // namespace gantrain
