// Every op on the CPU. One file a family, as in core/ops; contracts are checked before these are called.
#pragma once

#include "core/ops.h"
#include "cpu/parallel.h"

namespace gantrain {

class CpuOps final : public Ops {
 public:
  explicit CpuOps(ThreadPool& pool) : pool_(pool) {}

  // cpu/embedding.cc
  void embed_forward(const EmbedForward&) override;
  void embed_backward(const EmbedBackward&) override;
  // cpu/norm.cc
  void row_rstd(const RowRstd&) override;
  void rmsnorm_forward(const RmsNormForward&) override;
  void rmsnorm_backward(const RmsNormBackward&) override;
  // cpu/qkv.cc
  void rotary_table(const RotaryTable&) override;
  void qkv_forward(const QkvForward&) override;
  void qkv_backward(const QkvBackward&) override;
  int64_t scratch(const QkvForward&) const override;
  int64_t scratch(const QkvBackward&) const override;
  // cpu/attention.cc
  void attention_forward(const AttentionForward&) override;
  void attention_backward(const AttentionBackward&) override;
  void kv_append(const KvAppend&) override;
  int64_t scratch(const AttentionForward&) const override;
  int64_t scratch(const AttentionBackward&) const override;
  // cpu/prefix.cc
  void prefix_forward(const PrefixForward&) override;
  void prefix_backward(const PrefixBackward&) override;
  // cpu/projection.cc
  void project_forward(const ProjectForward&) override;
  void project_backward(const ProjectBackward&) override;
  int64_t scratch(const ProjectForward&) const override;
  int64_t scratch(const ProjectBackward&) const override;
  // cpu/mlp.cc
  void gate_up_forward(const GateUpForward&) override;
  void down_backward(const DownBackward&) override;
  void gate_up_backward(const GateUpBackward&) override;
  void swiglu(const Swiglu&) override;
  int64_t scratch(const GateUpForward&) const override;
  int64_t scratch(const DownBackward&) const override;
  int64_t scratch(const GateUpBackward&) const override;
  // cpu/head.cc
  void head_logits(const HeadLogits&) override;
  void head_loss(const HeadLoss&) override;
  int64_t scratch(const HeadLogits&) const override;
  int64_t scratch(const HeadLoss&) const override;
  // cpu/sampling.cc
  void sample(const Sample&) override;
  int64_t scratch(const Sample&) const override;

  // cpu/dequantize.cc
  void dequantize(const Dequantize&) override;

  // cpu/trainable.cc
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
  // cpu/adversarial.cc
  void segment_mean_forward(const SegmentMeanForward&) override;
  void segment_mean_backward(const SegmentMeanBackward&) override;
  void pair_loss(const PairLoss&) override;
  void generator_pair_loss(const GeneratorPairLoss&) override;
  void rms_penalty(const RmsPenalty&) override;
  // cpu/optimizer.cc
  void gradient_norm(const GradientNorm&) override;
  void adamw(const AdamW&) override;
  void ema(const Ema&) override;
  bool all_finite(ConstTensor) override;

 private:
  ThreadPool& pool_;
};

}  // namespace gantrain
