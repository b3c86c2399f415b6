// safetensors, read by mmap and written whole or not at all.
// Format: 8-byte little-endian N; N bytes of JSON, possibly space-padded; tensor bytes without holes.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "model/formats/mapped_file.h"

namespace gantrain {

class SafetensorsFile {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    Shape shape;
    int64_t offset = 0, bytes = 0;  // offset from the start of the file
  };

  // Checks everything: header bounds, types, shapes, offsets inside and in order, no holes, overlaps or
  // duplicate names. Types F32, F16, BF16, I32, I64, U8; others are refused by name. Rank at most 4.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const std::vector<Entry>& entries() const { return entries_; }  // by offset
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const Entry* find(std::string_view name) const;
  // The tensor's bytes; throws if there is no such tensor. The view lives as long as this object.
  ConstTensor tensor(std::string_view name) const;
  ConstTensor tensor(const Entry& entry) const;

 private:
  std::unique_ptr<MappedFile> file_;
  std::vector<Entry> entries_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

struct NamedTensor {
  std::string name;
  ConstTensor tensor;  // host memory
};
// Written to a temporary name beside `path`, synced, renamed; throws Error and leaves nothing behind on
// failure.
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

// Writes `pieces` to a temporary file beside `path`, syncs it, renames it to `path` and syncs the folder.
void write_file_atomically(const std::string& path,
                           const std::vector<std::pair<const void*, size_t>>& pieces);

}  // namespace gantrain
