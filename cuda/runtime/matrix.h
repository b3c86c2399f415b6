// A frozen matrix on the GPU: plain row-major f32 or bf16, one copy for forward (NT) and backward (NN); or
// packed blocks (core/packed.h), which are expanded in front of each product.
#pragma once

#include <memory>
#include <vector>

#include "core/device.h"
#include "core/packed.h"
#include "cuda/runtime/check.h"

namespace gantrain::cuda {

// One piece of device memory, for all packed matrices of a device: what a product reads of one. All work is
// on one stream, so the next product may overwrite it.
struct Expansion {
  Expansion() = default;
  Expansion(const Expansion&) = delete;
  Expansion& operator=(const Expansion&) = delete;
  ~Expansion() { (void)cudaFree(data); }
  void* data = nullptr;
  int64_t bytes = 0;
};

// Rows of one type in a packed matrix; pointers to device memory.
struct PackedPart {
  PackedType type;
  int64_t begin, rows;
  unsigned char* blocks;
  int64_t bytes;
  // NF4's scales.
  unsigned char* codes = nullptr;
  float* steps = nullptr;
  float* values = nullptr;  // (256)
  int64_t steps_count = 0;
  float mean = 0.0f;
};

class CudaMatrix final : public FrozenMatrix {
 public:
  CudaMatrix(int64_t rows, int64_t cols, DType dtype) : FrozenMatrix(rows, cols, dtype) {
    GT_CUDA(cudaMalloc(&data_, static_cast<size_t>(size())));
  }
  // Over f32 values that belong to someone else.
  CudaMatrix(int64_t rows, int64_t cols, const void* values)
      : FrozenMatrix(rows, cols, DType::kF32), data_(const_cast<void*>(values)), owned_(false) {}
  // Packed: `parts` lie in `bytes` of memory, which the matrix takes over.
  CudaMatrix(int64_t rows, int64_t cols, DType dtype, std::vector<PackedPart> parts, void* memory,
             int64_t bytes, std::shared_ptr<const Expansion> expansion)
      : FrozenMatrix(rows, cols, dtype),
        data_(memory),
        packed_bytes_(bytes),
        parts_(std::move(parts)),
        expansion_(std::move(expansion)) {}
  ~CudaMatrix() override {
    if (owned_) (void)cudaFree(data_);
  }
  int64_t bytes() const override { return owned_ ? size() : 0; }
  // Bytes at memory(): of the packed blocks, else of all values.
  int64_t size() const { return packed() ? packed_bytes_ : rows() * cols() * dtype_size(dtype()); }
  bool packed() const override { return !parts_.empty(); }
  DeviceKind device() const override { return DeviceKind::kCuda; }
  // Row-major values; of a packed matrix those of the rows that were expanded last
  // (cuda/ops/dequantize.h, expand_weights).
  const void* data() const { return packed() ? expansion_->data : data_; }
  void* mutable_data() { return data_; }        // for the device that fills it
  const void* memory() const { return data_; }  // bytes() of it
  const std::vector<PackedPart>& parts() const { return parts_; }

 private:
  void* data_ = nullptr;
  bool owned_ = true;
  int64_t packed_bytes_ = 0;
  std::vector<PackedPart> parts_;
  std::shared_ptr<const Expansion> expansion_;
};

inline const CudaMatrix& as_cuda(const FrozenMatrix& m) {
  GT_CHECK(m.device() == DeviceKind::kCuda, "a CUDA op needs a matrix that was frozen on the GPU");
  return static_cast<const CudaMatrix&>(m);
}

}  // namespace gantrain::cuda
