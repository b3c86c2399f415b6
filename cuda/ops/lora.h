// The low-rank part of the frozen model's products (core/ops/lora.h): plain f32 products around the frozen
// one.
#pragma once

#include <span>

#include "core/ops/lora.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// x (n, I) f32 is what the product read; y (n, ldy) f32 += the adapters' outputs. Writes their z.
void lora_forward(const Context&, std::span<const LoraPart>, int64_t n, const float* x, float* y,
                  int64_t ldy);
// dy (n, ldy) f32 at the outputs; dx (n, I) f32 +=; da and db +=. dz: lora_ranks(parts) * n floats.
void lora_backward(const Context&, std::span<const LoraPartBackward>, int64_t n, const float* x,
                   const float* dy, int64_t ldy, float* dx, float* dz);
// The largest rank.
int64_t lora_ranks(std::span<const LoraPartBackward>);

}  // namespace gantrain::cuda
