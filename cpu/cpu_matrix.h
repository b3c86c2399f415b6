// A frozen matrix on the CPU: plain row-major f32 or bf16, owned or borrowed from a mapped file.
#pragma once

#include <memory>

#include "core/device.h"

namespace gantrain {

class CpuMatrix final : public FrozenMatrix {
 public:
  // `owned` bytes of `memory` belong to this object (0: they are someone else's, kept alive by `memory`).
  CpuMatrix(int64_t rows, int64_t cols, DType dtype, std::shared_ptr<const void> memory, const void* data,
            int64_t owned)
      : FrozenMatrix(rows, cols, dtype), memory_(std::move(memory)), data_(data), owned_(owned) {}
  int64_t bytes() const override { return owned_; }
  DeviceKind device() const override { return DeviceKind::kCpu; }
  const void* data() const { return data_; }
  const void* row(int64_t i) const {
    return static_cast<const std::byte*>(data_) + i * cols() * dtype_size(dtype());
  }

 private:
  std::shared_ptr<const void> memory_;
  const void* data_;
  int64_t owned_;
};

inline const CpuMatrix& as_cpu(const FrozenMatrix& m) {
  GT_CHECK(m.device() == DeviceKind::kCpu, "a CPU op needs a matrix that was frozen on the CPU");
  return static_cast<const CpuMatrix&>(m);
}

}  // namespace gantrain
