#include "cuda/kernels/embedding.cuh"

#include "cuda/ops/dispatch.cuh"

namespace gantrain {

using namespace cuda;

void CudaOps::embed_forward(const EmbedForward& a) {
  constexpr int kThreads = 128;
  const int64_t n = a.tokens.dim(0), c = a.table->cols();
  const auto* prompt = raw<float>(a.prompt);
  auto* x = raw<float>(a.x);
  with_weights(a.table->dtype(), [&]<typename T>(Tag<T>) {
    const auto* table = static_cast<const T*>(as_cuda(*a.table).data());
    const bool wide = c % kWide<T> == 0 && aligned_to(16, prompt, x, table);
    launch(wide ? embed_forward_kernel<T, kWide<T>, kThreads> : embed_forward_kernel<T, 1, kThreads>,
           dim3(blocks_for(n, 1)), kThreads, 0, context_.stream, table, raw<int32_t>(a.tokens), prompt, x, c);
  });
}

void CudaOps::embed_backward(const EmbedBackward& a) {
  constexpr int kThreads = 64;
  const int64_t n = a.tokens.dim(0), c = a.dprompt.dim(1);
  launch(embed_backward_kernel<kThreads>, blocks_for(c, kThreads), kThreads, 0, context_.stream,
         raw<float>(a.dx), raw<int32_t>(a.tokens), raw<float>(a.dprompt), n, c);
}

}  // namespace gantrain
