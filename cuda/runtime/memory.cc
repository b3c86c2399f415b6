#include "cuda/runtime/memory.h"

#include <algorithm>

#include "cuda/runtime/check.h"

namespace gantrain::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kGrowth = int64_t{2} << 20;  // least size of a reservation that was not planned

int64_t rounded(int64_t bytes) {
  return (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Memory::~Memory() {
  for (void* block : blocks_) (void)cudaFree(block);
}

void Memory::reserve(int64_t bytes) {
  if (!pooled_ || bytes <= 0) return;
  const int64_t size = rounded(bytes);
  void* block = nullptr;
  GT_CUDA(cudaMalloc(&block, static_cast<size_t>(size)));
  const auto begin = reinterpret_cast<uintptr_t>(block);
  blocks_.push_back(block);
  ends_.push_back(begin + static_cast<uintptr_t>(size));
  free_.emplace(begin, size);
  reserved_ += size;
}

void* Memory::allocate(int64_t bytes) {
  GT_CHECK(bytes >= 0, "cannot allocate {} bytes", bytes);
  if (!pooled_) {
    void* p = nullptr;
    GT_CUDA(cudaMallocAsync(&p, static_cast<size_t>(std::max<int64_t>(bytes, 1)), stream_));
    return p;
  }
  const int64_t size = rounded(bytes);
  // The smallest piece that holds it, the lowest address of equal ones.
  const auto best = [&] {
    auto found = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it)
      if (it->second >= size && (found == free_.end() || it->second < found->second)) found = it;
    return found;
  };
  auto piece = best();
  if (piece == free_.end()) {
    reserve(std::max({size, kGrowth, reserved_ / 2}));
    piece = best();
  }
  const uintptr_t at = piece->first;
  const int64_t rest = piece->second - size;
  free_.erase(piece);
  if (rest > 0) free_.emplace(at + static_cast<uintptr_t>(size), rest);
  in_use_.emplace(at, size);
  used_ += size;
  peak_ = std::max(peak_, used_);
  return reinterpret_cast<void*>(at);
}

void Memory::release(void* memory) noexcept {
  if (!memory) return;
  if (!pooled_) {
    (void)cudaFreeAsync(memory, stream_);
    return;
  }
  const auto found = in_use_.find(reinterpret_cast<uintptr_t>(memory));
  if (found == in_use_.end()) return;
  uintptr_t at = found->first;
  int64_t size = found->second;
  in_use_.erase(found);
  used_ -= size;
  const auto boundary = [&](uintptr_t address) {
    return std::find(ends_.begin(), ends_.end(), address) != ends_.end();
  };
  auto next = free_.lower_bound(at);
  if (next != free_.end() && next->first == at + static_cast<uintptr_t>(size) && !boundary(next->first)) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + static_cast<uintptr_t>(before->second) == at && !boundary(at)) {
      before->second += size;
      return;
    }
  }
  free_.emplace(at, size);
}

}  // namespace gantrain::cuda
