#include "core/ops/adversarial.h"

#include <cmath>

#include "core/ops.h"
#include "core/ops/contract.h"

namespace gantrain {
namespace {

constexpr DType kF32 = DType::kF32, kI32 = DType::kI32;

}  // namespace

void segment_mean_forward(Device& d, const SegmentMeanForward& a) {
  const char* op = "segment_mean_forward";
  expect_rank(op, "x", a.x, 2);
  expect_rank(op, "y", a.y, 2);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), s = a.y.dim(0);
  expect_tensor(d, op, "x", a.x, kF32, {n, c});
  expect_tensor(d, op, "offsets", a.offsets, kI32, {s + 1});
  expect_tensor(d, op, "y", a.y, kF32, {s, c});
  d.ops().segment_mean_forward(a);
}

void segment_mean_backward(Device& d, const SegmentMeanBackward& a) {
  const char* op = "segment_mean_backward";
  expect_rank(op, "dx", a.dx, 2);
  expect_rank(op, "dy", a.dy, 2);
  const int64_t n = a.dx.dim(0), c = a.dx.dim(1), s = a.dy.dim(0);
  expect_tensor(d, op, "dy", a.dy, kF32, {s, c});
  expect_tensor(d, op, "offsets", a.offsets, kI32, {s + 1});
  expect_tensor(d, op, "dx", a.dx, kF32, {n, c});
  d.ops().segment_mean_backward(a);
}

void pair_loss(Device& d, const PairLoss& a) {
  const char* op = "pair_loss";
  expect_rank(op, "dr", a.dr, 1);
  const Shape pairs{a.dr.dim(0)};
  GT_CHECK(pairs[0] > 0, "{}: no pairs", op);
  expect_tensor(d, op, "dr", a.dr, kF32, pairs);
  expect_tensor(d, op, "df", a.df, kF32, pairs);
  expect_tensor(d, op, "loss", a.loss, kF32, {1});
  expect_tensor(d, op, "ddr", a.ddr, kF32, pairs);
  expect_tensor(d, op, "ddf", a.ddf, kF32, pairs);
  GT_CHECK(a.dr2.empty() == a.df2.empty(), "{}: noisy copies come in pairs, got only one of dr2 and df2", op);
  if (!a.dr2.empty()) {
    expect_tensor(d, op, "dr2", a.dr2, kF32, pairs);
    expect_tensor(d, op, "df2", a.df2, kF32, pairs);
    expect_tensor(d, op, "ddr2", a.ddr2, kF32, pairs);
    expect_tensor(d, op, "ddf2", a.ddf2, kF32, pairs);
  }
  GT_CHECK(a.smooth >= 0.0f && a.smooth < 1.0f, "{}: label smoothing {} is not in [0, 1)", op, a.smooth);
  GT_CHECK(a.lam >= 0.0f && a.center >= 0.0f, "{}: negative penalty: lam {}, center {}", op, a.lam, a.center);
  d.ops().pair_loss(a);
}

void generator_pair_loss(Device& d, const GeneratorPairLoss& a) {
  const char* op = "generator_pair_loss";
  expect_rank(op, "df", a.df, 1);
  const Shape pairs{a.df.dim(0)};
  GT_CHECK(pairs[0] > 0, "{}: no pairs", op);
  expect_tensor(d, op, "dr", a.dr, kF32, pairs);
  expect_tensor(d, op, "df", a.df, kF32, pairs);
  expect_tensor(d, op, "loss", a.loss, kF32, {1});
  expect_tensor(d, op, "ddf", a.ddf, kF32, pairs);
  d.ops().generator_pair_loss(a);
}

void rms_penalty(Device& d, const RmsPenalty& a) {
  const char* op = "rms_penalty";
  expect_rank(op, "prompt", a.prompt, 2);
  GT_CHECK(a.prompt.count() > 0, "{}: the prompt is empty", op);
  expect_tensor(d, op, "prompt", a.prompt, kF32, a.prompt.shape());
  expect_tensor(d, op, "loss", a.loss, kF32, {1});
  expect_tensor(d, op, "rms", a.rms, kF32, {1});
  expect_tensor(d, op, "dprompt", a.dprompt, kF32, a.prompt.shape());
  GT_CHECK(a.reference_rms > 0.0f && std::isfinite(a.reference_rms), "{}: the reference rms is {}", op,
           a.reference_rms);
  d.ops().rms_penalty(a);
}

}  // namespace gantrain
