// RMSNorm scale, QKV projection, bias, RoPE (Su et al., arXiv:2104.09864) in one step.
//   xhat = x * rstd * gain                       (gain empty: already folded into w)
//   [q; k; v] = xhat w^T + bias;  q and k are then rotated by position * inv_freq, half-split: pair (i, i +
//   D/2). The angles are the same in every layer, so their cos and sin come from an op of their own.
// T is w's type, f32 or bf16. S, in which q, k and v are kept until backward, is T, or f16 beside bf16
// weights: a device says which it likes (Device::kept_dtype). f16 has three more bits in the same two bytes
// and needs the values below 65504; gradients, which may be tiny, are never f16.
#pragma once

#include "core/device.h"
#include "core/ops/lora.h"

namespace gantrain {

// cos and sin of position * inv_freq, taken in f64 and rounded once.
struct RotaryTable {
  ConstTensor positions;  // (N) i32
  ConstTensor inv_freq;   // (D / 2) f32
  Tensor table;           // (N, D) f32  =  cos (D / 2), then sin
};
struct QkvForward {
  ConstTensor x;          // (N, C) f32
  ConstTensor rstd;       // (N) f32
  ConstTensor gain;       // (C) f32 or empty
  const FrozenMatrix* w;  // ((H + 2K) D, C), rows: q heads, k heads, v heads
  ConstTensor bias;       // ((H + 2K) D) f32 or empty
  ConstTensor rotary;     // (N, D) f32  rotary_table's
  Tensor q;               // (N, H, D) S  =
  Tensor k;               // (N, K, D) S  =
  Tensor v;               // (N, K, D) S  =
  Tensor scratch;         // (bytes) u8
  // (N, C) x * gain rounded to bf16, beside bf16 weights: a backend that scales rows by rstd after the
  // product may read it in the place of x and gain. Rounding before or after that scale costs the same.
  ConstTensor x_bf16 = {};
  // Adapters of ranges of the outputs.
  std::span<const LoraPart> lora{};
};
// dx += the RMSNorm backward of dxhat = dy w * gain, which needs sum_j dxhat_j x_j rstd. Without bias that is
// <dq, q> + <dk, k> + <dv, v>: <dy w, xhat> = <dy, w xhat>, and a rotation changes no dot product. With `dot`
// no pass over dxhat is needed; its rounding is within that of the product's own operands
// (docs/kernels/matmul.md).
struct QkvBackward {
  ConstTensor x;          // (N, C) f32
  ConstTensor rstd;       // (N) f32
  ConstTensor gain;       // (C) f32 or empty
  const FrozenMatrix* w;  // ((H + 2K) D, C)
  ConstTensor dy;         // (N, (H + 2K) D) T  attention_backward's
  Tensor dx;              // (N, C) f32  +=
  Tensor scratch;         // (bytes) u8
  ConstTensor dot = {};   // (N, P) f32  attention_backward's, where forward had no bias; or empty
  Tensor dx_bf16 = {};    // (N, C) bf16  =  the new dx, rounded; empty: not wanted
  // Forward's adapters.
  std::span<const LoraPartBackward> lora{};
  // For who trains the gain in front (f32 weights only): what its gradient is made of by rmsnorm_backward.
  // Empty: not wanted.
  Tensor dnormed{};  // (N, C) f32  =  dy w
};

void rotary_table(Device&, const RotaryTable&);
void qkv_forward(Device&, const QkvForward&);
void qkv_backward(Device&, const QkvBackward&);
// Scratch bytes a backend needs for arguments of these shapes (the scratch field itself may be empty).
int64_t qkv_forward_scratch(Device&, const QkvForward&);
int64_t qkv_backward_scratch(Device&, const QkvBackward&);
int64_t rotary_table_bytes(const RotaryTable&);
int64_t qkv_forward_bytes(const QkvForward&);
int64_t qkv_forward_flops(const QkvForward&);
int64_t qkv_backward_bytes(const QkvBackward&);
int64_t qkv_backward_flops(const QkvBackward&);

}  // namespace gantrain
