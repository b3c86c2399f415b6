// Prefix tuning (Li & Liang, arXiv:2101.00190; P-tuning v2, arXiv:2110.07602): trained keys and values of P
// virtual positions in front of every layer's own. The table is laid out as PEFT has it: row p holds, for
// each layer, its key and then its value, K heads of D each. The keys are as attention reads them: RoPE does
// not turn them.
//   k[p] = table[p, 2 layer],   v[p] = table[p, 2 layer + 1],   rounded once to S
// S and T, the types of what is kept and of gradients: see core/ops/qkv.h.
#pragma once

#include "core/device.h"

namespace gantrain {

struct PrefixForward {
  ConstTensor table;  // (P, 2 L, K D) f32
  int64_t layer;
  Tensor k;  // (P, K, D) S  =
  Tensor v;  // (P, K, D) S  =
};
struct PrefixBackward {
  ConstTensor dk;  // (P, K, D) T
  ConstTensor dv;  // (P, K, D) T
  int64_t layer;
  Tensor dtable;  // (P, 2 L, K D) f32  +=  the layer's part of it
};

void prefix_forward(Device&, const PrefixForward&);
void prefix_backward(Device&, const PrefixBackward&);
int64_t prefix_forward_bytes(const PrefixForward&);
int64_t prefix_backward_bytes(const PrefixBackward&);

}  // namespace gantrain
