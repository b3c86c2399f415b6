// What the tests of the file readers share: a folder of their own, the message of an Error, files built by
// hand.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"

namespace gantrain::test {

// A folder that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "gantrain_formats_XXXXXX").string();
    if (!::mkdtemp(name.data())) fail("{}: cannot be made", name);
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(std::string_view name) const { return (path_ / name).string(); }
  std::string write(std::string_view name, std::string_view bytes) const {
    std::ofstream out(file(name), std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return file(name);
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// What an Error thrown by `action` says; anything else is a failure of the test.
template <typename Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

// The message names the file and the place.
#define GT_EXPECT_MESSAGE(message, path, part)                        \
  do {                                                                \
    const std::string text = (message);                               \
    EXPECT_EQ(text.rfind(path, 0), 0u) << text;                       \
    EXPECT_NE(text.find(part), std::string::npos) << text;            \
    EXPECT_LT(text.size(), 2500u) << "a message is read by a person"; \
  } while (false)

inline std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

template <typename T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
}
inline void append_half(std::string& bytes, float value) { append(bytes, f16(value).bits); }

// A safetensors file with this header and this many data bytes.
inline std::string safetensors_bytes(const std::string& header, size_t data_bytes) {
  std::string bytes;
  append(bytes, uint64_t{header.size()});
  return bytes + header + std::string(data_bytes, '\1');
}

// A GGUF file put together piece by piece; every count and type can be made to lie.
class GgufBuilder {
 public:
  uint32_t version = 3;
  int64_t tensor_count = -1, kv_count = -1;  // -1: the true ones
  uint64_t alignment = 32;
  std::string kv, infos, data;  // what follows the counts

  static std::string string(std::string_view s) {
    std::string out;
    append(out, uint64_t{s.size()});
    return out + std::string(s);
  }
  GgufBuilder& raw(std::string_view key, uint32_t type, std::string_view value) {
    kv += string(key);
    append(kv, type);
    kv += value;
    ++kvs_;
    return *this;
  }
  template <typename T>
  GgufBuilder& scalar(std::string_view key, uint32_t type, T value) {
    std::string bytes;
    append(bytes, value);
    return raw(key, type, bytes);
  }
  GgufBuilder& text(std::string_view key, std::string_view value) { return raw(key, 8, string(value)); }
  template <typename T>
  GgufBuilder& array(std::string_view key, uint32_t element, const std::vector<T>& values) {
    std::string bytes;
    append(bytes, element);
    append(bytes, uint64_t{values.size()});
    for (const T& v : values) {
      if constexpr (std::is_same_v<T, std::string>) {
        bytes += string(v);
      } else {
        append(bytes, v);
      }
    }
    return raw(key, 9, bytes);
  }
  // ne: GGUF's order, the fastest extent first. The data is aligned and appended.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& ne, uint32_t type,
                      std::string_view bytes) {
    data.resize((data.size() + alignment - 1) / alignment * alignment, '\0');
    return tensor_at(name, ne, type, data.size()).append_data(bytes);
  }
  GgufBuilder& tensor_at(std::string_view name, const std::vector<uint64_t>& ne, uint32_t type,
                         uint64_t offset) {
    infos += string(name);
    append(infos, static_cast<uint32_t>(ne.size()));
    for (uint64_t n : ne) append(infos, n);
    append(infos, type);
    append(infos, offset);
    ++tensors_;
    return *this;
  }
  GgufBuilder& append_data(std::string_view bytes) {
    data += bytes;
    return *this;
  }
  std::string head() const {
    std::string out = "GGUF";
    append(out, version);
    append(out, tensor_count < 0 ? tensors_ : static_cast<uint64_t>(tensor_count));
    append(out, kv_count < 0 ? kvs_ : static_cast<uint64_t>(kv_count));
    return out + kv + infos;
  }
  std::string bytes() const {
    std::string out = head();
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data;
  }

 private:
  uint64_t tensors_ = 0, kvs_ = 0;
};

}  // namespace gantrain::test
