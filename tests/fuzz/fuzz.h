// What the fuzz targets share. A target is one .cc with LLVMFuzzerTestOneInput: linked with clang's libFuzzer
// where the build has GANTRAIN_FUZZ, and with replay.cc into a plain program everywhere.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "core/broken_contracts.h"
#include "core/check.h"
#include "model/formats/held_file.h"

namespace gantrain::fuzz {

// A folder for the readers that want files; in memory where the system has that. It goes away at exit.
class Scratch {
 public:
  Scratch() {
    const std::filesystem::path base =
        std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string name = (base / "gantrain_fuzz_XXXXXX").string();
    if (!::mkdtemp(name.data())) std::abort();
    path_ = name;
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  // A file that is there is written over and then cut, which keeps its pages: taking and clearing new ones
  // costs more.
  std::string write(const char* name, std::string_view bytes) const {
    const std::string file = path_ + "/" + name;
    const int out = ::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    const auto size = static_cast<ssize_t>(bytes.size());
    if (out < 0 || ::write(out, bytes.data(), bytes.size()) != size || ::ftruncate(out, size) != 0 ||
        ::close(out) != 0)
      std::abort();
    return file;
  }
  // The same for what a reader maps: where the build allows it the bytes stay in memory, and the file itself,
  // for whoever asks whether it is there, is empty. `bytes` must stay until the next call or the last
  // reading.
  std::string hold(const char* name, std::string_view bytes) const {
    const std::string file = path_ + "/" + name;
    if (!hold_in_memory(file, {reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()}))
      return write(name, bytes);
    for (const std::string& there : held_)
      if (there == file) return file;
    write(name, {});
    held_.push_back(file);
    return file;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  mutable std::vector<std::string> held_;
};

// Calls read(bytes). It may come back or throw Error with a message that a person can read. Anything else,
// another exception, a broken contract of our own (GT_CHECK, whoever catches it) or a message of many
// kilobytes, is a find.
template <typename Read>
int expect_refusal_or_success(const uint8_t* data, size_t size, Read read) {
  try {
    read(std::string_view(reinterpret_cast<const char*>(data), size));
  } catch (const Error& error) {
    const std::string_view text = error.what();
    if (text.empty() || text.size() > 8192 || broken_contracts() > 0) {
      std::fprintf(stderr, "FIND: a broken contract or a bad message (%zu bytes): %.600s\n", text.size(),
                   error.what());
      std::abort();
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "FIND: an exception that is no Error: %.600s\n", error.what());
    std::abort();
  }
  if (broken_contracts() > 0) {
    std::fprintf(stderr, "FIND: a broken contract whose Error was caught\n");
    std::abort();
  }
  return 0;
}

// Reads every byte, so that a view that leaves its file is noticed.
inline void touch(const void* data, size_t size) {
  unsigned sum = 0;
  for (size_t i = 0; i < size; ++i) sum += static_cast<const unsigned char*>(data)[i];
  asm volatile("" ::"r"(sum));  // keeps the loop
}

}  // namespace gantrain::fuzz
