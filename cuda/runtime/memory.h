// Device memory for buffers: pooled, or each buffer on its own.
//
// Pooled: pieces of a few large reservations, handed out and taken back by the host alone. All work is on one
// stream, so a piece that was released may be handed out again at once; no call of the runtime is made, which
// is what a captured graph needs, and the same requests in the same order get the same addresses. Separate:
// every buffer from the runtime's stream-ordered allocator; what checks accesses then knows each buffer's
// bounds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

namespace gantrain::cuda {

class Memory {
 public:
  explicit Memory(bool pooled) : pooled_(pooled) {}
  ~Memory();  // what is still in use by then is the caller's mistake
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void set_stream(cudaStream_t stream) { stream_ = stream; }
  bool pooled() const { return pooled_; }
  void reserve(int64_t bytes);  // pooled: one more reservation of this size
  // 256-byte aligned. Takes another reservation where none has room.
  void* allocate(int64_t bytes);
  void release(void* memory) noexcept;

  int64_t reserved() const { return reserved_; }
  int64_t reservations() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t peak() const { return peak_; }  // of the bytes in use

 private:
  bool pooled_;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> blocks_;
  std::map<uintptr_t, int64_t> free_;  // address -> bytes; neighbours of one reservation are joined
  std::unordered_map<uintptr_t, int64_t> in_use_;  // address -> bytes
  std::vector<uintptr_t> ends_;                    // of the reservations: nothing is joined across them
  int64_t reserved_ = 0, used_ = 0, peak_ = 0;
};

}  // namespace gantrain::cuda
