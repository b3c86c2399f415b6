#include "cuda/kernels/optimizer.cuh"

#include <cmath>

#include "cuda/kernels/sums.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/sums.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

}  // namespace

void CudaOps::gradient_norm(const GradientNorm& a) {
  GT_CUDA(cudaMemsetAsync(context_.total, 0, sizeof(double), context_.stream));
  for (const Tensor& grad : a.grads)
    if (grad.count() > 0) dot_into_total(context_, raw<float>(grad), raw<float>(grad), grad.count(), true);
  launch(root_total_kernel, 1, 1, 0, context_.stream, context_.total, raw<float>(a.out));
}

void CudaOps::adamw(const AdamW& a) {
  // The corrections are taken in double: 1 - beta^step loses all its digits in f32 when beta is near 1.
  const double beta1 = static_cast<double>(a.beta1), beta2 = static_cast<double>(a.beta2);
  const auto step = static_cast<double>(a.step);
  const AdamWArgs args{.lr = a.lr,
                       .beta1 = a.beta1,
                       .beta2 = a.beta2,
                       .take1 = static_cast<float>(1.0 - beta1),
                       .take2 = static_cast<float>(1.0 - beta2),
                       .correct1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, step))),
                       .correct2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, step))),
                       .eps = a.eps,
                       .weight_decay = a.weight_decay,
                       .grad_scale = a.grad_scale};
  const int64_t count = a.param.count();
  launch(adamw_kernel<kThreads>, blocks_for(count, kThreads), kThreads, 0, context_.stream,
         raw<float>(a.param), raw<float>(a.grad), raw<float>(a.m), raw<float>(a.v), args, count);
}

void CudaOps::ema(const Ema& a) {
  const int64_t count = a.x.count();
  launch(ema_kernel<kThreads>, blocks_for(count, kThreads), kThreads, 0, context_.stream, raw<float>(a.x),
         raw<float>(a.ema), a.decay, static_cast<float>(1.0 - static_cast<double>(a.decay)), count);
}

bool CudaOps::all_finite(ConstTensor t) {
  const int64_t count = t.count();
  GT_CUDA(cudaMemsetAsync(context_.flag, 0, sizeof(int), context_.stream));
  if (t.dtype() == DType::kF32)
    launch(find_not_finite_kernel<uint32_t, kThreads>, blocks_for(count, kThreads), kThreads, 0,
           context_.stream, raw<uint32_t>(t), 0x7f800000u, context_.flag, count);
  else
    launch(find_not_finite_kernel<uint16_t, kThreads>, blocks_for(count, kThreads), kThreads, 0,
           context_.stream, raw<uint16_t>(t), t.dtype() == DType::kBF16 ? 0x7f80 : 0x7c00, context_.flag,
           count);
  int found = 0;
  GT_CUDA(cudaMemcpyAsync(&found, context_.flag, sizeof found, cudaMemcpyDeviceToHost, context_.stream));
  GT_CUDA(cudaStreamSynchronize(context_.stream));
  return found == 0;
}

}  // namespace gantrain
