#include "core/ops/optimizer.h"

#include "core/ops.h"
#include "core/ops/contract.h"

namespace gantrain {
namespace {

constexpr DType kF32 = DType::kF32;

}  // namespace

void gradient_norm(Device& d, const GradientNorm& a) {
  for (const Tensor& g : a.grads) expect_tensor(d, "gradient_norm", "grads", g, kF32, g.shape());
  expect_tensor(d, "gradient_norm", "out", a.out, kF32, {1});
  d.ops().gradient_norm(a);
}

void adamw(Device& d, const AdamW& a) {
  const Shape shape = a.param.shape();
  expect_tensor(d, "adamw", "param", a.param, kF32, shape);
  expect_tensor(d, "adamw", "grad", a.grad, kF32, shape);
  expect_tensor(d, "adamw", "m", a.m, kF32, shape);
  expect_tensor(d, "adamw", "v", a.v, kF32, shape);
  GT_CHECK(a.step >= 1, "adamw: steps are counted from 1, got {}", a.step);
  GT_CHECK(a.beta1 >= 0.0f && a.beta1 < 1.0f && a.beta2 >= 0.0f && a.beta2 < 1.0f,
           "adamw: beta1 {} and beta2 {} must be in [0, 1)", a.beta1, a.beta2);
  GT_CHECK(a.eps > 0.0f, "adamw: eps {} must be above 0", a.eps);
  d.ops().adamw(a);
}

void ema(Device& d, const Ema& a) {
  expect_tensor(d, "ema", "x", a.x, kF32, a.x.shape());
  expect_tensor(d, "ema", "ema", a.ema, kF32, a.x.shape());
  GT_CHECK(a.decay >= 0.0f && a.decay <= 1.0f, "ema: decay {} is not in [0, 1]", a.decay);
  d.ops().ema(a);
}

bool all_finite(Device& d, ConstTensor t) {
  GT_CHECK(t.dtype() == DType::kF32 || t.dtype() == DType::kBF16,
           "all_finite: {} is not a floating type here", dtype_name(t.dtype()));
  expect_tensor(d, "all_finite", "tensor", t, t.dtype(), t.shape());
  return d.ops().all_finite(t);
}

}  // namespace gantrain
