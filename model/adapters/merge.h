// An adapter in the shapes that other programs load: inside the weights, or as a GGUF adapter of llama.cpp.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/adapters/peft.h"
#include "model/weights.h"

namespace gantrain {

// A model's weights in f32, each changed by `change` and rounded once to dtype (f32 or bf16), as a Hugging
// Face folder: config.json, safetensors in shards of at most 1 GB, and the tokenizer's files where the base
// is such a folder. The folder must hold no config.json yet.
void write_model(const std::string& folder, const Weights& base, DType dtype,
                 const std::function<void(const TensorEntry&, std::vector<float>&)>& change);

// W + scale * B A of every adapted matrix, and all other weights as they are, by write_model.
void write_merged(const std::string& folder, const Weights& base, const PeftAdapter& adapter, DType dtype);

// The adapter as llama.cpp reads it (`--lora`): rows of q's and k's B in adjacent-pair order, and an alpha
// whose alpha / rank is the adapter's scale.
void write_lora_gguf(const std::string& path, const PeftAdapter& adapter, const LlamaConfig& config);
PeftAdapter read_lora_gguf(const std::string& path, const LlamaConfig& config);

}  // namespace gantrain
