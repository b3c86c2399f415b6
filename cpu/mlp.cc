#include <algorithm>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/lora.h"
#include "cpu/normed_backward.h"
#include "cpu/rows.h"
#include "cpu/vec_math.h"

namespace gantrain {
namespace {

struct ForwardPieces {
  void* normed;
  float* product;
  LoraScratch lora;
};
ForwardPieces forward_pieces(Pieces& p, const GateUpForward& a) {
  const int64_t c = a.x.dim(1), block = row_block(a.x.dim(0));
  const DType t = a.w->dtype();
  void* normed = p.take(block * c * dtype_size(t));
  float* product = p.floats(block * a.w->rows());
  return {normed, product, lora_scratch(p, a.lora, block, t == DType::kF32 ? 0 : block * c, 0)};
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
  const ForwardPieces s = forward_pieces(scratch, a);
  if (!a.lora.empty()) lora_pack(a.lora, s.lora.packed);
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
    matmul(pool, w,
           {.m = rows,
            .n = 2 * f,
            .k = c,
            .a = s.normed,
            .lda = c,
            .transpose_b = true,
            .c = s.product,
            .ldc = 2 * f});
    if (!a.lora.empty())
      lora_forward_block(pool, a.lora, s.lora, r0, rows,
                         normed_f32(pool, a.x, a.rstd, gain, r0, rows, w.dtype(), s.normed, s.lora.x),
                         s.product, 2 * f);
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

// The down projection's own backward, into da.
ProjectBackward project_backward_of(const DownBackward& a, void* da, Tensor scratch) {
  return {.dout = a.dout,
          .w = a.w,
          .da = Tensor(da, a.w->dtype(), {a.dout.dim(0), a.w->cols()}),
          .scratch = scratch,
          .dout_bf16 = a.dout_bf16,
          .lora = a.lora,
          .a = a.a};
}
// A block's rows of it: the adapters, which are summed over all rows in blocks of their own, do without.
ProjectBackward rows_of(const DownBackward& a, void* da, Tensor scratch, int64_t r0, int64_t rows) {
  return {.dout = a.dout.rows(r0, rows),
          .w = a.w,
          .da = Tensor(da, a.w->dtype(), {rows, a.w->cols()}),
          .scratch = scratch,
          .dout_bf16 = a.dout_bf16.empty() ? ConstTensor{} : a.dout_bf16.rows(r0, rows)};
}
struct DownPieces {
  void* da;        // a block's, or with adapters all of it
  Tensor project;  // scratch of project_backward
};
DownPieces down_pieces(const CpuOps& ops, Pieces& p, const DownBackward& a) {
  const int64_t n = a.dout.dim(0), rows = a.lora.empty() ? row_block(n) : n;
  void* da = p.take(rows * a.w->cols() * dtype_size(a.w->dtype()));
  const int64_t bytes =
      ops.scratch(a.lora.empty() ? rows_of(a, da, {}, 0, rows) : project_backward_of(a, da, {}));
  return {da, bytes > 0 ? Tensor(p.take(bytes), DType::kU8, {bytes}) : Tensor{}};
}

}  // namespace

int64_t CpuOps::scratch(const GateUpForward& a) const {
  Pieces p;
  forward_pieces(p, a);
  return p.used();
}
int64_t CpuOps::scratch(const DownBackward& a) const {
  Pieces p;
  down_pieces(*this, p, a);
  return p.used();
}
int64_t CpuOps::scratch(const GateUpBackward& a) const { return normed_backward_scratch(a); }

void CpuOps::gate_up_forward(const GateUpForward& a) {
  // g and u not wanted: rounded as if they were kept, so that inference sees what training sees.
  const DType kept = a.g.empty() ? kept_type(a.a.dtype()) : a.g.dtype();
  with_pair(a.a.dtype(), kept, [&]<typename T, typename S>(T*, S*) { forward<S, T>(pool_, a); });
}
void CpuOps::swiglu(const Swiglu& a) {
  const int64_t n = a.a.dim(0), f = a.a.dim(1);
  with_pair(a.a.dtype(), a.g.dtype(), [&]<typename T, typename S>(T*, S*) {
    const S *g = a.g.data<S>(), *u = a.u.data<S>();
    T* out = a.a.data<T>();
    pool_.parallel_ranges(n * f, 4096, [&](int64_t begin, int64_t end) {
      float gate[kRun], up[kRun];
      for (int64_t j0 = begin; j0 < end; j0 += kRun) {
        const int64_t count = std::min(kRun, end - j0);
        widen(g + j0, gate, count);
        widen(u + j0, up, count);
        for (int64_t j = 0; j < count; ++j) store(out + j0 + j, gate[j] * sigmoid(gate[j]) * up[j]);
      }
    });
  });
}
void CpuOps::down_backward(const DownBackward& a) {
  const int64_t n = a.dout.dim(0), f = a.w->cols();
  Pieces scratch(a.scratch);
  const DownPieces s = down_pieces(*this, scratch, a);
  const int64_t block = a.lora.empty() ? row_block(n) : n;
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    project_backward(a.lora.empty() ? rows_of(a, s.da, s.project, r0, rows)
                                    : project_backward_of(a, s.da, s.project));
    with_pair(a.dy.dtype(), a.g.dtype(), [&]<typename T, typename S>(T*, S*) {
      pool_.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = r0 + i;
          T* dy = a.dy.data<T>() + row * 2 * f;
          swiglu_backward_row(a.g.data<S>() + row * f, a.u.data<S>() + row * f,
                              static_cast<const T*>(s.da) + i * f, f, dy, dy + f,
                              a.dot.empty() ? nullptr : a.dot.data<float>() + row);
        }
      });
    });
  }
}
void CpuOps::gate_up_backward(const GateUpBackward& a) { normed_backward(pool_, a); }

}  // namespace gantrain
