#include <algorithm>
#include <cstring>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"

namespace gantrain {

// a in another type than the weights': rounded to the input type of the product.
int64_t CpuOps::scratch(const ProjectForward& a) const {
  return a.a.dtype() == a.w->dtype() ? 0 : row_block(a.a.dim(0)) * a.a.dim(1) * dtype_size(a.w->dtype());
}
// bf16 only: dout rounded to the input type of the product, where it was not handed over so.
int64_t CpuOps::scratch(const ProjectBackward& a) const {
  return a.w->dtype() == DType::kF32 || !a.dout_bf16.empty()
             ? 0
             : row_block(a.dout.dim(0)) * a.w->rows() * dtype_size(DType::kBF16);
}

void CpuOps::project_forward(const ProjectForward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.a.dim(0), in = a.a.dim(1), c = w.rows();
  const float* residual = a.residual.data<float>();
  const float* bias = a.bias.empty() ? nullptr : a.bias.data<float>();
  float* out = a.out.data<float>();
  // The product adds onto residual + bias, in place.
  if (bias || out != residual) {
    pool_.parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (out != residual)
          std::memcpy(out + i * c, residual + i * c, static_cast<size_t>(c) * sizeof(float));
        if (bias)
          for (int64_t j = 0; j < c; ++j) out[i * c + j] += bias[j];
      }
    });
  }
  const bool round = a.a.dtype() != w.dtype();
  const int64_t block = round ? row_block(n) : n;
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    const void* input = a.a.raw();
    if (round) {
      bf16* rounded = static_cast<bf16*>(a.scratch.raw());
      const f16* kept = a.a.data<f16>() + r0 * in;
      pool_.parallel_ranges(rows * in, 16384, [&](int64_t begin, int64_t end) {
        constexpr int64_t kRun = 256;
        float run[kRun];
        for (int64_t i = begin; i < end; i += kRun) {
          const int64_t count = std::min(kRun, end - i);
          widen(kept + i, run, count);
          convert_to_bf16(run, rounded + i, count);
        }
      });
      input = rounded;
    }
    matmul(pool_, {.m = rows,
                   .n = c,
                   .k = in,
                   .a = input,
                   .lda = in,
                   .b = w.data(),
                   .ldb = in,
                   .transpose_b = true,
                   .dtype = w.dtype(),
                   .c = out + r0 * c,
                   .ldc = c,
                   .accumulate = true});
  }
  if (!a.rstd.empty())
    row_rstd({.x = a.out, .rstd = a.rstd, .eps = a.eps, .x_bf16 = a.out_bf16});
  else
    rounded_rows(pool_, out, a.out_bf16);
}

void CpuOps::project_backward(const ProjectBackward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.dout.dim(0), c = w.rows(), in = w.cols();
  const int64_t block = row_block(n), size = dtype_size(w.dtype());
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    const float* dout = a.dout.data<float>() + r0 * c;
    const void* input = dout;
    if (!a.dout_bf16.empty()) {
      input = a.dout_bf16.data<bf16>() + r0 * c;
    } else if (w.dtype() == DType::kBF16) {
      bf16* rounded = static_cast<bf16*>(a.scratch.raw());
      pool_.parallel_ranges(rows * c, 16384, [&](int64_t begin, int64_t end) {
        convert_to_bf16(dout + begin, rounded + begin, end - begin);
      });
      input = rounded;
    }
    matmul(pool_, {.m = rows,
                   .n = in,
                   .k = c,
                   .a = input,
                   .lda = c,
                   .b = w.data(),
                   .ldb = in,
                   .dtype = w.dtype(),
                   .c = static_cast<std::byte*>(a.da.raw()) + r0 * in * size,
                   .ldc = in,
                   .c_dtype = w.dtype()});
  }
}

}  // namespace gantrain
