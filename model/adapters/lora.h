// Low-rank adapters on a frozen Llama (LoRA, Hu et al., arXiv:2106.09685): W + scale * B A on some linear
// layers of every transformer layer. Only views: who trains or reads an adapter owns its tensors.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/ops/lora.h"
#include "model/config.h"

namespace gantrain {

enum class LoraTarget : uint8_t { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr size_t kLoraTargets = 7;
inline constexpr std::array<const char*, kLoraTargets> kLoraTargetNames{"q",    "k",  "v",   "o",
                                                                        "gate", "up", "down"};
// What the layer is called in a Hugging Face model, behind "model.layers.N.".
inline constexpr std::array<const char*, kLoraTargets> kLoraModules{
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

struct LoraShape {
  int64_t rank = 8;
  double alpha = 16.0;
  bool rslora = false;  // scale alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732) and not alpha / rank
  std::array<bool, kLoraTargets> targets{};
  bool operator==(const LoraShape&) const = default;
  float scale() const;
  bool has(LoraTarget t) const { return targets[static_cast<size_t>(t)]; }
};

// The linear layer of a target: its width and, in the stacked matrix it is part of, its rows.
struct LoraDims {
  int64_t in, out, first;
};
LoraDims lora_dims(const LlamaConfig& config, size_t target);
// "model.layers.3.self_attn.q_proj": the name of the adapted matrix, without ".weight".
std::string lora_module(size_t layer, size_t target);

// Refuses (fail) what cannot be: a rank below 1 or above 4096, no target, a scale that is not finite.
void check_lora(const LoraShape& shape, const std::string& where);

// One adapter as the model reads it: a (R, I), b (O, R) of each layer and target, empty where there is none;
// da and db, with backward alone, are added to.
struct LoraAdapter {
  struct Part {
    ConstTensor a, b;
    Tensor da, db;
  };
  LoraShape shape;
  std::vector<std::array<Part, kLoraTargets>> layers;
};

// An adapter with its own memory, its values not yet set: for reading one from a file, and its gradients
// where they are wanted (set to zero).
class OwnedLora {
 public:
  OwnedLora(Device& device, const LlamaConfig& config, const LoraShape& shape, bool gradients);
  OwnedLora(const OwnedLora&) = delete;
  OwnedLora& operator=(const OwnedLora&) = delete;
  const LoraAdapter& adapter() const { return adapter_; }
  Tensor a(size_t layer, size_t target) { return tensors_.at(index(layer, target)).view(); }
  Tensor b(size_t layer, size_t target) { return tensors_.at(index(layer, target) + 1).view(); }

 private:
  size_t index(size_t layer, size_t target) const { return first_.at(layer).at(target); }
  LoraAdapter adapter_;
  std::vector<OwnedTensor> tensors_;  // a, b and with gradients da, db of each
  std::vector<std::array<size_t, kLoraTargets>> first_;
};

}  // namespace gantrain
