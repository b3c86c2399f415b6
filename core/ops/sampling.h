// Drawing tokens. A row's draw depends on its own logits, settings, key and counter and on nothing else.
#pragma once

#include "core/device.h"

namespace gantrain {

// temperature 0: the lowest index of the largest logit. Otherwise p = softmax(l / temperature), restricted to
// the top_k most likely (0: all; ties by lower index), then to the smallest set whose probability reaches
// top_p (1: all). gumbel = false: one uniform u = Philox(key)(counter, 0)[0], inverse of the cumulative sum
// in index order. gumbel = true:  argmax of l / temperature + noise, noise as in HeadLoss (so training can
// recompute it).
struct Sample {
  ConstTensor logits;       // (S, V) f32
  ConstTensor temperature;  // (S) f32
  ConstTensor top_k;        // (S) i32
  ConstTensor top_p;        // (S) f32
  ConstTensor key;          // (S) i64
  ConstTensor counter;      // (S) i64
  bool gumbel = false;
  Tensor token;    // (S) i32  =
  Tensor logp;     // (S) f32  =  log softmax(l)[token]: temperature 1, nothing cut
  Tensor scratch;  // (bytes) u8
};

void sample(Device&, const Sample&);
int64_t sample_scratch(Device&, const Sample&);
int64_t sample_bytes(const Sample&);

}  // namespace gantrain
