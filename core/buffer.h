// Buffers own memory; an Arena hands out views of one buffer, planned before it is allocated.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/device.h"

namespace gantrain {

// Owns device memory. Movable, not copyable.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, int64_t bytes) : device_(&device), data_(device.allocate(bytes)), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (data_) device_->release(data_, bytes_);
  }
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// One tensor with its own memory.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(Device& device, DType dtype, Shape shape)
      : buffer_(device, shape.count() * dtype_size(dtype)),
        view_(buffer_.data(), dtype, shape, device.kind()) {}
  const Tensor& view() { return view_; }
  ConstTensor view() const { return view_; }
  operator Tensor() { return view_; }             // NOLINT: implicit on purpose
  operator ConstTensor() const { return view_; }  // NOLINT
  bool empty() const { return view_.empty(); }

 private:
  Buffer buffer_;
  Tensor view_;
};

// A bump allocator over one buffer. With no buffer it only counts: the same code that takes tensors plans
// them. Every piece starts on a 64-byte boundary.
class Arena {
 public:
  Arena() = default;  // counts only: take() returns empty views
  Arena(Device& device, int64_t bytes) : device_(device.kind()), buffer_(device, bytes), counting_(false) {}

  Tensor take(DType dtype, Shape shape) {
    const int64_t bytes = shape.count() * dtype_size(dtype);
    const int64_t begin = used_;
    used_ += (bytes + 63) / 64 * 64;
    peak_ = used_ > peak_ ? used_ : peak_;
    if (counting_) return {};
    GT_CHECK(used_ <= buffer_.bytes(), "arena of {} bytes is too small for {} {}", buffer_.bytes(),
             dtype_name(dtype), to_string(shape));
    return Tensor(static_cast<std::byte*>(buffer_.data()) + begin, dtype, shape, device_);
  }
  int64_t used() const { return used_; }
  int64_t peak() const { return peak_; }
  int64_t mark() const { return used_; }
  void release_to(int64_t mark) { used_ = mark; }
  bool counting() const { return counting_; }
  int64_t capacity() const { return buffer_.bytes(); }

 private:
  DeviceKind device_ = DeviceKind::kCpu;
  Buffer buffer_;
  int64_t used_ = 0, peak_ = 0;
  bool counting_ = true;
};

// One arena that is used again for every batch and grows when a batch needs more than any before it.
class Workspace {
 public:
  explicit Workspace(Device& device) : device_(&device) {}
  // An empty arena of at least `bytes`; tensors taken before are gone.
  Arena& reserve(int64_t bytes) {
    if (arena_.counting() || arena_.capacity() < bytes) {
      arena_ = Arena();  // free first: the peak is the larger of the two, not their sum
      arena_ = Arena(*device_, bytes);
    }
    arena_.release_to(0);
    return arena_;
  }
  int64_t capacity() const { return arena_.capacity(); }

 private:
  Device* device_;
  Arena arena_;
};

}  // namespace gantrain
