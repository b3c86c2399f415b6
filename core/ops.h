// Every op of the engine: one pure virtual function an op, so that a backend that misses one does not
// compile. Callers use the free functions of core/ops/*.h, which check the contract once for all backends and
// dispatch here.
#pragma once

#include "core/ops/adversarial.h"
#include "core/ops/attention.h"
#include "core/ops/dequantize.h"
#include "core/ops/embedding.h"
#include "core/ops/head.h"
#include "core/ops/mlp.h"
#include "core/ops/norm.h"
#include "core/ops/optimizer.h"
#include "core/ops/prefix.h"
#include "core/ops/projection.h"
#include "core/ops/qkv.h"
#include "core/ops/sampling.h"
#include "core/ops/trainable.h"

namespace gantrain {

class Ops {
 public:
  virtual ~Ops() = default;

  // The frozen model.
  virtual void embed_forward(const EmbedForward&) = 0;
  virtual void embed_backward(const EmbedBackward&) = 0;
  virtual void row_rstd(const RowRstd&) = 0;
  virtual void rmsnorm_forward(const RmsNormForward&) = 0;
  virtual void rmsnorm_backward(const RmsNormBackward&) = 0;
  virtual void rotary_table(const RotaryTable&) = 0;
  virtual void qkv_forward(const QkvForward&) = 0;
  virtual void qkv_backward(const QkvBackward&) = 0;
  virtual void attention_forward(const AttentionForward&) = 0;
  virtual void attention_backward(const AttentionBackward&) = 0;
  virtual void kv_append(const KvAppend&) = 0;
  virtual void prefix_forward(const PrefixForward&) = 0;
  virtual void prefix_backward(const PrefixBackward&) = 0;
  virtual void project_forward(const ProjectForward&) = 0;
  virtual void project_backward(const ProjectBackward&) = 0;
  virtual void gate_up_forward(const GateUpForward&) = 0;
  virtual void down_backward(const DownBackward&) = 0;
  virtual void gate_up_backward(const GateUpBackward&) = 0;
  virtual void swiglu(const Swiglu&) = 0;
  virtual void head_logits(const HeadLogits&) = 0;
  virtual void head_loss(const HeadLoss&) = 0;
  virtual void sample(const Sample&) = 0;
  virtual void dequantize(const Dequantize&) = 0;

  // Bytes of scratch for these arguments; tensors may be empty views but for their shapes' sources named
  // below.
  virtual int64_t scratch(const QkvForward&) const = 0;
  virtual int64_t scratch(const QkvBackward&) const = 0;
  virtual int64_t scratch(const AttentionForward&) const = 0;
  virtual int64_t scratch(const AttentionBackward&) const = 0;
  virtual int64_t scratch(const ProjectForward&) const = 0;
  virtual int64_t scratch(const ProjectBackward&) const = 0;
  virtual int64_t scratch(const GateUpForward&) const = 0;
  virtual int64_t scratch(const DownBackward&) const = 0;
  virtual int64_t scratch(const GateUpBackward&) const = 0;
  virtual int64_t scratch(const HeadLogits&) const = 0;
  virtual int64_t scratch(const HeadLoss&) const = 0;
  virtual int64_t scratch(const Sample&) const = 0;

  // The trainable networks.
  virtual void linear_forward(const LinearForward&) = 0;
  virtual void linear_backward(const LinearBackward&) = 0;
  virtual void activation_forward(const ActivationForward&) = 0;
  virtual void activation_backward(const ActivationBackward&) = 0;
  virtual void broadcast_add_forward(const BroadcastAddForward&) = 0;
  virtual void broadcast_add_backward(const BroadcastAddBackward&) = 0;
  virtual void scaled_add_forward(const ScaledAddForward&) = 0;
  virtual void scaled_add_backward(const ScaledAddBackward&) = 0;
  virtual void gather_rows(const GatherRows&) = 0;
  virtual void scatter_add_rows(const ScatterAddRows&) = 0;
  virtual void axpy(const Axpy&) = 0;
  virtual void add_noise(const AddNoise&) = 0;
  virtual void segment_mean_forward(const SegmentMeanForward&) = 0;
  virtual void segment_mean_backward(const SegmentMeanBackward&) = 0;
  virtual void pair_loss(const PairLoss&) = 0;
  virtual void generator_pair_loss(const GeneratorPairLoss&) = 0;
  virtual void rms_penalty(const RmsPenalty&) = 0;

  // Optimisers and checks.
  virtual void gradient_norm(const GradientNorm&) = 0;
  virtual void adamw(const AdamW&) = 0;
  virtual void ema(const Ema&) = 0;
  virtual bool all_finite(ConstTensor) = 0;

  // Attention plans that change from call to call while their shapes stay: decoding. A backend that keeps
  // plans in its own memory changes them there. open_plan() gives an AttentionPlan::id (0: plans are read
  // where they are); update_plan() makes the plan of its id current and returns a number that is the same as
  // long as calls with this plan differ in the plan's content alone.
  virtual uint64_t open_plan() { return 0; }
  virtual uint64_t update_plan(const AttentionPlan&) { return 0; }
  virtual void close_plan(uint64_t) {}
};

}  // namespace gantrain
