// RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467):  y = x * rstd * w,  rstd = 1 / sqrt(mean(x^2) + eps)
#pragma once

#include "core/device.h"

namespace gantrain {

// The row statistic alone: what the frozen model's fused ops consume (gain folded or passed on).
struct RowRstd {
  ConstTensor x;  // (N, C) f32
  Tensor rstd;    // (N) f32  =
  float eps = 1e-5f;
  Tensor x_bf16 = {};     // (N, C) bf16  =  x * gain rounded, for a product that reads it; empty: not wanted
  ConstTensor gain = {};  // (C) f32, for x_bf16; empty: all ones
};
struct RmsNormForward {
  ConstTensor x;  // (N, C) f32
  ConstTensor w;  // (C) f32, empty: all ones
  Tensor y;       // (N, C) f32  =
  Tensor rstd;    // (N) f32  =  saved for backward
  float eps = 1e-5f;
};
// xhat = x * rstd;  dx += rstd * (dy*w - xhat * mean(dy*w*xhat));  dw += sum_n dy * xhat
struct RmsNormBackward {
  ConstTensor x;     // (N, C) f32
  ConstTensor w;     // (C) f32 or empty
  ConstTensor rstd;  // (N) f32
  ConstTensor dy;    // (N, C) f32
  Tensor dx;         // (N, C) f32  +=  empty: not wanted
  Tensor dw;         // (C) f32  +=  empty: not wanted
};

void row_rstd(Device&, const RowRstd&);
void rmsnorm_forward(Device&, const RmsNormForward&);
void rmsnorm_backward(Device&, const RmsNormBackward&);
int64_t row_rstd_bytes(const RowRstd&);
int64_t rmsnorm_forward_bytes(const RmsNormForward&);
int64_t rmsnorm_backward_bytes(const RmsNormBackward&);

}  // namespace gantrain
