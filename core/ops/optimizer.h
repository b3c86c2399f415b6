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

// AdamW (Loshchilov & Hutter 1711.05101), step counted from 1:
//   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   param -= lr * (m / (1-b1^step) / (sqrt(v / (1-b2^step)) + eps) + weight_decay * param)
struct AdamW {
  Tensor param;      // any shape, f32  +=
  ConstTensor grad;  // as param
  Tensor m, v;       // as param  +=
  float lr;
  float beta1, beta2, eps, weight_decay;
  float grad_scale;  // clipping: min(1, clip / norm)
  int64_t step;
};

// ema = decay * ema + (1 - decay) * x
struct Ema {
  ConstTensor x;  // any shape, f32
  float decay;
  Tensor ema;  // as x  +=
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
