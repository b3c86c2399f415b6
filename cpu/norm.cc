#include <cmath>

#include "cpu/cpu_ops.h"
#include "cpu/rows.h"

namespace gantrain {
namespace {

template <typename T>
void normalise(const float* x, float rstd, const float* gain, int64_t c, T* out) {
  if (gain) {
    for (int64_t j = 0; j < c; ++j) store(out + j, x[j] * rstd * gain[j]);
  } else {
    for (int64_t j = 0; j < c; ++j) store(out + j, x[j] * rstd);
  }
}

}  // namespace

float row_rstd_of(const float* x, int64_t c, float eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < c; ++j) sum += x[j] * x[j];
  return 1.0f / std::sqrt(sum / static_cast<float>(c) + eps);
}

void normalise_row(const float* x, float rstd, const float* gain, int64_t c, DType dtype, void* out) {
  if (dtype == DType::kF32)
    normalise(x, rstd, gain, c, static_cast<float*>(out));
  else
    normalise(x, rstd, gain, c, static_cast<bf16*>(out));
}

void normalise_rows(ThreadPool& pool, const float* x, const float* rstd, const float* gain, int64_t n,
                    int64_t c, DType dtype, void* out) {
  pool.parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      normalise_row(x + i * c, rstd[i], gain, c, dtype,
                    static_cast<std::byte*>(out) + i * c * dtype_size(dtype));
  });
}

void norm_backward_row(const float* x, float rstd, const float* gain, const float* dxhat, int64_t c,
                       float* dx) {
  float dot = 0;
  if (gain) {
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < c; ++j) dot += dxhat[j] * gain[j] * x[j];
  } else {
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < c; ++j) dot += dxhat[j] * x[j];
  }
  const float mean = dot * rstd / static_cast<float>(c);
  if (gain) {
    for (int64_t j = 0; j < c; ++j) dx[j] += rstd * (dxhat[j] * gain[j] - x[j] * rstd * mean);
  } else {
    for (int64_t j = 0; j < c; ++j) dx[j] += rstd * (dxhat[j] - x[j] * rstd * mean);
  }
}

void norm_backward_rows(ThreadPool& pool, const float* x, const float* rstd, const float* gain,
                        const float* dxhat, int64_t n, int64_t c, float* dx) {
  pool.parallel_ranges(n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      norm_backward_row(x + i * c, rstd[i], gain, dxhat + i * c, c, dx + i * c);
  });
}

void rounded_rows(ThreadPool& pool, const float* x, const float* gain, Tensor out) {
  if (out.empty()) return;
  const int64_t c = out.dim(1);
  bf16* to = out.data<bf16>();
  pool.parallel_ranges(out.dim(0), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (gain)
        for (int64_t j = 0; j < c; ++j) store(to + i * c + j, x[i * c + j] * gain[j]);
      else
        convert_to_bf16(x + i * c, to + i * c, c);
    }
  });
}

void CpuOps::row_rstd(const RowRstd& a) {
  const float* x = a.x.data<float>();
  float* rstd = a.rstd.data<float>();
  const int64_t c = a.x.dim(1);
  pool_.parallel_ranges(a.x.dim(0), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rstd[i] = row_rstd_of(x + i * c, c, a.eps);
  });
  rounded_rows(pool_, x, a.gain.empty() ? nullptr : a.gain.data<float>(), a.x_bf16);
}

void CpuOps::rmsnorm_forward(const RmsNormForward& a) {
  const float* x = a.x.data<float>();
  const float* w = a.w.empty() ? nullptr : a.w.data<float>();
  float *y = a.y.data<float>(), *rstd = a.rstd.data<float>();
  const int64_t c = a.x.dim(1);
  pool_.parallel_ranges(a.x.dim(0), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rstd[i] = row_rstd_of(x + i * c, c, a.eps);
      normalise(x + i * c, rstd[i], w, c, y + i * c);
    }
  });
}

void CpuOps::rmsnorm_backward(const RmsNormBackward& a) {
  const float *x = a.x.data<float>(), *rstd = a.rstd.data<float>(), *dy = a.dy.data<float>();
  const float* w = a.w.empty() ? nullptr : a.w.data<float>();
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  if (!a.dx.empty()) norm_backward_rows(pool_, x, rstd, w, dy, n, c, a.dx.data<float>());
  if (a.dw.empty()) return;
  // A chunk owns columns and adds up all rows in order.
  float* dw = a.dw.data<float>();
  pool_.parallel_ranges(c, 64, [&](int64_t begin, int64_t end) {
    float sum[64] = {};
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = begin; j < end; ++j) sum[j - begin] += dy[i * c + j] * x[i * c + j] * rstd[i];
    }
    for (int64_t j = begin; j < end; ++j) dw[j] += sum[j - begin];
  });
}

}  // namespace gantrain
