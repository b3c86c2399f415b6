// Matrix products by cuBLASLt, opened on first use and never linked: the only place that sees its header.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "core/dtype.h"

namespace gantrain::cuda {

class BlasLt {
 public:
  // Row-major operands, as in cuda/ops/matmul.h.
  struct Product {
    int64_t m, n, k;
    const void* a;
    int64_t lda;
    bool transpose_a;
    const void* b;
    int64_t ldb;
    bool transpose_b;
    DType dtype;
    void* c;
    int64_t ldc;
    DType c_dtype;
    const float* bias;    // with an f32 c only
    const float* addend;  // likewise; may be c
  };

  // Opens the library and reserves `workspace` bytes of device memory for it. Null where it cannot be opened:
  // `why` then says so in one line. Throws Error where it opens but does not work.
  static std::unique_ptr<BlasLt> open(size_t workspace, std::string* why);
  virtual ~BlasLt() = default;
  // Puts the product on the stream; may be captured. False: the library has no algorithm for it, and nothing
  // was done.
  virtual bool multiply(cudaStream_t, const Product&) = 0;
  // The library's own number.
  virtual size_t version() const = 0;
};

}  // namespace gantrain::cuda
