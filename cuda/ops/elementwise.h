// Launches of cuda/kernels/elementwise.cuh.
#pragma once

#include "core/dtype.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// to[i] = from[i], rounded once to bf16; `from` is f32, or f16.
void round_to_bf16(const Context&, const void* from, DType from_type, void* to, int64_t count);
// `count` values in f32: as they are, or widened into `to`.
const float* in_f32(const Context&, const void* from, DType from_type, float* to, int64_t count);

}  // namespace gantrain::cuda
