// Backward of a product behind RMSNorm, which QKV's and the gate's and up's share (QkvBackward,
// GateUpBackward): dx += the norm's backward of (dy w * gain), a block of rows at a time.
#pragma once

#include <algorithm>

#include "cpu/cpu_matrix.h"
#include "cpu/lora.h"
#include "cpu/rows.h"

namespace gantrain {

struct NormedBackwardPieces {
  float* dnormed;
  LoraScratch lora;
};
template <typename Args>
NormedBackwardPieces normed_backward_pieces(Pieces& p, const Args& a) {
  const int64_t c = a.x.dim(1), out = a.w->rows(), block = row_block(a.x.dim(0));
  float* dnormed = a.dnormed.empty() ? p.floats(block * c) : nullptr;
  return {dnormed, lora_scratch(p, a.lora, block, block * c, a.w->dtype() == DType::kF32 ? 0 : block * out)};
}
template <typename Args>
int64_t normed_backward_scratch(const Args& a) {
  Pieces p;
  normed_backward_pieces(p, a);
  return p.used();
}

template <typename T, typename Args>
void normed_backward_of(ThreadPool& pool, const Args& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), out = w.rows();
  Pieces scratch(a.scratch);
  const NormedBackwardPieces s = normed_backward_pieces(scratch, a);
  if (!a.lora.empty()) lora_pack(a.lora, s.lora.packed);
  const float* gain = a.gain.empty() ? nullptr : a.gain.template data<float>();
  const int64_t block = row_block(n);
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    const T* dy = a.dy.template data<T>() + r0 * out;
    float* dnormed = a.dnormed.empty() ? s.dnormed : a.dnormed.template data<float>() + r0 * c;
    const float *x = a.x.template data<float>() + r0 * c, *rstd = a.rstd.template data<float>() + r0;
    matmul(pool, w, {.m = rows, .n = c, .k = out, .a = dy, .lda = out, .c = dnormed, .ldc = c});
    if (!a.lora.empty())
      lora_backward_block(pool, a.lora, s.lora, r0, rows,
                          normed_f32(pool, a.x, a.rstd, gain, r0, rows, DType::kBF16, nullptr, s.lora.x),
                          in_f32(pool, dy, rows * out, s.lora.y), out, dnormed);
    norm_backward_rows(pool, x, rstd, gain, dnormed, rows, c, a.dx.template data<float>() + r0 * c);
  }
  rounded_rows(pool, a.dx.template data<float>(), nullptr, a.dx_bf16);
}
template <typename Args>
void normed_backward(ThreadPool& pool, const Args& a) {
  if (a.w->dtype() == DType::kF32)
    normed_backward_of<float>(pool, a);
  else
    normed_backward_of<bf16>(pool, a);
}

}  // namespace gantrain
