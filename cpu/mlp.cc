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

constexpr int64_t kRun = 256;  // values of g and u at a time, in L1

// a = silu(g) u of one row. Gate and up values are rounded to what is stored before they meet, so that
// backward, which only has the stored ones, is the exact derivative of what was computed.
template <typename S, typename T>
void swiglu_row(float* g, float* u, int64_t f, S* g_out, S* u_out, T* out) {
  S held[2 * kRun];
  for (int64_t j0 = 0; j0 < f; j0 += kRun) {
    const int64_t count = std::min(kRun, f - j0);
    S *gs = g_out ? g_out + j0 : held, *us = u_out ? u_out + j0 : held + kRun;
    narrow(g + j0, gs, count);
    narrow(u + j0, us, count);
    widen(gs, g + j0, count);
    widen(us, u + j0, count);
    for (int64_t j = j0; j < j0 + count; ++j) store(out + j, g[j] * sigmoid(g[j]) * u[j]);
  }
}

template <typename S, typename T>
void forward(ThreadPool& pool, const GateUpForward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f = a.a.dim(1);
  Pieces scratch(a.scratch);
  const ForwardPieces s = forward_pieces(scratch, n, c, 2 * f, w.dtype());
  const float* gain = a.gain.empty() ? nullptr : a.gain.data<float>();
  const float* bias = a.bias.empty() ? nullptr : a.bias.data<float>();
  T* out = a.a.data<T>();
  S* gate_out = a.g.empty() ? nullptr : a.g.data<S>();
  S* up_out = a.u.empty() ? nullptr : a.u.data<S>();
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
        swiglu_row(g, u, f, gate_out ? gate_out + at : nullptr, up_out ? up_out + at : nullptr, out + at);
      }
    });
  }
}

// dg, then du of one row, and the sum of dg g + du u where it is wanted.
template <typename S, typename T>
void swiglu_backward_row(const S* g, const S* u, const T* da, int64_t f, T* dg, T* du, float* dot) {
  float gate[kRun], up[kRun];
  double sum = 0;
  for (int64_t j0 = 0; j0 < f; j0 += kRun) {
    const int64_t count = std::min(kRun, f - j0);
    widen(g + j0, gate, count);
    widen(u + j0, up, count);
    for (int64_t j = 0; j < count; ++j) {
      const float gj = gate[j], d = load(da + j0 + j), sig = sigmoid(gj);
      store(dg + j0 + j, d * up[j] * sig * (1.0f + gj * (1.0f - sig)));
      store(du + j0 + j, d * gj * sig);
    }
    if (dot)
      for (int64_t j = 0; j < count; ++j)
        sum +=
            static_cast<double>(load(dg + j0 + j)) * gate[j] + static_cast<double>(load(du + j0 + j)) * up[j];
  }
  if (dot) *dot = static_cast<float>(sum);
}

struct DownPieces {
  void *dout, *da;  // dout: bf16 only, where it was not handed over so
};
DownPieces down_pieces(Pieces& p, const DownBackward& a) {
  const int64_t block = row_block(a.dout.dim(0)), size = dtype_size(a.w->dtype());
  return {a.w->dtype() == DType::kF32 || !a.dout_bf16.empty() ? nullptr : p.take(block * a.w->rows() * size),
          p.take(block * a.w->cols() * size)};
}

template <typename S, typename T>
void backward(ThreadPool& pool, const DownBackward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.dout.dim(0), c = w.rows(), f = w.cols();
  Pieces scratch(a.scratch);
  const DownPieces s = down_pieces(scratch, a);
  const T* da = static_cast<const T*>(s.da);
  const int64_t block = row_block(n);
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    const void* input = a.dout.data<float>() + r0 * c;
    if (!a.dout_bf16.empty()) {
      input = a.dout_bf16.data<bf16>() + r0 * c;
    } else if (w.dtype() == DType::kBF16) {
      rounded_rows(pool, a.dout.data<float>() + r0 * c, Tensor(s.dout, DType::kBF16, {rows, c}));
      input = s.dout;
    }
    matmul(pool, {.m = rows,
                  .n = f,
                  .k = c,
                  .a = input,
                  .lda = c,
                  .b = w.data(),
                  .ldb = f,
                  .dtype = w.dtype(),
                  .c = s.da,
                  .ldc = f,
                  .c_dtype = w.dtype()});
    pool.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = r0 + i;
        T* dy = a.dy.data<T>() + row * 2 * f;
        swiglu_backward_row(a.g.data<S>() + row * f, a.u.data<S>() + row * f, da + i * f, f, dy, dy + f,
                            a.dot.empty() ? nullptr : a.dot.data<float>() + row);
      }
    });
  }
}

}  // namespace

int64_t CpuOps::scratch(const GateUpForward& a) const {
  Pieces p;
  forward_pieces(p, a.x.dim(0), a.x.dim(1), a.w->rows(), a.w->dtype());
  return p.used();
}
int64_t CpuOps::scratch(const DownBackward& a) const {
  Pieces p;
  down_pieces(p, a);
  return p.used();
}
int64_t CpuOps::scratch(const GateUpBackward& a) const {
  return row_block(a.x.dim(0)) * a.x.dim(1) * static_cast<int64_t>(sizeof(float));
}

void CpuOps::gate_up_forward(const GateUpForward& a) {
  // g and u not wanted: rounded as if they were kept, so that inference sees what training sees.
  const DType kept = a.g.empty() ? kept_type(a.a.dtype()) : a.g.dtype();
  with_pair(a.a.dtype(), kept, [&]<typename T, typename S>(T*, S*) { forward<S, T>(pool_, a); });
}
void CpuOps::down_backward(const DownBackward& a) {
  with_pair(a.dy.dtype(), a.g.dtype(), [&]<typename T, typename S>(T*, S*) { backward<S, T>(pool_, a); });
}
void CpuOps::gate_up_backward(const GateUpBackward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f2 = w.rows(), size = dtype_size(w.dtype());
  auto* dnormed = static_cast<float*>(a.scratch.raw());
  const int64_t block = row_block(n);
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    matmul(pool_, {.m = rows,
                   .n = c,
                   .k = f2,
                   .a = static_cast<const std::byte*>(a.dy.raw()) + r0 * f2 * size,
                   .lda = f2,
                   .b = w.data(),
                   .ldb = c,
                   .dtype = w.dtype(),
                   .c = dnormed,
                   .ldc = c});
    norm_backward_rows(pool_, a.x.data<float>() + r0 * c, a.rstd.data<float>() + r0,
                       a.gain.empty() ? nullptr : a.gain.data<float>(), dnormed, rows, c,
                       a.dx.data<float>() + r0 * c);
  }
  rounded_rows(pool_, a.dx.data<float>(), a.dx_bf16);
}

}  // namespace gantrain
