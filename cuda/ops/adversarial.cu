#include "cuda/kernels/adversarial.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/sums.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

template <typename F>
void with_kind(PairLossKind kind, F f) {
  switch (kind) {
    case PairLossKind::kRelativistic:
      return f.template operator()<PairLossCode::kRelativistic>();
    case PairLossKind::kBce:
      return f.template operator()<PairLossCode::kBce>();
    case PairLossKind::kHinge:
      return f.template operator()<PairLossCode::kHinge>();
  }
}

}  // namespace

void CudaOps::segment_mean_forward(const SegmentMeanForward& a) {
  const int64_t width = a.x.dim(1);
  launch(segment_mean_forward_kernel<kThreads>, dim3(blocks_for(a.y.dim(0), 1), blocks_for(width, kThreads)),
         kThreads, 0, context_.stream, raw<float>(a.x), raw<int32_t>(a.offsets), raw<float>(a.y), width);
}

void CudaOps::segment_mean_backward(const SegmentMeanBackward& a) {
  const int64_t width = a.dx.dim(1);
  launch(segment_mean_backward_kernel<kThreads>,
         dim3(blocks_for(a.dy.dim(0), 1), blocks_for(width, kThreads)), kThreads, 0, context_.stream,
         raw<float>(a.dy), raw<int32_t>(a.offsets), raw<float>(a.dx), width);
}

void CudaOps::pair_loss(const PairLoss& a) {
  const PairLossArgs args{raw<float>(a.dr),
                          raw<float>(a.df),
                          raw<float>(a.dr2),
                          raw<float>(a.df2),
                          a.lam,
                          a.center,
                          a.smooth,
                          raw<float>(a.loss),
                          raw<float>(a.ddr),
                          raw<float>(a.ddf),
                          raw<float>(a.ddr2),
                          raw<float>(a.ddf2),
                          static_cast<int>(a.dr.count())};
  with_kind(a.kind, [&]<PairLossCode kCode>() {
    launch(pair_loss_kernel<kCode, kThreads>, 1, kThreads, 0, context_.stream, args);
  });
}

void CudaOps::generator_pair_loss(const GeneratorPairLoss& a) {
  with_kind(a.kind, [&]<PairLossCode kCode>() {
    launch(generator_pair_loss_kernel<kCode, kThreads>, 1, kThreads, 0, context_.stream, raw<float>(a.dr),
           raw<float>(a.df), raw<float>(a.loss), raw<float>(a.ddf), a.df.count());
  });
}

void CudaOps::rms_penalty(const RmsPenalty& a) {
  const int64_t count = a.prompt.count();
  dot_into_total(context_, raw<float>(a.prompt), raw<float>(a.prompt), count, false);
  launch(rms_penalty_kernel<kThreads>, blocks_for(count, kThreads), kThreads, 0, context_.stream,
         raw<float>(a.prompt), context_.total, a.reference_rms, a.weight, raw<float>(a.loss),
         raw<float>(a.rms), raw<float>(a.dprompt), count);
}

}  // namespace gantrain
