#include "cuda/kernels/prefix.cuh"

#include "cuda/ops/dispatch.cuh"

namespace gantrain {

using namespace cuda;

namespace {
constexpr int kThreads = 128;
}

void CudaOps::prefix_forward(const PrefixForward& a) {
  const int64_t rows = a.table.dim(0), width = a.table.dim(2), stride = a.table.dim(1) * width;
  const float* from = raw<float>(a.table) + 2 * a.layer * width;
  with_type(a.k.dtype(), [&]<typename S>(Tag<S>) {
    S *k = raw<S>(a.k), *v = raw<S>(a.v);
    const bool wide = width % kWide<S> == 0 && aligned_to(16, from, k, v);
    launch(wide ? prefix_forward_kernel<S, kWide<S>, kThreads> : prefix_forward_kernel<S, 1, kThreads>,
           dim3(blocks_for(rows, 1), 2), kThreads, 0, context_.stream, from, k, v, stride,
           static_cast<int>(width));
  });
}

void CudaOps::prefix_backward(const PrefixBackward& a) {
  const int64_t rows = a.dtable.dim(0), width = a.dtable.dim(2), stride = a.dtable.dim(1) * width;
  float* to = raw<float>(a.dtable) + 2 * a.layer * width;
  with_weights(a.dk.dtype(), [&]<typename T>(Tag<T>) {
    const T *dk = raw<T>(a.dk), *dv = raw<T>(a.dv);
    const bool wide = width % kWide<T> == 0 && aligned_to(16, to, dk, dv);
    launch(wide ? prefix_backward_kernel<T, kWide<T>, kThreads> : prefix_backward_kernel<T, 1, kThreads>,
           dim3(blocks_for(rows, 1), 2), kThreads, 0, context_.stream, dk, dv, to, stride,
           static_cast<int>(width));
  });
}

}  // namespace gantrain
