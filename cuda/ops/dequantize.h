// Launches of cuda/kernels/dequantize.cuh.
#pragma once

#include "core/dtype.h"
#include "core/packed.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// y[0 .. blocks * values) of `dtype` (f32 or bf16) = the values of `blocks` packed blocks; `packed` is at an
// even address.
void dequantize_blocks(const Context&, PackedType type, const void* packed, DType dtype, void* y,
                       int64_t blocks);

}  // namespace gantrain::cuda
