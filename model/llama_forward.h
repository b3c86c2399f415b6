// The frozen transformer, forward and backward: two mirror-image lists of fused ops.
#pragma once

#include "model/activations.h"
#include "model/batch.h"

namespace gantrain {

// Keys and values of rows already computed, per layer: (M, K, D) T each.
struct KvCache {
  std::vector<OwnedTensor> k, v;
  KvCache(Device& device, const Llama& llama, int64_t slots);
};

// A packed batch on the device.
struct DeviceBatch {
  const PackedBatch* host;
  BatchEnds ends;
  OwnedTensor tokens, positions;  // (N) i32
  // Where some rows are read: those (R), and each row's place among them (N), R for the others.
  OwnedTensor read, places;
  // The rows whose gradient is wanted, if not all, and their tokens: (W) i32.
  OwnedTensor wanted, wanted_tokens;
  DeviceBatch(Device& device, const PackedBatch& batch, BatchEnds ends = {});
};

// A batch without segments, behind the keys that these put in front of its own.
PackedBatch batch_behind(const Adapters& adapters);

// Runs `acts.layers.size()` layers. prompt: (R, C) f32 for negative tokens, or empty. The result is
// acts.x_out, of the rows that the batch's ends name; the head (final norm, logits, loss) is a separate op on
// chosen rows of it. acts were taken for the same ends. With `cache`, keys and values are also appended at
// `slots`, and those of a prefix are copied to the first rows.
struct ForwardArgs {
  const Llama* llama;
  const DeviceBatch* batch;
  ConstTensor prompt;
  Activations* acts;
  KvCache* cache = nullptr;
  ConstTensor slots;  // (N) i32, with cache
  Adapters adapters;  // none: the base alone
};
void llama_forward(Device& device, const ForwardArgs& args);

// From acts.dx_out = dL/d(acts.x_out) to dL/d(embedding rows): acts.dx_wanted of the batch's wanted rows, or
// acts.dx where they are all (dx and dx_out may be one tensor). Gradients of forward's adapters are added to
// their own. The base's weights get none: no such path exists. Trained weights get theirs, but for the head's
// and the final gain's (HeadLoss).
void llama_backward(Device& device, const ForwardArgs& args);

// One decoding step: S new tokens, each attending through `plan` to the cache (its own row appended first).
// Writes the residual stream after the last layer to acts.x_out. A prefix's keys and values are in the cache
// already.
void llama_decode(Device& device, const Llama& llama, ConstTensor tokens, ConstTensor positions,
                  ConstTensor slots, const AttentionPlan& plan, ConstTensor prompt, KvCache& cache,
                  Activations& acts, const Adapters& adapters = {});

// Throws Error naming layer and op of the first value that is not finite; used when a loss is not finite.
void find_non_finite(Device& device, const ForwardArgs& args);

}  // namespace gantrain
