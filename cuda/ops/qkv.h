// Launches of cuda/kernels/qkv.cuh that another family needs.
#pragma once

#include "core/ops/attention.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// The end of an attention backward whose kernels left dy as gradients of the rotated q and k: rotates them
// back in place, and makes the dot products.
void rotate_backward(const Context&, const AttentionBackward&);

}  // namespace gantrain::cuda
