// Embedding lookup with the soft prompt spliced in.
//   x[n] = table[tokens[n]]            if tokens[n] >= 0
//   x[n] = prompt[-1 - tokens[n]]      otherwise: row r of the prompt tensor is token -1-r
// Marks on output fields, here and in every contract: `=` overwritten, `+=` accumulated into.
#pragma once

#include "core/device.h"

namespace gantrain {

struct EmbedForward {
  const FrozenMatrix* table;  // (V, C)
  ConstTensor tokens;         // (N) i32
  ConstTensor prompt;         // (R, C) f32, may be empty if no token is negative
  Tensor x;                   // (N, C) f32  =
};
// The frozen table gets no gradient: only prompt rows do. Rows are added in order of n.
struct EmbedBackward {
  ConstTensor dx;      // (N, C) f32
  ConstTensor tokens;  // (N) i32
  Tensor dprompt;      // (R, C) f32  +=
};

void embed_forward(Device&, const EmbedForward&);
void embed_backward(Device&, const EmbedBackward&);
int64_t embed_forward_bytes(const EmbedForward&);
int64_t embed_backward_bytes(const EmbedBackward&);

}  // namespace gantrain
