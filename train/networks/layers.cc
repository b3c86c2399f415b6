#include "train/networks/layers.h"

#include <cmath>

#include "core/rng.h"

namespace gantrain {

OwnedTensor zeros(Device& device, Shape shape) {
  OwnedTensor t(device, DType::kF32, shape);
  device.fill_zero(t);
  return t;
}

OwnedTensor copy_of(Device& device, ConstTensor from) {
  OwnedTensor t(device, from.dtype(), from.shape());
  device.copy(t, from);
  return t;
}

Linear::Linear(ParameterSet& p, const std::string& name, int64_t in, int64_t out, uint64_t key, float gain,
               bool bias)
    : p_(&p), out_(out) {
  const float deviation = gain / std::sqrt(static_cast<float>(in));
  w_ = p.add(name + ".weight", {out, in},
             gain > 0.0f ? normal_init(derive_key(key, p.size()), deviation) : constant_init(0.0f));
  if (bias) b_ = p.add(name + ".bias", {out}, constant_init(0.0f));
}

OwnedTensor Linear::forward(Device& device, ConstTensor x) const {
  OwnedTensor y(device, DType::kF32, {x.dim(0), out_});
  linear_forward(
      device,
      {.x = x, .w = p_->value(w_), .b = b_ == SIZE_MAX ? ConstTensor() : ConstTensor(p_->value(b_)), .y = y});
  return y;
}

void Linear::backward(Device& device, ConstTensor x, ConstTensor dy, Tensor dx) {
  linear_backward(device, {.x = x,
                           .w = p_->value(w_),
                           .dy = dy,
                           .dx = dx,
                           .dw = p_->grad(w_),
                           .db = b_ == SIZE_MAX ? Tensor() : p_->grad(b_)});
}

Norm::Norm(ParameterSet& p, const std::string& name, int64_t width, float eps) : p_(&p), eps_(eps) {
  w_ = p.add(name + ".weight", {width}, constant_init(1.0f));
}

OwnedTensor Norm::forward(Device& device, ConstTensor x) {
  OwnedTensor y(device, DType::kF32, x.shape());
  rstd_ = OwnedTensor(device, DType::kF32, {x.dim(0)});
  rmsnorm_forward(device, {.x = x, .w = p_->value(w_), .y = y, .rstd = rstd_, .eps = eps_});
  return y;
}

void Norm::backward(Device& device, ConstTensor x, ConstTensor dy, Tensor dx) {
  rmsnorm_backward(device,
                   {.x = x, .w = p_->value(w_), .rstd = rstd_, .dy = dy, .dx = dx, .dw = p_->grad(w_)});
}

Block::Block(ParameterSet& p, const std::string& name, int64_t width, int64_t context_width, int64_t heads,
             uint64_t key)
    : width_(width),
      heads_(heads),
      norm1_(p, name + ".norm1", width),
      norm2_(p, name + ".norm2", width),
      q_(p, name + ".q", width, width, key, 1.0f, false),
      k_(p, name + ".k", context_width, width, key, 1.0f, false),
      v_(p, name + ".v", context_width, width, key, 1.0f, false),
      o_(p, name + ".o", width, width, key, 0.0f, false),
      up_(p, name + ".up", width, 2 * width, key),
      down_(p, name + ".down", 2 * width, width, key, 0.0f) {
  GT_CHECK(width % heads == 0 && (width / heads) % 2 == 0,
           "width {} does not split into {} heads of even size", width, heads);
}

void Block::forward(Device& dev, Tensor x, ConstTensor context, const AttentionPlan& plan) {
  const int64_t n = x.dim(0), d = width_ / heads_;
  x1_ = copy_of(dev, x);
  n1_ = norm1_.forward(dev, x1_);
  const ConstTensor c = context.empty() ? ConstTensor(n1_.view()) : context;
  const int64_t m = c.dim(0);
  query_ = q_.forward(dev, n1_);
  key_ = k_.forward(dev, c);
  value_ = v_.forward(dev, c);
  attended_ = OwnedTensor(dev, DType::kF32, {n, width_});
  lse_ = OwnedTensor(dev, DType::kF32, {n, heads_});
  AttentionForward op{.q = query_.view().view({n, heads_, d}),
                      .k = key_.view().view({m, heads_, d}),
                      .v = value_.view().view({m, heads_, d}),
                      .plan = &plan,
                      .scale = 1.0f / std::sqrt(static_cast<float>(d)),
                      .o = attended_.view().view({n, heads_, d}),
                      .lse = lse_,
                      .scratch = {}};
  OwnedTensor scratch(dev, DType::kU8, {std::max<int64_t>(1, attention_forward_scratch(dev, op))});
  op.scratch = scratch;
  attention_forward(dev, op);
  const OwnedTensor projected = o_.forward(dev, attended_);
  axpy(dev, {.x = projected, .a = 1.0f, .y = x});
  x2_ = copy_of(dev, x);
  n2_ = norm2_.forward(dev, x2_);
  hidden_ = up_.forward(dev, n2_);
  activated_ = OwnedTensor(dev, DType::kF32, hidden_.view().shape());
  activation_forward(dev, {.x = hidden_, .kind = Activation::kSilu, .y = activated_});
  const OwnedTensor out = down_.forward(dev, activated_);
  axpy(dev, {.x = out, .a = 1.0f, .y = x});
}

void Block::backward(Device& dev, Tensor dx, ConstTensor context, const AttentionPlan& plan,
                     Tensor dcontext) {
  const int64_t n = dx.dim(0), d = width_ / heads_;
  {
    OwnedTensor dactivated = zeros(dev, activated_.view().shape()),
                dhidden = zeros(dev, hidden_.view().shape());
    OwnedTensor dn = zeros(dev, n2_.view().shape());
    down_.backward(dev, activated_, dx, dactivated);
    activation_backward(dev, {.x = hidden_, .kind = Activation::kSilu, .dy = dactivated, .dx = dhidden});
    up_.backward(dev, n2_, dhidden, dn);
    norm2_.backward(dev, x2_, dn, dx);
  }
  const bool self = context.empty();
  const ConstTensor c = self ? ConstTensor(n1_.view()) : context;
  const int64_t m = c.dim(0);
  OwnedTensor dattended = zeros(dev, attended_.view().shape());
  o_.backward(dev, attended_, dx, dattended);
  OwnedTensor dq(dev, DType::kF32, {n, width_}), dk(dev, DType::kF32, {m, width_}),
      dv(dev, DType::kF32, {m, width_});
  AttentionBackward op{.q = query_.view().view({n, heads_, d}),
                       .k = key_.view().view({m, heads_, d}),
                       .v = value_.view().view({m, heads_, d}),
                       .o = attended_.view().view({n, heads_, d}),
                       .lse = lse_,
                       .d_o = dattended.view().view({n, heads_, d}),
                       .plan = &plan,
                       .scale = 1.0f / std::sqrt(static_cast<float>(d)),
                       .dq = dq.view().view({n, heads_, d}),
                       .dk = dk.view().view({m, heads_, d}),
                       .dv = dv.view().view({m, heads_, d}),
                       .scratch = {}};
  OwnedTensor scratch(dev, DType::kU8, {std::max<int64_t>(1, attention_backward_scratch(dev, op))});
  op.scratch = scratch;
  attention_backward(dev, op);
  OwnedTensor dn = zeros(dev, n1_.view().shape());
  const Tensor dc = self ? dn.view() : dcontext;
  q_.backward(dev, n1_, dq, dn);
  k_.backward(dev, c, dk, dc);
  v_.backward(dev, c, dv, dc);
  norm1_.backward(dev, x1_, dn, dx);
}

}  // namespace gantrain
