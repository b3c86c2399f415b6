// A frozen matrix on the GPU: plain row-major f32 or bf16, one copy for forward (NT) and backward (NN).
#pragma once

#include "core/device.h"
#include "cuda/runtime/check.h"

namespace gantrain::cuda {

class CudaMatrix final : public FrozenMatrix {
 public:
  CudaMatrix(int64_t rows, int64_t cols, DType dtype) : FrozenMatrix(rows, cols, dtype) {
    GT_CUDA(cudaMalloc(&data_, static_cast<size_t>(size())));
  }
  // Over f32 values that belong to someone else.
  CudaMatrix(int64_t rows, int64_t cols, const void* values)
      : FrozenMatrix(rows, cols, DType::kF32), data_(const_cast<void*>(values)), owned_(false) {}
  ~CudaMatrix() override {
    if (owned_) (void)cudaFree(data_);
  }
  int64_t bytes() const override { return owned_ ? size() : 0; }
  int64_t size() const { return rows() * cols() * dtype_size(dtype()); }  // bytes of all values
  DeviceKind device() const override { return DeviceKind::kCuda; }
  const void* data() const { return data_; }
  void* mutable_data() { return data_; }  // for the device that fills it

 private:
  void* data_ = nullptr;
  bool owned_ = true;
};

inline const CudaMatrix& as_cuda(const FrozenMatrix& m) {
  GT_CHECK(m.device() == DeviceKind::kCuda, "a CUDA op needs a matrix that was frozen on the GPU");
  return static_cast<const CudaMatrix&>(m);
}

}  // namespace gantrain::cuda
