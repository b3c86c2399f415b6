// A frozen matrix on the GPU: plain row-major f32 or bf16, one copy for forward (NT) and backward (NN).
#pragma once

#include "core/device.h"
#include "cuda/runtime/check.h"

namespace gantrain::cuda {

class CudaMatrix final : public FrozenMatrix {
 public:
  CudaMatrix(int64_t rows, int64_t cols, DType dtype) : FrozenMatrix(rows, cols, dtype) {
    GT_CUDA(cudaMalloc(&data_, static_cast<size_t>(bytes())));
  }
  ~CudaMatrix() override { (void)cudaFree(data_); }
  int64_t bytes() const override { return rows() * cols() * dtype_size(dtype()); }
  DeviceKind device() const override { return DeviceKind::kCuda; }
  const void* data() const { return data_; }
  void* mutable_data() { return data_; }  // for the device that fills it

 private:
  void* data_ = nullptr;
};

inline const CudaMatrix& as_cuda(const FrozenMatrix& m) {
  GT_CHECK(m.device() == DeviceKind::kCuda, "a CUDA op needs a matrix that was frozen on the GPU");
  return static_cast<const CudaMatrix&>(m);
}

}  // namespace gantrain::cuda
