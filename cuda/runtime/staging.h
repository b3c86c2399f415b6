// Pinned host memory that copies to and from the device go through, so that none of them waits. What is taken
// stays until reset(), which is called when the device has done all it was given; the same requests after a
// reset get the same addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gantrain::cuda {

class Staging {
 public:
  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  std::byte* take(int64_t bytes);  // 64-byte aligned
  void reset() { block_ = 0, at_ = 0, in_use_ = 0; }
  int64_t in_use() const { return in_use_; }

 private:
  struct Block {
    std::byte* memory;
    int64_t bytes;
  };
  std::vector<Block> blocks_;
  size_t block_ = 0;  // the one that is handed out of
  int64_t at_ = 0, in_use_ = 0;
};

}  // namespace gantrain::cuda
