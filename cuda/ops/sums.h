// Sums over whole tensors: see cuda/kernels/sums.cuh.
#pragma once

#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// context.total[0] = (add ? context.total[0] : 0) + sum over i < count of a[i] * b[i]
void dot_into_total(const Context&, const float* a, const float* b, int64_t count, bool add);

}  // namespace gantrain::cuda
