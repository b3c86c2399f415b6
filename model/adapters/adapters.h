// Whatever is trained on a frozen Llama itself, as the model reads it (docs/methods.md). Only views: who
// trains or reads one of these owns its tensors. Gradients (d...) are added to by backward and empty without
// it.
#pragma once

#include <array>
#include <vector>

#include "core/ops/trainable.h"
#include "model/adapters/lora.h"

namespace gantrain {

class Llama;
struct KvCache;

// Keys and values in front of every layer's own (core/ops/prefix.h).
struct PrefixAdapter {
  ConstTensor table;  // (P, 2 L, K D) f32
  Tensor dtable;
  int64_t rows() const { return table.dim(0); }
};

// A bottleneck behind attention, the MLP, or both, of every layer (Houlsby et al., arXiv:1902.00751; behind
// the MLP alone it is Pfeiffer et al.'s, arXiv:2005.00247):  y += up act(down y + down_bias) + up_bias,  y
// what attention or the MLP is about to add to the residual stream.
struct BottleneckShape {
  int64_t width = 64;
  Activation activation = Activation::kGelu;
  bool attention = false, mlp = true;
  bool operator==(const BottleneckShape&) const = default;
  bool has(size_t place) const { return place == 0 ? attention : mlp; }  // 0: behind attention, 1: the MLP
};
struct BottleneckAdapter {
  struct Part {
    ConstTensor down, down_bias, up, up_bias;  // (R, C), (R), (C, R), (C) f32
    Tensor ddown, ddown_bias, dup, dup_bias;
  };
  BottleneckShape shape;
  std::vector<std::array<Part, 2>> layers;  // behind attention, behind the MLP; empty where there is none
};

// A model all of whose weights are trained: `llama` reads the trained values, f32, where they lie.
struct TrainedWeights {
  struct Layer {
    Tensor attention_gain, qkv, qkv_bias, o, o_bias, mlp_gain, gate_up, gate_up_bias, down, down_bias;
  };
  const Llama* llama = nullptr;
  // Gradients, in LlamaLayer's shapes; empty where the model has no such tensor. head: where it is no
  // embedding.
  std::vector<Layer> layers;
  Tensor embedding, head, final_gain;
};

// Keys and values of contexts that were run before, in front of every layer's own (model/context_cache.h).
// Nothing goes back to them.
struct CachedContexts {
  const KvCache* cache = nullptr;
  ConstTensor slots;  // (rows of the cache) i32: the front row a cached row becomes, or negative
  int32_t rows = 0;   // front rows
};

// What a forward runs with; at most one of them is there.
struct Adapters {
  const LoraAdapter* lora = nullptr;
  const PrefixAdapter* prefix = nullptr;
  const BottleneckAdapter* bottleneck = nullptr;
  const TrainedWeights* weights = nullptr;
  CachedContexts contexts = {};
  // Of the low-rank adapters' inputs, in training: each layer and target draws by a key of its own.
  float dropout = 0.0f;
  uint64_t dropout_key = 0;

  Adapters() = default;
  Adapters(std::nullptr_t) {}                              // NOLINT: implicit on purpose, as below
  Adapters(const LoraAdapter* a) : lora(a) {}              // NOLINT
  Adapters(const PrefixAdapter* a) : prefix(a) {}          // NOLINT
  Adapters(const BottleneckAdapter* a) : bottleneck(a) {}  // NOLINT
  Adapters(const TrainedWeights* a) : weights(a) {}        // NOLINT
  Adapters(const CachedContexts& c) : contexts(c) {}       // NOLINT
  explicit operator bool() const { return lora || prefix || bottleneck || weights; }
  // Rows of keys and values that stand before a batch's own.
  int32_t prefix_rows() const { return prefix ? static_cast<int32_t>(prefix->rows()) : contexts.rows; }
  // The model that answers.
  const Llama& on(const Llama& base) const { return weights ? *weights->llama : base; }
};

}  // namespace gantrain
