// A whole file, mapped read-only.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace gantrain {

class MappedFile {
 public:
  // Throws Error naming the file and the system's reason. An empty file maps to an empty span.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const unsigned char> bytes() const { return {data_, static_cast<size_t>(size_)}; }
  int64_t size() const { return size_; }

 private:
  std::string path_;
  const unsigned char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace gantrain
