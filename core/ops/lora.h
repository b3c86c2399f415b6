// Low-rank adapters on the products of the frozen model (LoRA, Hu et al., arXiv:2106.09685): the ops of
// qkv.h, projection.h and mlp.h take any number of them, each for a range of the product's outputs.
//   z = scale * x A^T,   y[:, first .. first + O) += z B^T
//   db += dy^T z,  dz = scale * dy B,  da += dz^T x,  dx += dz A
// x is what the product reads: the normed row, attention's output or SwiGLU's. Sums, z as it is left and
// gradients are f32, whatever the type of the frozen weights. Beside f32 weights nothing is rounded; beside
// bf16 ones a device may round to bf16 what a product reads, once each: x, a, b, z, dz and dy as they enter
// y, dx, db and da, which is off by at most 2^-8 of the adapter's part for each. The CPU does not; CUDA does
// without dropout. Forward leaves z and nothing else; backward takes x again elementwise.
// With dropout (as PEFT has it, on the adapter's input) x above is m * x / (1 - dropout), where m is 0 or 1
// and drawn anew for each part, row and column by kept_by_dropout(): backward draws the same numbers again,
// so nothing of it is stored.
#pragma once

#include <span>
#include <type_traits>

#include "core/rng.h"
#include "core/tensor.h"

namespace gantrain {

// The largest word of Philox(key)(row, column / 4)[column % 4] for which an input is dropped, plus one; 0:
// none.
constexpr uint32_t dropout_bound(float dropout) {
  return static_cast<uint32_t>(static_cast<double>(dropout) * 4294967296.0);
}
inline bool kept_by_dropout(uint64_t key, uint32_t bound, int64_t row, int64_t column) {
  return Philox{key}(static_cast<uint64_t>(row), static_cast<uint64_t>(column) / 4)[column % 4] >= bound;
}

struct LoraPart {
  ConstTensor a;  // (R, I) f32
  ConstTensor b;  // (O, R) f32
  float scale;
  int64_t first;         // of the product's outputs
  Tensor z;              // (N, R) f32  =  saved for backward
  float dropout = 0.0f;  // share of the inputs that are left out, in [0, 1)
  uint64_t key = 0;      // of their draw
};
struct LoraPartBackward {
  ConstTensor a;  // (R, I) f32
  ConstTensor b;  // (O, R) f32
  float scale;
  int64_t first;
  ConstTensor z;         // (N, R) f32, as forward left it
  Tensor da;             // (R, I) f32  +=
  Tensor db;             // (O, R) f32  +=
  float dropout = 0.0f;  // forward's
  uint64_t key = 0;
};

// Arithmetic beside the frozen product's, for N rows: a product with a and one with b forward, two each
// backward.
template <typename Part>
int64_t lora_flops(std::span<const Part> parts, int64_t n) {
  constexpr int64_t kProducts = std::is_same_v<Part, LoraPartBackward> ? 2 : 1;
  int64_t flops = 0;
  for (const Part& p : parts) flops += kProducts * 2 * n * (p.a.count() + p.b.count());
  return flops;
}
inline int64_t lora_bytes(std::span<const LoraPart> parts) {
  int64_t bytes = 0;
  for (const LoraPart& p : parts) bytes += p.a.bytes() + p.b.bytes() + p.z.bytes();
  return bytes;
}
inline int64_t lora_bytes(std::span<const LoraPartBackward> parts) {
  int64_t bytes = 0;
  for (const LoraPartBackward& p : parts)
    bytes += p.a.bytes() + p.b.bytes() + p.z.bytes() + 2 * (p.da.bytes() + p.db.bytes());
  return bytes;
}

}  // namespace gantrain
