#include "cuda/kernels/sampling.cuh"

#include "cuda/ops/dispatch.cuh"

namespace gantrain {

using namespace cuda;

int64_t CudaOps::scratch(const Sample&) const { return 0; }

void CudaOps::sample(const Sample& a) {
  const int64_t rows = a.logits.dim(0), n = a.logits.dim(1);
  const auto run = [&](auto kernel, int threads) {
    launch(kernel, blocks_for(rows, 1), static_cast<unsigned>(threads), 0, context_.stream,
           raw<float>(a.logits), raw<float>(a.temperature), raw<int32_t>(a.top_k), raw<float>(a.top_p),
           raw<int64_t>(a.key), raw<int64_t>(a.counter), a.gumbel, raw<int32_t>(a.token), raw<float>(a.logp),
           n);
  };
  const bool wide = n % 4 == 0 && aligned_to(16, raw<float>(a.logits));
  if (n <= 1024)
    run(wide ? sample_kernel<4, 64> : sample_kernel<1, 64>, 64);
  else
    run(wide ? sample_kernel<4, 512> : sample_kernel<1, 512>, 512);
}

}  // namespace gantrain
