#include "cuda/ops/matmul.h"

#include "cuda/kernels/matmul_simt.cuh"
#include "cuda/ops/dispatch.cuh"

namespace gantrain::cuda {

void matmul(const Context& context, const Matmul& a) {
  if (a.m == 0 || a.n == 0) return;
  const dim3 grid(blocks_for(a.n, kSimtTile), blocks_for(a.m, kSimtTile));
  with_weights(a.dtype, [&]<typename T>(Tag<T>) {
    with_weights(a.c_dtype, [&]<typename Out>(Tag<Out>) {
      const auto run = [&](auto kernel) {
        launch(kernel, grid, kSimtThreads, 0, context.stream, static_cast<const T*>(a.a), a.lda,
               static_cast<const T*>(a.b), a.ldb, static_cast<Out*>(a.c), a.ldc, a.bias, a.addend, a.m, a.n,
               a.k);
      };
      if (a.transpose_a)
        run(a.transpose_b ? matmul_simt_kernel<T, Out, true, true> : matmul_simt_kernel<T, Out, true, false>);
      else
        run(a.transpose_b ? matmul_simt_kernel<T, Out, false, true>
                          : matmul_simt_kernel<T, Out, false, false>);
    });
  });
}

}  // namespace gantrain::cuda
