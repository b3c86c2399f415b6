#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/lora.h"
#include "cpu/normed_backward.h"
#include "cpu/rows.h"

namespace gantrain {
namespace {

struct ForwardPieces {
  void* normed;
  float* product;
  LoraScratch lora;
};
ForwardPieces forward_pieces(Pieces& p, const QkvForward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), block = row_block(n);
  const DType t = a.w->dtype();
  void* normed = p.take(block * c * dtype_size(t));
  float* product = p.floats(block * a.w->rows());
  return {normed, product, lora_scratch(p, a.lora, block, t == DType::kF32 ? 0 : block * c, 0)};
}

template <typename S>
void forward(ThreadPool& pool, const QkvForward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), h = a.q.dim(1), k = a.k.dim(1), d = a.q.dim(2),
                out = w.rows();
  Pieces scratch(a.scratch);
  const ForwardPieces s = forward_pieces(scratch, a);
  if (!a.lora.empty()) lora_pack(a.lora, s.lora.packed);
  const float* gain = a.gain.empty() ? nullptr : a.gain.data<float>();
  const float* bias = a.bias.empty() ? nullptr : a.bias.data<float>();
  const float* rotary = a.rotary.data<float>();  // (n, d)
  S *q = a.q.data<S>(), *key = a.k.data<S>(), *v = a.v.data<S>();
  const int64_t block = row_block(n);
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    normalise_rows(pool, a.x.data<float>() + r0 * c, a.rstd.data<float>() + r0, gain, rows, c, w.dtype(),
                   s.normed);
    matmul(pool, w,
           {.m = rows,
            .n = out,
            .k = c,
            .a = s.normed,
            .lda = c,
            .transpose_b = true,
            .c = s.product,
            .ldc = out});
    if (!a.lora.empty())
      lora_forward_block(pool, a.lora, s.lora, r0, rows,
                         normed_f32(pool, a.x, a.rstd, gain, r0, rows, w.dtype(), s.normed, s.lora.x),
                         s.product, out);
    pool.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* y = s.product + i * out;
        const int64_t row = r0 + i;
        if (bias)
          for (int64_t j = 0; j < out; ++j) y[j] += bias[j];
        rotate_heads(y, y, h + k, d, rotary + row * d, 1.0f);
        narrow(y, q + row * h * d, h * d);
        narrow(y + h * d, key + row * k * d, k * d);
        narrow(y + (h + k) * d, v + row * k * d, k * d);
      }
    });
  }
}

}  // namespace

int64_t CpuOps::scratch(const QkvForward& a) const {
  Pieces p;
  forward_pieces(p, a);
  return p.used();
}
int64_t CpuOps::scratch(const QkvBackward& a) const { return normed_backward_scratch(a); }

void CpuOps::rotary_table(const RotaryTable& a) {
  const int64_t d = a.table.dim(1), half = d / 2;
  const auto* positions = a.positions.data<int32_t>();
  const auto* inv_freq = a.inv_freq.data<float>();
  auto* table = a.table.data<float>();
  pool_.parallel_ranges(a.table.dim(0), 32, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(positions[i]) * static_cast<double>(inv_freq[j]);
        table[i * d + j] = static_cast<float>(std::cos(angle));
        table[i * d + half + j] = static_cast<float>(std::sin(angle));
      }
    }
  });
}
void CpuOps::qkv_forward(const QkvForward& a) {
  with_kept(a.q.dtype(), [&]<typename S>(S*) { forward<S>(pool_, a); });
}
void CpuOps::qkv_backward(const QkvBackward& a) { normed_backward(pool_, a); }

}  // namespace gantrain
