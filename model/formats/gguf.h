// GGUF version 2 and 3 (llama.cpp's format): metadata, tensor table, dequantisation of F32, F16, BF16, Q8_0,
// Q4_0, Q4_1, Q4_K, Q6_K.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/packed.h"
#include "core/tensor.h"
#include "model/formats/mapped_file.h"

namespace gantrain {

enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ6_K = 14,
  kBF16 = 30
};
const char* gguf_type_name(GgufType type);

class GgufFile {
 public:
  struct Tensor {
    std::string name;
    GgufType type;
    Shape shape;  // row-major: GGUF's ne[0] is the last extent
    int64_t offset = 0, bytes = 0;
  };
  // Checks every length and offset; throws Error naming file and place.
  explicit GgufFile(const std::string& path);
  static bool has_magic(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(std::string_view name) const;
  // Rows [begin, begin + n) of the last extent's width as f32.
  void read_rows(const Tensor& tensor, int64_t begin, int64_t n, float* out) const;
  // The blocks' type, and where a row of them lies; nothing for F32, F16 and BF16.
  static std::optional<PackedType> packed_type(const Tensor& tensor);
  const void* packed_row(const Tensor& tensor, int64_t row) const;
  // The bytes of an F32, F16 or BF16 tensor; empty for the others.
  ConstTensor direct(const Tensor& tensor) const;

  // Metadata. The getters throw Error naming the key, what was expected and what is there.
  bool has(std::string_view key) const { return values_.find(key) != values_.end(); }
  std::vector<std::string> keys() const;
  std::string get_string(std::string_view key) const;
  int64_t get_int(std::string_view key) const;
  double get_float(std::string_view key) const;
  bool get_bool(std::string_view key) const;
  const std::vector<std::string>& get_strings(std::string_view key) const;
  const std::vector<double>& get_floats(std::string_view key) const;
  const std::vector<int64_t>& get_ints(std::string_view key) const;

 private:
  using Value = std::variant<int64_t, double, bool, std::string, std::vector<std::string>,
                             std::vector<double>, std::vector<int64_t>>;
  template <typename T>
  const T& get(std::string_view key, const char* expected) const;

  std::unique_ptr<MappedFile> file_;
  std::map<std::string, Value, std::less<>> values_;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace gantrain
