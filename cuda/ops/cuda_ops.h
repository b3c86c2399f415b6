// Every op on the GPU. One file a family, as in core/ops; contracts are checked before these are called.
#pragma once

#include "core/ops.h"
#include "cuda/runtime/context.h"
#include "cuda/runtime/plan.h"

namespace gantrain {

class CudaOps final : public Ops {
 public:
  explicit CudaOps(const cuda::Context& context) : context_(context), plans_(context) {}

  // cuda/ops/embedding.cu
  void embed_forward(const EmbedForward&) override;
  void embed_backward(const EmbedBackward&) override;
  // cuda/ops/norm.cu
  void row_rstd(const RowRstd&) override;
  void rmsnorm_forward(const RmsNormForward&) override;
  void rmsnorm_backward(const RmsNormBackward&) override;
  // cuda/ops/qkv.cu
  void rotary_table(const RotaryTable&) override;
  void qkv_forward(const QkvForward&) override;
  void qkv_backward(const QkvBackward&) override;
  int64_t scratch(const QkvForward&) const override;
  int64_t scratch(const QkvBackward&) const override;
  // cuda/ops/attention.cu
  void attention_forward(const AttentionForward&) override;
  void attention_backward(const AttentionBackward&) override;
  void kv_append(const KvAppend&) override;
  int64_t scratch(const AttentionForward&) const override;
  int64_t scratch(const AttentionBackward&) const override;
  // cuda/ops/prefix.cu
  void prefix_forward(const PrefixForward&) override;
  void prefix_backward(const PrefixBackward&) override;
  // cuda/ops/projection.cu
  void project_forward(const ProjectForward&) override;
  void project_backward(const ProjectBackward&) override;
  int64_t scratch(const ProjectForward&) const override;
  int64_t scratch(const ProjectBackward&) const override;
  // cuda/ops/mlp.cu
  void gate_up_forward(const GateUpForward&) override;
  void down_backward(const DownBackward&) override;
  void gate_up_backward(const GateUpBackward&) override;
  void swiglu(const Swiglu&) override;
  int64_t scratch(const GateUpForward&) const override;
  int64_t scratch(const DownBackward&) const override;
  int64_t scratch(const GateUpBackward&) const override;
  // cuda/ops/head.cu
  void head_logits(const HeadLogits&) override;
  void head_loss(const HeadLoss&) override;
  int64_t scratch(const HeadLogits&) const override;
  int64_t scratch(const HeadLoss&) const override;
  // cuda/ops/sampling.cu
  void sample(const Sample&) override;
  int64_t scratch(const Sample&) const override;

  // cuda/ops/dequantize.cu
  void dequantize(const Dequantize&) override;

  // cuda/ops/trainable.cu
  void linear_forward(const LinearForward&) override;
  void linear_backward(const LinearBackward&) override;
  void activation_forward(const ActivationForward&) override;
  void activation_backward(const ActivationBackward&) override;
  void broadcast_add_forward(const BroadcastAddForward&) override;
  void broadcast_add_backward(const BroadcastAddBackward&) override;
  void scaled_add_forward(const ScaledAddForward&) override;
  void scaled_add_backward(const ScaledAddBackward&) override;
  void gather_rows(const GatherRows&) override;
  void scatter_add_rows(const ScatterAddRows&) override;
  void axpy(const Axpy&) override;
  void add_noise(const AddNoise&) override;
  // cuda/ops/adversarial.cu
  void segment_mean_forward(const SegmentMeanForward&) override;
  void segment_mean_backward(const SegmentMeanBackward&) override;
  void pair_loss(const PairLoss&) override;
  void generator_pair_loss(const GeneratorPairLoss&) override;
  void rms_penalty(const RmsPenalty&) override;
  // cuda/ops/optimizer.cu
  void gradient_norm(const GradientNorm&) override;
  void adamw(const AdamW&) override;
  void ema(const Ema&) override;
  bool all_finite(ConstTensor) override;

  uint64_t open_plan() override { return plans_.open(); }
  uint64_t update_plan(const AttentionPlan& plan) override { return plans_.update(plan); }
  void close_plan(uint64_t id) override { plans_.close(id); }
  void forget_plans() { plans_.forget(); }

 private:
  const cuda::Context& context_;
  cuda::PlanCache plans_;
};

}  // namespace gantrain
