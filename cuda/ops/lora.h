// The low-rank part of the frozen model's products (core/ops/lora.h): plain f32 products around the frozen
// one.
#pragma once

#include <span>

#include "core/ops/lora.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// x (n, I) f32 is what the product read; y (n, ldy) f32 += the adapters' outputs. Writes their z. masked:
// lora_masked(parts, n) floats.
void lora_forward(const Context&, std::span<const LoraPart>, int64_t n, const float* x, float* y, int64_t ldy,
                  float* masked);
// dy (n, ldy) f32 at the outputs; dx (n, I) f32 +=; da and db +=. dz: lora_ranks(parts) * n floats.
void lora_backward(const Context&, std::span<const LoraPartBackward>, int64_t n, const float* x,
                   const float* dy, int64_t ldy, float* dx, float* dz, float* masked);
// Floats of the input without what dropout leaves out; 0 without dropout.
template <typename Part>
int64_t lora_masked(std::span<const Part> parts, int64_t n) {
  for (const Part& p : parts)
    if (p.dropout > 0.0f) return n * p.a.dim(1);
  return 0;
}
// The largest rank.
int64_t lora_ranks(std::span<const LoraPartBackward>);

}  // namespace gantrain::cuda
