#include "core/ops/trainable.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/rng.h"
#include "cpu/cpu_ops.h"
#include "cpu/matmul.h"
#include "cpu/vec_math.h"

namespace gantrain {
namespace {

constexpr int64_t kGrain = 8192;  // elements of one chunk of elementwise work

// dw += dy^T x is cut into tiles of dw; each runs over the rows in blocks of this many, in order. Fixed, so
// that only one product a tile shape is compiled whatever N is: the last block is padded with zeros.
constexpr int64_t kRowBlock = 64, kTileO = 64, kTileI = 384;

constexpr float kGeluScale = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;

template <Activation kKind>
float activate(float x) {
  if constexpr (kKind == Activation::kSilu) return x * sigmoid(x);
  if constexpr (kKind == Activation::kGelu)
    return 0.5f * x * (1.0f + fast_tanh(kGeluScale * (x + kGeluCubic * x * x * x)));
  if constexpr (kKind == Activation::kTanh) return fast_tanh(x);
}
template <Activation kKind>
float slope(float x) {
  if constexpr (kKind == Activation::kSilu) {
    const float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
  if constexpr (kKind == Activation::kGelu) {
    const float t = fast_tanh(kGeluScale * (x + kGeluCubic * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * kGeluScale * (1.0f + 3.0f * kGeluCubic * x * x);
  }
  if constexpr (kKind == Activation::kTanh) {
    const float t = fast_tanh(x);
    return 1.0f - t * t;
  }
}
template <typename F>
void with_activation(Activation kind, F f) {
  switch (kind) {
    case Activation::kSilu:
      return f.template operator()<Activation::kSilu>();
    case Activation::kGelu:
      return f.template operator()<Activation::kGelu>();
    case Activation::kTanh:
      return f.template operator()<Activation::kTanh>();
  }
}

void check_rows(const char* op, ConstTensor rows, int64_t limit) {
  const int32_t* r = rows.data<int32_t>();
  for (int64_t i = 0; i < rows.count(); ++i)
    GT_CHECK(r[i] >= 0 && r[i] < limit, "{}: rows[{}] is {}, the tensor has {} rows", op, i, r[i], limit);
}

// A block of rows as it is, or its copy padded with zeros to kRowBlock rows.
const float* row_block(const float* x, int64_t rows, int64_t columns, int slot) {
  if (rows == kRowBlock) return x;
  float* padded = thread_scratch(slot, kRowBlock * columns);
  std::memcpy(padded, x, static_cast<size_t>(rows * columns) * sizeof(float));
  std::memset(padded + rows * columns, 0, static_cast<size_t>((kRowBlock - rows) * columns) * sizeof(float));
  return padded;
}

}  // namespace

void CpuOps::linear_forward(const LinearForward& p) {
  const int64_t n = p.x.dim(0), in = p.x.dim(1), out = p.w.dim(0);
  if (n == 0 || out == 0) return;
  float* y = p.y.data<float>();
  matmul(pool_, {.m = n,
                 .n = out,
                 .k = in,
                 .a = p.x.raw(),
                 .lda = in,
                 .b = p.w.raw(),
                 .ldb = in,
                 .transpose_b = true,
                 .c = y,
                 .ldc = out});
  if (p.b.empty()) return;
  const float* b = p.b.data<float>();
  pool_.parallel_ranges(n, std::max<int64_t>(1, kGrain / out), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t o = 0; o < out; ++o) y[r * out + o] += b[o];
  });
}

void CpuOps::linear_backward(const LinearBackward& p) {
  const int64_t n = p.x.dim(0), in = p.x.dim(1), out = p.w.dim(0);
  if (n == 0 || out == 0) return;
  const float *x = p.x.data<float>(), *dy = p.dy.data<float>();
  if (p.dx)
    matmul(pool_, {.m = n,
                   .n = in,
                   .k = out,
                   .a = dy,
                   .lda = out,
                   .b = p.w.raw(),
                   .ldb = in,
                   .c = p.dx.raw(),
                   .ldc = in,
                   .accumulate = true});
  if (p.dw) {
    float* dw = p.dw.data<float>();
    const int64_t tiles_o = (out + kTileO - 1) / kTileO, tiles_i = (in + kTileI - 1) / kTileI;
    pool_.parallel_for(tiles_o * tiles_i, [&](int64_t tile) {
      const int64_t o0 = tile % tiles_o * kTileO, i0 = tile / tiles_o * kTileI;
      const int64_t height = std::min(kTileO, out - o0), width = std::min(kTileI, in - i0);
      for (int64_t r = 0; r < n; r += kRowBlock) {
        const int64_t rows = std::min(kRowBlock, n - r);
        const float* a = row_block(dy + r * out, rows, out, 5);
        const float* b = row_block(x + r * in, rows, in, 6);
        matmul_serial(true, false, height, width, kRowBlock, a + o0, out, b + i0, in, dw + o0 * in + i0, in,
                      true);
      }
    });
  }
  if (p.db) {
    float* db = p.db.data<float>();
    pool_.parallel_ranges(out, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < n; ++r)
        for (int64_t o = begin; o < end; ++o) db[o] += dy[r * out + o];
    });
  }
}

void CpuOps::activation_forward(const ActivationForward& p) {
  const float* x = p.x.data<float>();
  float* y = p.y.data<float>();
  with_activation(p.kind, [&]<Activation kKind>() {
    pool_.parallel_ranges(p.x.count(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = activate<kKind>(x[i]);
    });
  });
}

void CpuOps::activation_backward(const ActivationBackward& p) {
  const float *x = p.x.data<float>(), *dy = p.dy.data<float>();
  float* dx = p.dx.data<float>();
  with_activation(p.kind, [&]<Activation kKind>() {
    pool_.parallel_ranges(p.x.count(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) dx[i] += dy[i] * slope<kKind>(x[i]);
    });
  });
}

void CpuOps::broadcast_add_forward(const BroadcastAddForward& p) {
  const int64_t batch = p.y.dim(0), rows = p.y.dim(1), width = p.y.dim(2);
  const float *a = p.a.data<float>(), *c = p.c.data<float>();
  float* y = p.y.data<float>();
  pool_.parallel_for(batch, [&](int64_t b) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < width; ++j) y[(b * rows + r) * width + j] = a[r * width + j] + c[b * width + j];
  });
}

void CpuOps::broadcast_add_backward(const BroadcastAddBackward& p) {
  const int64_t batch = p.dy.dim(0), rows = p.dy.dim(1), width = p.dy.dim(2);
  const float* dy = p.dy.data<float>();
  float *da = p.da.data<float>(), *dc = p.dc.data<float>();
  pool_.parallel_for(rows, [&](int64_t r) {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t j = 0; j < width; ++j) da[r * width + j] += dy[(b * rows + r) * width + j];
  });
  pool_.parallel_for(batch, [&](int64_t b) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < width; ++j) dc[b * width + j] += dy[(b * rows + r) * width + j];
  });
}

void CpuOps::scaled_add_forward(const ScaledAddForward& p) {
  const int64_t batch = p.x.dim(0), size = p.x.dim(1) * p.x.dim(2);
  const float *base = p.base.data<float>(), *x = p.x.data<float>();
  const float s = p.s.data<float>()[0];
  float* y = p.y.data<float>();
  pool_.parallel_ranges(batch * size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = base[i % size] + s * x[i];
  });
}

void CpuOps::scaled_add_backward(const ScaledAddBackward& p) {
  const int64_t batch = p.x.dim(0), size = p.x.dim(1) * p.x.dim(2), count = batch * size;
  const float *x = p.x.data<float>(), *dy = p.dy.data<float>();
  const float s = p.s.data<float>()[0];
  float *dbase = p.dbase.data<float>(), *dx = p.dx.data<float>();
  pool_.parallel_ranges(size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = begin; i < end; ++i) dbase[i] += dy[b * size + i];
  });
  std::vector<double> partial(static_cast<size_t>((count + kGrain - 1) / kGrain), 0.0);
  pool_.parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      dx[i] += s * dy[i];
      sum += static_cast<double>(dy[i]) * static_cast<double>(x[i]);
    }
    partial[static_cast<size_t>(begin / kGrain)] = sum;
  });
  double ds = 0.0;
  for (double sum : partial) ds += sum;
  p.ds.data<float>()[0] += static_cast<float>(ds);
}

void CpuOps::gather_rows(const GatherRows& p) {
  check_rows("gather_rows", p.rows, p.x.dim(0));
  const int64_t width = p.x.dim(1);
  const float* x = p.x.data<float>();
  const int32_t* rows = p.rows.data<int32_t>();
  float* y = p.y.data<float>();
  pool_.parallel_ranges(p.rows.count(), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)),
                        [&](int64_t begin, int64_t end) {
                          for (int64_t r = begin; r < end; ++r)
                            std::memcpy(y + r * width, x + rows[r] * width,
                                        static_cast<size_t>(width) * sizeof(float));
                        });
}

void CpuOps::scatter_add_rows(const ScatterAddRows& p) {
  check_rows("scatter_add_rows", p.rows, p.dx.dim(0));
  const int64_t width = p.dx.dim(1), count = p.rows.count();
  const float* dy = p.dy.data<float>();
  const int32_t* rows = p.rows.data<int32_t>();
  float* dx = p.dx.data<float>();
  // A thread owns columns, not rows: rows that repeat are added in order of r.
  pool_.parallel_ranges(width, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t j = begin; j < end; ++j) dx[rows[r] * width + j] += dy[r * width + j];
  });
}

void CpuOps::axpy(const Axpy& p) {
  const float* x = p.x.data<float>();
  float* y = p.y.data<float>();
  pool_.parallel_ranges(p.x.count(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] += p.a * x[i];
  });
}

void CpuOps::add_noise(const AddNoise& p) {
  const int64_t count = p.x.count();
  const float* x = p.x.data<float>();
  float* y = p.y.data<float>();
  const Philox philox{p.key};
  static_assert(kGrain % 4 == 0, "a chunk holds whole draws of four normals");
  pool_.parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 4) {
      const auto words = philox(p.counter, static_cast<uint64_t>((p.first + i) / 4));
      const auto first = normal_pair(words[0], words[1]), second = normal_pair(words[2], words[3]);
      const std::array<float, 4> normal{first[0], first[1], second[0], second[1]};
      for (int64_t j = i; j < std::min(i + 4, end); ++j)
        y[j] = x[j] + p.sigma * normal[static_cast<size_t>(j - i)];
    }
  });
}

}  // namespace gantrain
