// Launches that several families share: normalised rows before a product, and RMSNorm's backward behind one.
#pragma once

#include <cuda_bf16.h>

#include "core/tensor.h"
#include "cuda/runtime/context.h"

namespace gantrain::cuda {

// y (n, c) of `type` (f32, bf16) = x[rows] * rstd * gain; rows null: 0 .. n-1; gain may be null.
struct NormaliseRows {
  const float* x;
  const int32_t* rows;
  const float* gain;
  float* rstd;  // (n): written with `statistic`, read without
  bool statistic;
  float eps;
  DType type;
  void* y;
  int64_t n, c;
};
void normalise_rows(const Context&, const NormaliseRows&);
// rstd[n] = 1 / sqrt(mean(x[n]^2) + eps); rounded (n, c) = x * gain, or null; gain may be null.
void row_statistic(const Context&, const float* x, float* rstd, __nv_bfloat16* rounded, const float* gain,
                   int64_t n, int64_t c, float eps);
// dx += the gradient of RMSNorm, all (n, c) f32.
void norm_backward_rows(const Context&, const float* x, const float* rstd, const float* gain, const float* dy,
                        float* dx, int64_t n, int64_t c);
// dw (c) += sum over n of dy * x[rows] * rstd; rows null: 0 .. n-1.
void gain_gradient(const Context&, const float* x, const int32_t* rows, const float* rstd, const float* dy,
                   float* dw, int64_t n, int64_t c);

}  // namespace gantrain::cuda
