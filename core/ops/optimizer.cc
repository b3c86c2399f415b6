#include "core/ops/optimizer.h"

#include "core/ops/contract.h"

namespace gantrain {
namespace {

constexpr DType kF32 = DType::kF32;

}  // namespace

void gradient_norm(Device& d, const GradientNorm& a) {
  const contract::Checker check("gradient_norm", d);
  for (const Tensor& g : a.grads) check.tensor("grads", g, kF32, g.shape());
  check.tensor("out", a.out, kF32, {1});
  d.ops().gradient_norm(a);
}

void adamw(Device& d, const AdamW& a) {
  const contract::Checker check("adamw", d);
  const Shape shape = a.param.shape();
  check.tensor("param", a.param, kF32, shape);
  check.tensor("grad", a.grad, kF32, shape);
  check.tensor("m", a.m, kF32, shape);
  check.tensor("v", a.v, kF32, shape);
  GT_CHECK(a.step >= 1, "adamw: steps are counted from 1, got {}", a.step);
  GT_CHECK(a.beta1 >= 0.0f && a.beta1 < 1.0f && a.beta2 >= 0.0f && a.beta2 < 1.0f,
           "adamw: beta1 {} and beta2 {} must be in [0, 1)", a.beta1, a.beta2);
  GT_CHECK(a.eps > 0.0f, "adamw: eps {} must be above 0", a.eps);
  d.ops().adamw(a);
}

void ema(Device& d, const Ema& a) {
  const contract::Checker check("ema", d);
  check.tensor("x", a.x, kF32, a.x.shape());
  check.tensor("ema", a.ema, kF32, a.x.shape());
  GT_CHECK(a.decay >= 0.0f && a.decay <= 1.0f, "ema: decay {} is not in [0, 1]", a.decay);
  d.ops().ema(a);
}

bool all_finite(Device& d, ConstTensor t) {
  const contract::Checker check("all_finite", d);
  GT_CHECK(t.dtype() == DType::kF32 || t.dtype() == DType::kBF16 || t.dtype() == DType::kF16,
           "all_finite: {} is not a floating type here", dtype_name(t.dtype()));
  check.tensor("tensor", t, t.dtype(), t.shape());
  return d.ops().all_finite(t);
}

int64_t gradient_norm_bytes(const GradientNorm& a) {
  int64_t bytes = a.out.bytes();
  for (const Tensor& t : a.grads) bytes += t.bytes();
  return bytes;
}
int64_t adamw_bytes(const AdamW& a) {
  return a.grad.bytes() + 2 * (a.param.bytes() + a.m.bytes() + a.v.bytes());
}
int64_t ema_bytes(const Ema& a) { return a.x.bytes() + 2 * a.ema.bytes(); }

}  // namespace gantrain
