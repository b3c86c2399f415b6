// A program that does not link cuBLASLt but opens it on first use.
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>
#include <vector>

#include "tests/softgpu/check.h"

int main() {
  void* library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::printf("%s\n", dlerror());
    return 1;
  }
#define OPEN(name) const auto name = reinterpret_cast<decltype(&::name)>(dlsym(library, #name))
  OPEN(cublasLtCreate);
  OPEN(cublasLtDestroy);
  OPEN(cublasLtMatmulDescCreate);
  OPEN(cublasLtMatrixLayoutCreate);
  OPEN(cublasLtMatmul);
  // Column by column: (1 2; 3 4) (5 6; 7 8) = (19 22; 43 50).
  const std::vector<float> a = {1, 3, 2, 4}, b = {5, 7, 6, 8}, want = {19, 43, 22, 50};
  float* p;
  CHECK_CUDA(cudaMalloc(&p, 3 * 256));
  CHECK_CUDA(cudaMemcpy(p, a.data(), 16, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaMemcpy(p + 64, b.data(), 16, cudaMemcpyHostToDevice));
  cublasLtHandle_t h;
  cublasLtMatmulDesc_t op;
  cublasLtMatrixLayout_t l;
  const float one = 1, zero = 0;
  bool good = cublasLtCreate(&h) == 0 && cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0 &&
              cublasLtMatrixLayoutCreate(&l, CUDA_R_32F, 2, 2, 2) == 0;
  good = good && cublasLtMatmul(h, op, &one, p, l, p + 64, l, &zero, nullptr, l, p + 128, l, nullptr, nullptr,
                                0, nullptr) == 0;
  std::vector<float> got(4);
  CHECK_CUDA(cudaMemcpy(got.data(), p + 128, 16, cudaMemcpyDeviceToHost));
  good = good && got == want && cublasLtDestroy(h) == 0;
  std::printf("cublaslt_open: %s\n", good ? "good" : "wrong");
  return good ? 0 : 1;
}
