#include <algorithm>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "cpu/vec_math.h"

namespace gantrain {
namespace {

struct ForwardPieces {
  void* normed;
  float* product;
};
ForwardPieces forward_pieces(Pieces& p, int64_t n, int64_t c, int64_t f2, DType t) {
  const int64_t block = row_block(n);
  return {p.take(block * c * dtype_size(t)), p.floats(block * f2)};
}

struct BackwardPieces {
  void* dy;
  float* dnormed;
};
BackwardPieces backward_pieces(Pieces& p, int64_t n, int64_t c, int64_t f2, DType t) {
  const int64_t block = row_block(n);
  return {p.take(block * f2 * dtype_size(t)), p.floats(block * c)};
}

// In bf16 the gate and up values are rounded before they meet, so that backward, which only has the rounded
// ones, is the exact derivative of what was computed.
template <typename T>
float rounded(float v) {
  T t;
  store(&t, v);
  return load(&t);
}

template <typename T>
void forward(ThreadPool& pool, const GateUpForward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f = a.a.dim(1);
  Pieces scratch(a.scratch);
  const ForwardPieces s = forward_pieces(scratch, n, c, 2 * f, w.dtype());
  const float* gain = a.gain.empty() ? nullptr : a.gain.data<float>();
  const float* bias = a.bias.empty() ? nullptr : a.bias.data<float>();
  T* out = a.a.data<T>();
  T* gate_out = a.g.empty() ? nullptr : a.g.data<T>();
  T* up_out = a.u.empty() ? nullptr : a.u.data<T>();
  const int64_t block = row_block(n);
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    normalise_rows(pool, a.x.data<float>() + r0 * c, a.rstd.data<float>() + r0, gain, rows, c, w.dtype(),
                   s.normed);
    matmul(pool, {.m = rows,
                  .n = 2 * f,
                  .k = c,
                  .a = s.normed,
                  .lda = c,
                  .b = w.data(),
                  .ldb = c,
                  .transpose_b = true,
                  .dtype = w.dtype(),
                  .c = s.product,
                  .ldc = 2 * f});
    pool.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float *g = s.product + i * 2 * f, *u = g + f;
        if (bias)
          for (int64_t j = 0; j < 2 * f; ++j) g[j] += bias[j];
        const int64_t at = (r0 + i) * f;
        if (gate_out) {
          for (int64_t j = 0; j < f; ++j) store(gate_out + at + j, g[j]);
          for (int64_t j = 0; j < f; ++j) store(up_out + at + j, u[j]);
        }
        for (int64_t j = 0; j < f; ++j) {
          const float gj = rounded<T>(g[j]), uj = rounded<T>(u[j]);
          store(out + at + j, gj * sigmoid(gj) * uj);
        }
      }
    });
  }
}

template <typename T>
void backward(ThreadPool& pool, const GateUpBackward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f = a.da.dim(1);
  Pieces scratch(a.scratch);
  const BackwardPieces s = backward_pieces(scratch, n, c, 2 * f, w.dtype());
  const float* gain = a.gain.empty() ? nullptr : a.gain.data<float>();
  const T *g = a.g.data<T>(), *u = a.u.data<T>(), *da = a.da.data<T>();
  const int64_t block = row_block(n);
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    pool.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T *dg = static_cast<T*>(s.dy) + i * 2 * f, *du = dg + f;
        const int64_t at = (r0 + i) * f;
        for (int64_t j = 0; j < f; ++j) {
          const float gj = load(g + at + j), uj = load(u + at + j), d = load(da + at + j);
          const float sig = sigmoid(gj);
          store(dg + j, d * uj * sig * (1.0f + gj * (1.0f - sig)));
          store(du + j, d * gj * sig);
        }
      }
    });
    matmul(pool, {.m = rows,
                  .n = c,
                  .k = 2 * f,
                  .a = s.dy,
                  .lda = 2 * f,
                  .b = w.data(),
                  .ldb = c,
                  .dtype = w.dtype(),
                  .c = s.dnormed,
                  .ldc = c});
    norm_backward_rows(pool, a.x.data<float>() + r0 * c, a.rstd.data<float>() + r0, gain, s.dnormed, rows, c,
                       a.dx.data<float>() + r0 * c);
  }
}

}  // namespace

int64_t CpuOps::scratch(const GateUpForward& a) const {
  Pieces p;
  forward_pieces(p, a.x.dim(0), a.x.dim(1), a.w->rows(), a.w->dtype());
  return p.used();
}
int64_t CpuOps::scratch(const GateUpBackward& a) const {
  Pieces p;
  backward_pieces(p, a.x.dim(0), a.x.dim(1), a.w->rows(), a.w->dtype());
  return p.used();
}

void CpuOps::gate_up_forward(const GateUpForward& a) {
  if (a.w->dtype() == DType::kF32)
    forward<float>(pool_, a);
  else
    forward<bf16>(pool_, a);
}
void CpuOps::gate_up_backward(const GateUpBackward& a) {
  if (a.w->dtype() == DType::kF32)
    backward<float>(pool_, a);
  else
    backward<bf16>(pool_, a);
}

}  // namespace gantrain
