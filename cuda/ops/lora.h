// The low-rank part of the frozen model's products (core/ops/lora.h), fused with them on the tensor cores
// (docs/kernels/lora.md), or as plain f32 products around the frozen one.
#pragma once

#include <cuda_bf16.h>

#include <span>

#include "core/ops/lora.h"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// Whether a product takes its adapters in: then it is always our tensor cores', with the epilogue that it has
// without adapters. Not with dropout, nor with so many adapters that no op has them. `product` reads a
// matrix of bf16 values as forward or backward does; x is what the gradients are taken of, or null.
bool lora_fuses(const Context&, std::span<const LoraPart>, const Matmul& product);
bool lora_fuses(const Context&, std::span<const LoraPartBackward>, const Matmul& product, const void* x);

// Scratch of a product with adapters, n rows, a (out, in) matrix: all adapters' in bf16, ranks side by side.
struct LoraPieces {
  __nv_bfloat16 *a, *b;      // (ranks, in), (out, ranks)
  __nv_bfloat16 *z, *dz;     // (n, ranks); forward has no dz
  float* sums;               // of z or dz over splits of the columns
  float *parts_a, *parts_b;  // of da and db over pieces of the rows; forward has none
};
LoraPieces lora_pieces(Pieces&, std::span<const LoraPart>, int64_t n, int64_t in, int64_t out);
LoraPieces lora_pieces(Pieces&, std::span<const LoraPartBackward>, int64_t n, int64_t in, int64_t out);
// Writes the adapters' z and makes x w^T of `product` [x, z] [w, b]^T. row_scale: what its rows are scaled by
// afterwards, or null.
void lora_extend(const Context&, std::span<const LoraPart>, const LoraPieces&, const float* row_scale,
                 Matmul* product);
// Makes dy w of `product` [dy, dz] [w; a], and the shares of db.
void lora_extend(const Context&, std::span<const LoraPartBackward>, const LoraPieces&, Matmul* product);
// What forward's product read: x, or x * rstd * gain; (n, in) rows.
struct LoraInput {
  const void* x;
  DType type;
  const float *rstd, *gain;  // of f32 rows, or null
};
// da and db +=, after lora_extend of the same arguments.
void lora_gradients(const Context&, std::span<const LoraPartBackward>, const LoraPieces&,
                    const Matmul& product, const LoraInput&);

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
