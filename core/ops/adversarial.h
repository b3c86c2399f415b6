// The two players' losses. B pairs: Dr = D(x, y) on references, Df = D(x, yhat) on the model's own answers.
#pragma once

#include "core/device.h"

namespace gantrain {

// y[s] = mean over n in [offsets[s], offsets[s+1]) of x[n]; segments are not empty.
struct SegmentMeanForward {
  ConstTensor x;        // (N, C) f32
  ConstTensor offsets;  // (S + 1) i32
  Tensor y;             // (S, C) f32  =
};
struct SegmentMeanBackward {
  ConstTensor dy;       // (S, C) f32
  ConstTensor offsets;  // (S + 1) i32
  Tensor dx;            // (N, C) f32  +=
};

enum class PairLossKind : uint8_t { kRelativistic, kBce, kHinge };
// The discriminator's loss, mean over B, and its seeds (all carry 1/B).
//   relativistic: softplus(-(Dr-Df))                 (Jolicoeur-Martineau 1807.00734; R3GAN 2501.05441)
//   bce:          (1-smooth) softplus(-Dr) + smooth softplus(Dr) + softplus(Df)   labels 1 and 0, one-sided
//   smoothing hinge:        max(0, 1-Dr) + max(0, 1+Df)
// plus, for every kind,  lam * ((Dr-Dr')^2 + (Df-Df')^2)  with noisy copies Dr', Df' (approximated R1 and R2)
// and center * (Dr^2 + Df^2).  lam = gamma / (2 sigma^2).
struct PairLoss {
  ConstTensor dr, df;    // (B) f32
  ConstTensor dr2, df2;  // (B) f32: the noisy copies; both empty: no penalty
  PairLossKind kind = PairLossKind::kRelativistic;
  float lam = 0.0f;
  float center = 1e-3f;
  float smooth = 0.0f;
  Tensor loss;        // (1) f32  =
  Tensor ddr, ddf;    // (B) f32  =
  Tensor ddr2, ddf2;  // (B) f32  =  with the copies
};
// The generator's adversarial loss, mean over B, and its seed on Df; Dr is a constant.
//   relativistic: softplus(-(Df - Dr));  bce: softplus(-Df) (non-saturating);  hinge: -Df
struct GeneratorPairLoss {
  ConstTensor dr, df;  // (B) f32
  PairLossKind kind = PairLossKind::kRelativistic;
  Tensor loss;  // (1) f32  =
  Tensor ddf;   // (B) f32  =
};

// weight * log(rms(prompt) / reference_rms)^2, rms over the whole tensor: keeps a soft prompt near the
// embeddings.
struct RmsPenalty {
  ConstTensor prompt;  // (R, C) f32
  float reference_rms;
  float weight;
  Tensor loss;     // (1) f32  =
  Tensor rms;      // (1) f32  =
  Tensor dprompt;  // (R, C) f32  +=
};

void segment_mean_forward(Device&, const SegmentMeanForward&);
void segment_mean_backward(Device&, const SegmentMeanBackward&);
void pair_loss(Device&, const PairLoss&);
void generator_pair_loss(Device&, const GeneratorPairLoss&);
void rms_penalty(Device&, const RmsPenalty&);
int64_t segment_mean_forward_bytes(const SegmentMeanForward&);
int64_t segment_mean_backward_bytes(const SegmentMeanBackward&);
int64_t pair_loss_bytes(const PairLoss&);
int64_t generator_pair_loss_bytes(const GeneratorPairLoss&);
int64_t rms_penalty_bytes(const RmsPenalty&);

}  // namespace gantrain
