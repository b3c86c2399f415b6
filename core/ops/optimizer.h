// Optimiser steps over tensors, and the checks around them.
#pragma once

#include <span>

#include "core/device.h"

namespace gantrain {

// out[0] = sqrt(sum over all tensors of x^2), accumulated in f64 in a fixed order.
struct GradientNorm {
  std::span<const Tensor> grads;  // f32
  Tensor out;                     // (1) f32  =
};

// AdamW (Loshchilov & Hutter 1711.05101) over the tensors of one player, step counted from 1:
//   scale = min(1, clip / norm);  g = grad * scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   param -= lr * (m / (1-b1^step) / (sqrt(v / (1-b2^step)) + eps) + weight_decay * param)
// The norm is read where it lies, so no host waits for it. One that is not finite: nothing is written.
struct AdamW {
  std::span<const Tensor> params;  // any shapes, f32  +=
  std::span<const Tensor> grads;   // as params
  std::span<const Tensor> m, v;    // as params  +=
  ConstTensor norm;                // (1) f32, of gradient_norm; empty: no clipping and no refusal
  float clip;                      // largest norm; 0: no clipping
  float lr;
  float beta1, beta2, eps, weight_decay;
  int64_t step;
};

// ema = decay * ema + (1 - decay) * x, over many tensors
struct Ema {
  std::span<const ConstTensor> x;  // any shapes, f32
  float decay;
  std::span<const Tensor> ema;  // as x  +=
  ConstTensor norm;             // (1) f32 or empty; not finite: nothing is written, as by adamw
};

void gradient_norm(Device&, const GradientNorm&);
void adamw(Device&, const AdamW&);
void ema(Device&, const Ema&);
// True if every value is finite; f32 or bf16.
bool all_finite(Device&, ConstTensor);
int64_t gradient_norm_bytes(const GradientNorm&);
int64_t adamw_bytes(const AdamW&);
int64_t ema_bytes(const Ema&);

}  // namespace gantrain
