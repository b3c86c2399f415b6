// A checkpoint: one safetensors file of named tensors and named JSON texts, with a checksum on each of them.
// Any safetensors reader can open it.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "model/formats/safetensors.h"

namespace gantrain {

class CheckpointWriter {
 public:
  // Host memory; the view must stay valid until commit(). Names are unique and not empty.
  void add(const std::string& name, ConstTensor tensor);
  // The same for values that are copied now, as a vector (n).
  void add_values(const std::string& name, std::span<const float> values);
  void add_values(const std::string& name, std::span<const int32_t> values);
  void add_values(const std::string& name, std::span<const int64_t> values);
  void add_values(const std::string& name, std::span<const uint8_t> values);
  // f32 values of a shape, copied now.
  void add_copy(const std::string& name, Shape shape, std::span<const float> values);
  // A JSON text, checked to be one.
  void add_json(const std::string& name, const std::string& text);

  // Written to a temporary name, synced, renamed, folder synced: after a crash `path` is the old file or the
  // new one. Throws Error and leaves `path` as it was when that fails (a full disk).
  void commit(const std::string& path) const;

 private:
  template <typename T>
  void copy_values(const std::string& name, std::span<const T> values);
  void check_name(const std::string& name) const;

  std::vector<NamedTensor> tensors_;
  std::map<std::string, std::string> texts_;
  std::vector<std::unique_ptr<unsigned char[]>> copies_;
};

class CheckpointReader {
 public:
  // Reads and checks everything: format, version, every checksum. Throws Error naming the file and what is
  // damaged.
  explicit CheckpointReader(const std::string& path);

  const std::string& path() const { return file_.path(); }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  std::vector<std::string> tensor_names() const;
  std::vector<std::string> json_names() const;
  // Throws Error when there is no such tensor.
  ConstTensor tensor(const std::string& name) const;
  // Copies into host memory; throws Error when type or shape differ (another configuration wrote it).
  void read_into(const std::string& name, Tensor into) const;
  std::vector<float> floats(const std::string& name) const;
  std::vector<int32_t> ints(const std::string& name) const;
  std::vector<int64_t> longs(const std::string& name) const;
  std::vector<uint8_t> bytes(const std::string& name) const;
  const std::string& json(const std::string& name) const;
  bool has_json(const std::string& name) const { return texts_.contains(name); }

 private:
  template <typename T>
  std::vector<T> values(const std::string& name) const;

  SafetensorsFile file_;
  std::map<std::string, std::string> texts_;
};

}  // namespace gantrain
