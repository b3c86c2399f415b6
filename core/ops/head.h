// The language-model head on chosen rows only, in chunks: no (tokens, V) buffer exists.
//   h = x[rows] * rstd * gain (final RMSNorm, statistic computed inside),   l = h w^T,   p = softmax(l)
#pragma once

#include "core/device.h"

namespace gantrain {

struct HeadLogits {
  ConstTensor x;          // (N, C) f32: the residual stream after the last layer
  ConstTensor rows;       // (R) i32 into x; a row may appear several times
  ConstTensor gain;       // (C) f32 or empty: folded into w
  const FrozenMatrix* w;  // (V, C)
  float eps = 1e-5f;
  Tensor logits;   // (R, V) f32  =
  Tensor scratch;  // (bytes) u8
};

// Loss and its gradient in one pass. The logit seed of row r is the sum of three optional parts:
//   cross-entropy       ce_weight[r] * (p - onehot(labels[r]))
//   KL to a reference   kl_weight[r] * p * (log(p / q) - KL),  KL = sum p log(p / q),  q =
//   softmax(l(reference[r])) Gumbel              (1/tau) * s * (t - <s, t>),  s = softmax((l + noise) / tau),
//   t = embedding . embedding_grad[r]
//                       (straight-through, Jang et al. 1611.01144: the backward of e = E[y] + (s - sg s) E)
// Noise: gumbel(Philox(key[r])(counter[r], j / 4)[j % 4]) for token j, the draw that `sample` used for that
// row. Each part is present if its weight (or embedding_grad) is. With top_k > 0, s runs over the top_k
// largest l + noise.
struct HeadLoss {
  ConstTensor x;          // (N, C) f32
  ConstTensor rows;       // (R) i32 into x; a row may appear several times
  ConstTensor gain;       // (C) f32 or empty: folded into w
  const FrozenMatrix* w;  // (V, C)
  float eps = 1e-5f;

  ConstTensor labels;     // (R) i32
  ConstTensor ce_weight;  // (R) f32 or empty: no cross-entropy seed

  ConstTensor reference;  // (R, C) f32 or empty: the reference policy's residual stream at the same rows
  ConstTensor kl_weight;  // (R) f32 or empty: KL is reported, no seed
  // The reference policy's own head, where it is not gain and w: both or neither.
  ConstTensor reference_gain{};               // (C) f32
  const FrozenMatrix* reference_w = nullptr;  // (V, C) of w's type

  const FrozenMatrix* embedding = nullptr;  // (V, C), with embedding_grad (may equal w)
  ConstTensor embedding_grad;  // (R, C) f32 or empty: dL/d(input embedding) of the token sampled at row r
  ConstTensor key;             // (R) i64, with embedding_grad
  ConstTensor counter;         // (R) i64, with embedding_grad
  float tau = 1.0f;
  int32_t top_k = 0;

  Tensor nll;      // (R) f32  =  -log p[labels[r]]
  Tensor kl;       // (R) f32  =  with reference
  Tensor argmax;   // (R) i32  =  lowest index of the largest logit; empty: not wanted
  Tensor dx;       // (N, C) f32  +=  empty: losses only; repeated rows add up in order of r
  Tensor scratch;  // (bytes) u8
  // For who trains them, with dx and f32 weights only; empty: not wanted.
  Tensor dw{};     // (V, C) f32  +=
  Tensor dgain{};  // (C) f32  +=
};

void head_logits(Device&, const HeadLogits&);
void head_loss(Device&, const HeadLoss&);
int64_t head_logits_scratch(Device&, const HeadLogits&);
int64_t head_loss_scratch(Device&, const HeadLoss&);
int64_t head_logits_bytes(const HeadLogits&);
int64_t head_logits_flops(const HeadLogits&);
int64_t head_loss_bytes(const HeadLoss&);
int64_t head_loss_flops(const HeadLoss&);

}  // namespace gantrain
