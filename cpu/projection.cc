#include <algorithm>
#include <cstring>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/lora.h"
#include "cpu/rows.h"

namespace gantrain {

namespace {

struct ForwardPieces {
  bf16* input;  // a in another type than the weights': rounded to the input type of the product
  LoraScratch lora;
};
ForwardPieces forward_pieces(Pieces& p, const ProjectForward& a) {
  const int64_t in = a.a.dim(1), block = row_block(a.a.dim(0));
  void* input = a.a.dtype() == a.w->dtype() ? nullptr : p.take(block * in * dtype_size(DType::kBF16));
  return {static_cast<bf16*>(input),
          lora_scratch(p, a.lora, block, a.a.dtype() == DType::kF32 ? 0 : block * in, 0)};
}
struct BackwardPieces {
  bf16* input;  // bf16 only: dout rounded to the input type of the product, where it was not handed over so
  LoraScratch lora;
};
BackwardPieces backward_pieces(Pieces& p, const ProjectBackward& a) {
  const int64_t in = a.w->cols(), block = row_block(a.dout.dim(0));
  const bool f32 = a.w->dtype() == DType::kF32;
  void* input =
      f32 || !a.dout_bf16.empty() ? nullptr : p.take(block * a.w->rows() * dtype_size(DType::kBF16));
  // With adapters the sum of both products is rounded once.
  return {static_cast<bf16*>(input),
          lora_scratch(p, a.lora, block, f32 ? 0 : block * in, f32 ? 0 : block * in)};
}

// Rows [r0, r0 + rows) of a in f32.
const float* rows_in_f32(ThreadPool& pool, const ConstTensor& a, int64_t r0, int64_t rows, float* to) {
  const float* result = nullptr;
  const int64_t in = a.dim(1);
  with_kept(a.dtype(), [&]<typename S>(S*) { result = in_f32(pool, a.data<S>() + r0 * in, rows * in, to); });
  return result;
}

}  // namespace

int64_t CpuOps::scratch(const ProjectForward& a) const {
  Pieces p;
  forward_pieces(p, a);
  return p.used();
}
int64_t CpuOps::scratch(const ProjectBackward& a) const {
  Pieces p;
  backward_pieces(p, a);
  return p.used();
}

void CpuOps::project_forward(const ProjectForward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.a.dim(0), in = a.a.dim(1), c = w.rows();
  const float* residual = a.residual.data<float>();
  const float* bias = a.bias.empty() ? nullptr : a.bias.data<float>();
  float* out = a.out.data<float>();
  Pieces pieces(a.scratch);
  const ForwardPieces s = forward_pieces(pieces, a);
  if (!a.lora.empty()) lora_pack(a.lora, s.lora.packed);
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
  const int64_t block = round || !a.lora.empty() ? row_block(n) : n;
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    const void* input = static_cast<const std::byte*>(a.a.raw()) + r0 * in * dtype_size(a.a.dtype());
    if (round) {
      bf16* rounded = s.input;
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
    matmul(pool_, w,
           {.m = rows,
            .n = c,
            .k = in,
            .a = input,
            .lda = in,
            .transpose_b = true,
            .c = out + r0 * c,
            .ldc = c,
            .accumulate = true});
    if (!a.lora.empty())
      lora_forward_block(pool_, a.lora, s.lora, r0, rows, rows_in_f32(pool_, a.a, r0, rows, s.lora.x),
                         out + r0 * c, c);
  }
  if (!a.rstd.empty()) row_rstd({.x = a.out, .rstd = a.rstd, .eps = a.eps});
  rounded_rows(pool_, out, a.out_gain.empty() ? nullptr : a.out_gain.data<float>(), a.out_bf16);
}

void CpuOps::project_backward(const ProjectBackward& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t n = a.dout.dim(0), c = w.rows(), in = w.cols();
  const int64_t block = row_block(n), size = dtype_size(w.dtype());
  Pieces pieces(a.scratch);
  const BackwardPieces s = backward_pieces(pieces, a);
  if (!a.lora.empty()) lora_pack(a.lora, s.lora.packed);
  for (int64_t r0 = 0; r0 < n; r0 += block) {
    const int64_t rows = std::min(block, n - r0);
    const float* dout = a.dout.data<float>() + r0 * c;
    const void* input = dout;
    if (!a.dout_bf16.empty()) {
      input = a.dout_bf16.data<bf16>() + r0 * c;
    } else if (w.dtype() == DType::kBF16) {
      bf16* rounded = s.input;
      pool_.parallel_ranges(rows * c, 16384, [&](int64_t begin, int64_t end) {
        convert_to_bf16(dout + begin, rounded + begin, end - begin);
      });
      input = rounded;
    }
    void* da = static_cast<std::byte*>(a.da.raw()) + r0 * in * size;
    const bool sum_first = !a.lora.empty() && w.dtype() == DType::kBF16;
    matmul(pool_, w,
           {.m = rows,
            .n = in,
            .k = c,
            .a = input,
            .lda = c,
            .c = sum_first ? s.lora.y : da,
            .ldc = in,
            .c_dtype = sum_first ? DType::kF32 : w.dtype()});
    if (a.lora.empty()) continue;
    float* sum = sum_first ? s.lora.y : static_cast<float*>(da);
    lora_backward_block(pool_, a.lora, s.lora, r0, rows, rows_in_f32(pool_, a.a, r0, rows, s.lora.x), dout, c,
                        sum);
    if (sum_first)
      pool_.parallel_ranges(rows * in, 16384, [&](int64_t begin, int64_t end) {
        convert_to_bf16(sum + begin, static_cast<bf16*>(da) + begin, end - begin);
      });
  }
}

}  // namespace gantrain
