// Launches of cuda/kernels/dequantize.cuh.
#pragma once

#include "core/device.h"
#include "core/dtype.h"
#include "core/packed.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// y[0 .. blocks * values) of `dtype` (f32 or bf16) = the values of `blocks` packed blocks of any type but
// NF4; `packed` is at an even address.
void dequantize_blocks(const Context&, PackedType type, const void* packed, DType dtype, void* y,
                       int64_t blocks);

// In front of a product with w: expands rows [begin, begin + rows) of a packed matrix (0: all) to where
// as_cuda(w).data() is; nothing for one that is not packed.
void expand_weights(const Context&, const FrozenMatrix& w, int64_t begin = 0, int64_t rows = 0);

}  // namespace gantrain::cuda
