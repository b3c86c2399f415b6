#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/lora.h"
#include "cpu/rows.h"

namespace gantrain {
namespace {

// Rotates `heads` heads by +angle (sign = 1) or -angle (sign = -1); in place is fine.
template <typename From, typename To>
void rotate(const From* from, To* to, int64_t heads, int64_t d, const float* cos, const float* sin,
            float sign) {
  const int64_t half = d / 2;
  for (int64_t h = 0; h < heads; ++h, from += d, to += d) {
    for (int64_t j = 0; j < half; ++j) {
      const float a = load(from + j), b = load(from + half + j), s = sin[j] * sign;
      store(to + j, a * cos[j] - b * s);
      store(to + half + j, b * cos[j] + a * s);
    }
  }
}

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

struct BackwardPieces {
  void* dy;
  float* dnormed;
  LoraScratch lora;
};
BackwardPieces backward_pieces(Pieces& p, const QkvBackward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), out = a.w->rows(), block = row_block(n);
  const DType t = a.w->dtype();
  void* dy = a.dy.empty() ? p.take(block * out * dtype_size(t)) : nullptr;
  float* dnormed = a.dnormed.empty() ? p.floats(block * c) : nullptr;
  return {dy, dnormed, lora_scratch(p, a.lora, block, block * c, t == DType::kF32 ? 0 : block * out)};
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
        rotate(y, y, h + k, d, rotary + row * d, rotary + row * d + d / 2, 1.0f);
        narrow(y, q + row * h * d, h * d);
        narrow(y + h * d, key + row * k * d, k * d);
        narrow(y + (h + k) * d, v + row * k * d, k * d);
      }
    });
  }
}

template <typename T>
void backward(ThreadPool& pool, const QkvBackward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), h = a.dq.dim(1), k = a.dk.dim(1), d = a.dq.dim(2),
                out = w.rows();
  Pieces scratch(a.scratch);
  const BackwardPieces s = backward_pieces(scratch, a);
  if (!a.lora.empty()) lora_pack(a.lora, s.lora.packed);
  const float* gain = a.gain.empty() ? nullptr : a.gain.data<float>();
  const float* rotary = a.rotary.data<float>();  // (n, d)
  const T *dq = a.dq.data<T>(), *dk = a.dk.data<T>(), *dv = a.dv.data<T>();
  const int64_t block = row_block(n);
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    T* dy = a.dy.empty() ? static_cast<T*>(s.dy) : a.dy.data<T>() + r0 * out;
    float* dnormed = a.dnormed.empty() ? s.dnormed : a.dnormed.data<float>() + r0 * c;
    pool.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* y = dy + i * out;
        const int64_t row = r0 + i;
        rotate(dq + row * h * d, y, h, d, rotary + row * d, rotary + row * d + d / 2, -1.0f);
        rotate(dk + row * k * d, y + h * d, k, d, rotary + row * d, rotary + row * d + d / 2, -1.0f);
        std::memcpy(y + (h + k) * d, dv + row * k * d, static_cast<size_t>(k * d) * sizeof(T));
      }
    });
    matmul(pool, w, {.m = rows, .n = c, .k = out, .a = dy, .lda = out, .c = dnormed, .ldc = c});
    if (!a.lora.empty())
      lora_backward_block(pool, a.lora, s.lora, r0, rows,
                          normed_f32(pool, a.x, a.rstd, gain, r0, rows, DType::kBF16, nullptr, s.lora.x),
                          in_f32(pool, static_cast<const T*>(dy), rows * out, s.lora.y), out, dnormed);
    norm_backward_rows(pool, a.x.data<float>() + r0 * c, a.rstd.data<float>() + r0, gain, dnormed, rows, c,
                       a.dx.data<float>() + r0 * c);
  }
  rounded_rows(pool, a.dx.data<float>(), nullptr, a.dx_bf16);
}

}  // namespace

int64_t CpuOps::scratch(const QkvForward& a) const {
  Pieces p;
  forward_pieces(p, a);
  return p.used();
}
int64_t CpuOps::scratch(const QkvBackward& a) const {
  Pieces p;
  backward_pieces(p, a);
  return p.used();
}

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
void CpuOps::qkv_backward(const QkvBackward& a) {
  if (a.w->dtype() == DType::kF32)
    backward<float>(pool_, a);
  else
    backward<bf16>(pool_, a);
}

}  // namespace gantrain
