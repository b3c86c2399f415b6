// The weights of a Llama on disk, whatever the format, seen through Hugging Face names, shapes and RoPE
// order.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/packed.h"
#include "core/tensor.h"
#include "model/config.h"

namespace gantrain {

struct TensorEntry {
  std::string name;         // Hugging Face name
  Shape shape;              // (out, in) for matrices
  std::string stored_type;  // as the file calls it
  int64_t stored_bytes;
};

class Weights {
 public:
  virtual ~Weights() = default;
  virtual const LlamaConfig& config() const = 0;
  virtual const std::string& path() const = 0;
  virtual std::string format() const = 0;  // "safetensors", "gguf" or "llama2c"
  virtual const std::vector<TensorEntry>& tensors() const = 0;
  virtual bool has(std::string_view name) const = 0;
  // Rows [begin, begin + n) as f32, dequantised, in Hugging Face's half-split RoPE order; a vector is one
  // row. Thread-safe.
  virtual void read_rows(std::string_view name, int64_t begin, int64_t n, float* out) const = 0;
  // The stored bytes if they are row-major f32, bf16 or f16 in that order and aligned for their type; else an
  // empty view.
  virtual ConstTensor direct(std::string_view name) const = 0;
  // Rows as they are stored, in that order, where they are packed blocks (`begin` is 0); else nothing.
  virtual std::optional<PackedRows> packed(std::string_view) const { return {}; }
  // What was accepted and not used, a line each.
  virtual std::vector<std::string> notes() const { return {}; }
};

// Opens a Hugging Face folder (config.json and *.safetensors), a .gguf file or a llama2.c version 0 .bin
// file, by content. Missing, unexpected and misshapen tensors are listed, all of them, in one Error.
std::unique_ptr<Weights> open_weights(const std::string& path);

// Every tensor a model of this shape has.
std::vector<TensorEntry> expected_tensors(const LlamaConfig& config);

}  // namespace gantrain
