// A model small enough to be the fixed part of an input: vocabulary 4, width 4, one layer, one head.
#pragma once

#include <string>
#include <vector>

#include "model/formats/safetensors.h"
#include "model/weights.h"
#include "tests/fuzz/fuzz.h"

namespace gantrain::fuzz {

inline constexpr const char* kTinyConfig =
    R"({"model_type":"llama","vocab_size":4,"hidden_size":4,"intermediate_size":4,"num_hidden_layers":1,)"
    R"("num_attention_heads":1,"num_key_value_heads":1,"max_position_embeddings":8,"tie_word_embeddings":true})";

// Every row of every tensor.
inline void read_all_rows(const Weights& weights) {
  std::vector<float> row;
  for (const TensorEntry& e : weights.tensors()) {
    const int64_t rows = e.shape.rank == 1 ? 1 : e.shape[0], cols = rows ? e.shape.count() / rows : 0;
    row.resize(static_cast<size_t>(cols));
    for (int64_t r = 0; r < rows; ++r) weights.read_rows(e.name, r, 1, row.data());
    const ConstTensor direct = weights.direct(e.name);
    if (direct.raw()) touch(direct.raw(), static_cast<size_t>(direct.bytes()));
  }
}

}  // namespace gantrain::fuzz
