// RMSNorm scale, gate and up projection, SwiGLU (Shazeer 2020, arXiv:2002.05202) in one step; backward the
// other way round, from the down projection through SwiGLU, and from there to the stream.
// S and T, the types of what is kept and of gradients: see core/ops/qkv.h.
//   y = [g; u] = (x * rstd * gain) w^T + bias;   a = silu(g) * u,  silu(g) = g * sigmoid(g)
#pragma once

#include "core/device.h"
#include "core/ops/lora.h"

namespace gantrain {

struct GateUpForward {
  ConstTensor x;            // (N, C) f32
  ConstTensor rstd;         // (N) f32
  ConstTensor gain;         // (C) f32 or empty: folded into w
  const FrozenMatrix* w;    // (2F, C), rows: gate, then up
  ConstTensor bias;         // (2F) f32 or empty
  Tensor g;                 // (N, F) S  =  saved for backward; g and u both empty: not wanted
  Tensor u;                 // (N, F) S  =
  Tensor a;                 // (N, F) T  =
  Tensor scratch;           // (bytes) u8
  ConstTensor x_bf16 = {};  // (N, C) as in core/ops/qkv.h
  // Adapters of ranges of the outputs.
  std::span<const LoraPart> lora{};
};
// Through the down projection (core/ops/projection.h) and SwiGLU: da = dout w,
//   dg = da * u * sig(g) * (1 + g (1 - sig(g))), du = da * silu(g)
struct DownBackward {
  ConstTensor dout;            // (N, C) f32
  const FrozenMatrix* w;       // (C, F)
  ConstTensor g;               // (N, F) S
  ConstTensor u;               // (N, F) S
  Tensor dy;                   // (N, 2F) T  =  dg, then du
  Tensor scratch;              // (bytes) u8
  ConstTensor dout_bf16 = {};  // (N, C) as in ProjectBackward
  Tensor dot = {};             // (N) f32  =  sum over F of dg g + du u; empty: not wanted
  // Forward's adapters of the down projection, and its input (N, F) T: with adapters only.
  std::span<const LoraPartBackward> lora{};
  ConstTensor a{};
};
// dx += RMSNorm backward of (dy w * gain), which needs <dy, y> for the y before bias, as in QkvBackward.
struct GateUpBackward {
  ConstTensor x;          // (N, C) f32
  ConstTensor rstd;       // (N) f32
  ConstTensor gain;       // (C) f32 or empty
  const FrozenMatrix* w;  // (2F, C)
  ConstTensor dy;         // (N, 2F) T
  Tensor dx;              // (N, C) f32  +=
  Tensor scratch;         // (bytes) u8
  ConstTensor dot = {};   // (N) f32  DownBackward's, where forward had no bias; or empty
  Tensor dx_bf16 = {};    // (N, C) bf16  =  the new dx, rounded; empty: not wanted
  // Forward's adapters.
  std::span<const LoraPartBackward> lora{};
  Tensor dnormed{};  // (N, C) f32  =  dy w, as in QkvBackward; empty: not wanted
};
// a = silu(g) * u again, the same bits as gate_up_forward's: for an adapter behind it, whose backward reads
// a.
struct Swiglu {
  ConstTensor g;  // (N, F) S
  ConstTensor u;  // (N, F) S
  Tensor a;       // (N, F) T  =
};

void gate_up_forward(Device&, const GateUpForward&);
void down_backward(Device&, const DownBackward&);
void gate_up_backward(Device&, const GateUpBackward&);
void swiglu(Device&, const Swiglu&);
int64_t gate_up_forward_scratch(Device&, const GateUpForward&);
int64_t down_backward_scratch(Device&, const DownBackward&);
int64_t gate_up_backward_scratch(Device&, const GateUpBackward&);
int64_t gate_up_forward_bytes(const GateUpForward&);
int64_t gate_up_forward_flops(const GateUpForward&);
int64_t down_backward_bytes(const DownBackward&);
int64_t down_backward_flops(const DownBackward&);
int64_t gate_up_backward_bytes(const GateUpBackward&);
int64_t gate_up_backward_flops(const GateUpBackward&);
int64_t swiglu_bytes(const Swiglu&);

}  // namespace gantrain
