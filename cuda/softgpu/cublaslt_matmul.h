// One matrix product of the cuBLASLt stand-in, its arguments checked (cublaslt.cc), and the arithmetic.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <string>
#include <vector>

namespace softgpu::lt {

// A matrix in memory, `batch` times: element (r, c) of batch i is r * row + c * col + i * stride elements on.
struct Matrix {
  char* data = nullptr;
  cudaDataType type = CUDA_R_32F;
  uint64_t rows = 0, cols = 0;
  int64_t row = 1, col = 0, stride = 0;
};

// d = epilogue(alpha op(a) op(b) + beta c), see cublasLtMatmul in NVIDIA's cuBLAS documentation.
struct Problem {
  std::string name;
  uint64_t m = 0, n = 0, k = 0, batch = 1;
  Matrix a, b, c, d;  // a: m x k and b: k x n, transposition already in their strides
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  // Scaling: from the host, or (device pointers not null) read when the work runs. Steps are in elements.
  double alpha = 1, beta = 0;
  const char *alpha_device = nullptr, *beta_device = nullptr;
  uint64_t alpha_step = 0, beta_step = 0;               // 1: a value for each row of d
  int64_t alpha_stride = 0;                             // to the next batch
  const float* scale[3] = {nullptr, nullptr, nullptr};  // of a, b (8-bit floats), c; null: 1
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  char* bias = nullptr;  // bias, or bias gradient
  cudaDataType bias_type = CUDA_R_32F;
  int64_t bias_stride = 0;
  char* aux = nullptr;  // bits of ReLU, or GELU's input
  cudaDataType aux_type = CUDA_R_32F;
  int64_t aux_ld = 0, aux_stride = 0;  // bits, or elements
  char* workspace = nullptr;
  uint64_t workspace_bytes = 0;

  bool has(uint32_t epilogues) const { return (epilogue & epilogues) == epilogues; }
  bool adds_bias() const { return has(CUBLASLT_EPILOGUE_BIAS); }
  bool sums_rows() const { return has(16); }  // ..._BGRAD: of d, after the other gradient
  bool sums_input() const {
    return epilogue == CUBLASLT_EPILOGUE_BGRADA || epilogue == CUBLASLT_EPILOGUE_BGRADB;
  }
  bool writes_aux() const { return has(128) && !has(8) && !has(64); }
  bool reads_aux() const { return has(8) || has(64); }
  bool bits_aux() const { return has(2) || has(8); }
  uint64_t bias_count() const { return epilogue == CUBLASLT_EPILOGUE_BGRADB ? n : m; }
};

// Bytes of an element; 0 for a type that is not supported.
uint32_t element_bytes(cudaDataType type);
// Computes d and what else the epilogue writes. All memory has been checked.
void multiply(const Problem& p);

}  // namespace softgpu::lt
