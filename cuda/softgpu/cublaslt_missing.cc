// The functions of cublasLt.h that nothing else here defines name themselves and stop, so that any program
// links.
#include <cstdio>
#include <cstdlib>

extern "C" {
#define SOFTGPU_ENTRY(name)                                                              \
  __attribute__((visibility("default"))) void name() {                                   \
    std::fprintf(stderr, "softgpu: the cuBLASLt function %s is not supported\n", #name); \
    std::fflush(nullptr);                                                                \
    std::_Exit(86);                                                                      \
  }
SOFTGPU_ENTRY(cublasLtMatrixTransform)
SOFTGPU_ENTRY(cublasLtMatrixTransformDescInit_internal)
SOFTGPU_ENTRY(cublasLtMatrixTransformDescCreate)
SOFTGPU_ENTRY(cublasLtMatrixTransformDescDestroy)
SOFTGPU_ENTRY(cublasLtMatrixTransformDescSetAttribute)
SOFTGPU_ENTRY(cublasLtMatrixTransformDescGetAttribute)
SOFTGPU_ENTRY(cublasLtEmulationDescInit_internal)
SOFTGPU_ENTRY(cublasLtEmulationDescCreate)
SOFTGPU_ENTRY(cublasLtEmulationDescDestroy)
SOFTGPU_ENTRY(cublasLtEmulationDescSetAttribute)
SOFTGPU_ENTRY(cublasLtEmulationDescGetAttribute)
SOFTGPU_ENTRY(cublasLtMatmulAlgoCapGetAttribute)
SOFTGPU_ENTRY(cublasLtMatmulAlgoConfigSetAttribute)
}
