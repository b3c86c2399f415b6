// Adapter folders of PEFT: adapter_config.json and adapter_model.safetensors. Read are PROMPT_TUNING,
// P_TUNING (the same table), PREFIX_TUNING (its output, with a projection or without), LORA, and this
// program's own BOTTLENECK; whatever would change the model in a way this engine does not is refused by name.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/adapters/bottleneck.h"
#include "model/adapters/lora.h"

namespace gantrain {

inline constexpr const char* kPrefixType = "PREFIX_TUNING";
inline constexpr const char* kBottleneckType = "BOTTLENECK";

// On the host, as the file has it.
struct PeftAdapter {
  struct Pair {
    std::vector<float> a, b;  // (R, I), (O, R)
  };
  std::string type;            // peft_type
  std::vector<float> prompt;   // (P, C) of a soft prompt
  int64_t encoder_hidden = 0;  // P_TUNING: width of the MLP it came from, for its configuration alone
  std::vector<float> prefix;   // (P, 2 L, K D): core/ops/prefix.h
  LoraShape shape;             // LORA
  std::vector<std::array<Pair, kLoraTargets>> layers;
  BottleneckShape bottleneck;
  BottleneckLayers bottlenecks;
  bool is_lora() const { return type == "LORA"; }
  bool is_prefix() const { return type == kPrefixType; }
  bool is_bottleneck() const { return type == kBottleneckType; }
  bool on_model() const { return is_lora() || is_prefix() || is_bottleneck(); }  // and not a prompt before it
};

// Throws Error naming file and place if the folder is no adapter of a model of this shape.
PeftAdapter read_peft(const std::string& folder, const LlamaConfig& config);

// The key of a tensor in adapter_model.safetensors.
std::string peft_key(size_t layer, size_t target, bool b);
inline constexpr const char* kPeftPromptKey = "prompt_embeddings";

// Writes the folder, which must not hold an adapter yet. base: what base_model_name_or_path says.
void write_peft(const std::string& folder, const PeftAdapter& adapter, const LlamaConfig& config,
                const std::string& base);

std::unique_ptr<OwnedLora> lora_on_device(Device& device, const LlamaConfig& config,
                                          const PeftAdapter& adapter, bool gradients);
// An adapter's values back from the device.
PeftAdapter lora_from_device(Device& device, const LoraAdapter& adapter);

}  // namespace gantrain
