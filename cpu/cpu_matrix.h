// A frozen matrix on the CPU: plain row-major f32 or bf16, owned or borrowed from a mapped file; or packed.
#pragma once

#include <memory>

#include "core/device.h"
#include "cpu/matmul.h"
#include "cpu/packed_weights.h"

namespace gantrain {

class CpuMatrix final : public FrozenMatrix {
 public:
  // `owned` bytes of `memory` belong to this object (0: they are someone else's, kept alive by `memory`).
  CpuMatrix(int64_t rows, int64_t cols, DType dtype, std::shared_ptr<const void> memory, const void* data,
            int64_t owned)
      : FrozenMatrix(rows, cols, dtype), memory_(std::move(memory)), data_(data), owned_(owned) {}
  CpuMatrix(int64_t rows, int64_t cols, DType dtype, std::unique_ptr<const PackedWeights> weights)
      : FrozenMatrix(rows, cols, dtype),
        data_(nullptr),
        owned_(weights->bytes()),
        packed_(std::move(weights)) {}
  int64_t bytes() const override { return owned_; }
  bool packed() const override { return packed_ != nullptr; }
  const PackedWeights* weights() const { return packed_.get(); }  // null: data()
  DeviceKind device() const override { return DeviceKind::kCpu; }
  const void* data() const { return data_; }
  const void* row(int64_t i) const {
    return static_cast<const std::byte*>(data_) + i * cols() * dtype_size(dtype());
  }

 private:
  std::shared_ptr<const void> memory_;
  const void* data_;
  int64_t owned_;
  std::unique_ptr<const PackedWeights> packed_;
};

inline const CpuMatrix& as_cpu(const FrozenMatrix& m) {
  GT_CHECK(m.device() == DeviceKind::kCpu, "a CPU op needs a matrix that was frozen on the CPU");
  return static_cast<const CpuMatrix&>(m);
}

// matmul() with a frozen b: p's b, ldb and dtype are filled in from w.
inline void matmul(ThreadPool& pool, const CpuMatrix& w, MatMul p) {
  p.b = w.data();
  p.ldb = w.cols();
  p.dtype = w.dtype();
  p.packed = w.weights();
  matmul(pool, p);
}

}  // namespace gantrain
