// The one place where kernels are launched; every launch is checked.
#pragma once

#include "cuda/runtime/check.h"

namespace gantrain::cuda {

constexpr size_t kStaticSharedLimit = 48 << 10;  // more dynamic shared memory than this has to be asked for

// launch(kernel, grid, block, shared bytes, stream, arguments...)
template <typename... Parameters, typename... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;  // nothing to do: an empty tensor
  if (shared_bytes > kStaticSharedLimit)
    GT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(args)...);
  GT_CUDA(cudaGetLastError());
}

// Blocks of `size` that cover `count`.
inline unsigned blocks_for(int64_t count, int64_t size) {
  const int64_t blocks = (count + size - 1) / size;
  GT_CHECK(blocks >= 0 && blocks <= 0x7fffffff, "a grid of {} blocks", blocks);
  return static_cast<unsigned>(blocks);
}

}  // namespace gantrain::cuda
