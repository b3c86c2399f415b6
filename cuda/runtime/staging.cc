#include "cuda/runtime/staging.h"

#include <algorithm>

#include "cuda/runtime/check.h"

namespace gantrain::cuda {
namespace {

constexpr int64_t kBlock = int64_t{1} << 20, kAlignment = 64;

}  // namespace

Staging::~Staging() {
  for (const Block& block : blocks_) (void)cudaFreeHost(block.memory);
}

std::byte* Staging::take(int64_t bytes) {
  const int64_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  while (block_ < blocks_.size() && at_ + size > blocks_[block_].bytes) ++block_, at_ = 0;
  if (block_ == blocks_.size()) {
    Block block{nullptr, std::max(size, kBlock)};
    void* memory = nullptr;
    GT_CUDA(cudaMallocHost(&memory, static_cast<size_t>(block.bytes)));
    block.memory = static_cast<std::byte*>(memory);
    blocks_.push_back(block);
    at_ = 0;
  }
  std::byte* p = blocks_[block_].memory + at_;
  at_ += size;
  in_use_ += size;
  return p;
}

}  // namespace gantrain::cuda
