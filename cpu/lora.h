// The low-rank part of the frozen model's products (core/ops/lora.h), over blocks of rows in f32. No result
// depends on the number of threads, and no row of y, z or dx on the rows beside it.
#pragma once

#include <algorithm>
#include <span>

#include "core/ops/lora.h"
#include "cpu/rows.h"

namespace gantrain {

// Scratch of one call. Without adapters nothing is taken.
struct LoraScratch {
  float* packed = nullptr;  // B^T (R, O) of each part, one after the other
  float* x = nullptr;       // (block, I): the input in f32, where the product reads another type
  float* y = nullptr;       // (block, O): the output's gradient in f32, or the input's, where needed
  float* dz = nullptr;      // (block, R)
  float* masked = nullptr;  // (block, I): the input without what dropout leaves out, with dropout
};

// floats_x, floats_y: floats of x and y wanted for a block, 0: none.
template <typename Part>
LoraScratch lora_scratch(Pieces& pieces, std::span<const Part> parts, int64_t block, int64_t floats_x,
                         int64_t floats_y) {
  LoraScratch s;
  if (parts.empty()) return s;
  int64_t packed = 0, rank = 0;
  bool dropout = false;
  for (const Part& p : parts) {
    packed += p.b.count();
    rank = std::max(rank, p.a.dim(0));
    dropout = dropout || p.dropout > 0.0f;
  }
  s.packed = pieces.floats(packed);
  if (floats_x > 0) s.x = pieces.floats(floats_x);
  if (floats_y > 0) s.y = pieces.floats(floats_y);
  if constexpr (std::is_same_v<Part, LoraPartBackward>) s.dz = pieces.floats(block * rank);
  if (dropout) s.masked = pieces.floats(block * parts.front().a.dim(1));
  return s;
}

// The block's normed rows in f32: what the product read, where that is f32; else made again into `to`.
inline const float* normed_f32(ThreadPool& pool, const ConstTensor& x, const ConstTensor& rstd,
                               const float* gain, int64_t r0, int64_t rows, DType made, const void* normed,
                               float* to) {
  if (made == DType::kF32) return static_cast<const float*>(normed);
  const int64_t c = x.dim(1);
  normalise_rows(pool, x.data<float>() + r0 * c, rstd.data<float>() + r0, gain, rows, c, DType::kF32, to);
  return to;
}
// `count` values in f32: as they are, or widened into `to`.
template <typename T>
const float* in_f32(ThreadPool& pool, const T* from, int64_t count, float* to) {
  if constexpr (std::is_same_v<T, float>) {
    return from;
  } else {
    pool.parallel_ranges(count, 16384,
                         [&](int64_t begin, int64_t end) { widen(from + begin, to + begin, end - begin); });
    return to;
  }
}

void lora_pack(std::span<const LoraPart> parts, float* packed);
void lora_pack(std::span<const LoraPartBackward> parts, float* packed);

// Rows [r0, r0 + rows) of the call: x (rows, I) is the block's input; y (rows, ldy) += its output.
void lora_forward_block(ThreadPool& pool, std::span<const LoraPart> parts, const LoraScratch& s, int64_t r0,
                        int64_t rows, const float* x, float* y, int64_t ldy);
// dy (rows, ldy) at the outputs; dx (rows, I) +=; da and db +=.
void lora_backward_block(ThreadPool& pool, std::span<const LoraPartBackward> parts, const LoraScratch& s,
                         int64_t r0, int64_t rows, const float* x, const float* dy, int64_t ldy, float* dx);

}  // namespace gantrain
