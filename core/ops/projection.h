// Projection back to the residual stream, for attention output and MLP down alike, and the next row
// statistic.
//   out = residual + a w^T + bias;   rstd = 1 / sqrt(mean(out^2) + eps)
#pragma once

#include "core/device.h"
#include "core/ops/lora.h"

namespace gantrain {

struct ProjectForward {
  ConstTensor a;          // (N, I) w's type T, or S of core/ops/qkv.h: then rounded to T on the way in
  const FrozenMatrix* w;  // (C, I)
  ConstTensor bias;       // (C) f32 or empty
  ConstTensor residual;   // (N, C) f32
  Tensor out;             // (N, C) f32  =  may be the same memory as residual
  Tensor rstd;            // (N) f32  =  empty: not wanted
  float eps = 1e-5f;
  Tensor scratch;  // (bytes) u8
  // out * out_gain rounded, for the product behind the next norm, which scales rows by rstd afterwards
  // (x_bf16 of core/ops/{qkv,mlp}.h); empty: not wanted.
  Tensor out_bf16 = {};       // (N, C) bf16  =
  ConstTensor out_gain = {};  // (C) f32, empty: all ones
  // Adapters of ranges of the outputs.
  std::span<const LoraPart> lora{};
};
// da = dout w. The residual's gradient is dout itself.
struct ProjectBackward {
  ConstTensor dout;            // (N, C) f32
  const FrozenMatrix* w;       // (C, I)
  Tensor da;                   // (N, I) T  =
  Tensor scratch;              // (bytes) u8
  ConstTensor dout_bf16 = {};  // (N, C) dout rounded, beside bf16 weights; empty: a backend rounds for itself
  // Forward's adapters.
  std::span<const LoraPartBackward> lora{};
  // (N, I) S or T: forward's input; with adapters only.
  ConstTensor a{};
};

void project_forward(Device&, const ProjectForward&);
void project_backward(Device&, const ProjectBackward&);
int64_t project_forward_scratch(Device&, const ProjectForward&);
int64_t project_backward_scratch(Device&, const ProjectBackward&);
int64_t project_forward_bytes(const ProjectForward&);
int64_t project_forward_flops(const ProjectForward&);
int64_t project_backward_bytes(const ProjectBackward&);
int64_t project_backward_flops(const ProjectBackward&);

}  // namespace gantrain
