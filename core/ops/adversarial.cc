#include "core/ops/adversarial.h"

#include <cmath>

#include "core/ops/contract.h"

namespace gantrain {
namespace {

constexpr DType kF32 = DType::kF32, kI32 = DType::kI32;

}  // namespace

void segment_mean_forward(Device& d, const SegmentMeanForward& a) {
  const contract::Checker check("segment_mean_forward", d);
  check.rank("x", a.x, 2);
  check.rank("y", a.y, 2);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), s = a.y.dim(0);
  check.tensor("x", a.x, kF32, {n, c});
  check.tensor("offsets", a.offsets, kI32, {s + 1});
  check.tensor("y", a.y, kF32, {s, c});
  d.ops().segment_mean_forward(a);
}

void segment_mean_backward(Device& d, const SegmentMeanBackward& a) {
  const contract::Checker check("segment_mean_backward", d);
  check.rank("dx", a.dx, 2);
  check.rank("dy", a.dy, 2);
  const int64_t n = a.dx.dim(0), c = a.dx.dim(1), s = a.dy.dim(0);
  check.tensor("dy", a.dy, kF32, {s, c});
  check.tensor("offsets", a.offsets, kI32, {s + 1});
  check.tensor("dx", a.dx, kF32, {n, c});
  d.ops().segment_mean_backward(a);
}

void pair_loss(Device& d, const PairLoss& a) {
  const contract::Checker check("pair_loss", d);
  check.rank("dr", a.dr, 1);
  const Shape pairs{a.dr.dim(0)};
  GT_CHECK(pairs[0] > 0, "{}: no pairs", check.op());
  check.tensor("dr", a.dr, kF32, pairs);
  check.tensor("df", a.df, kF32, pairs);
  check.tensor("loss", a.loss, kF32, {1});
  check.tensor("ddr", a.ddr, kF32, pairs);
  check.tensor("ddf", a.ddf, kF32, pairs);
  GT_CHECK(a.dr2.empty() == a.df2.empty(), "{}: noisy copies come in pairs, got only one of dr2 and df2",
           check.op());
  if (!a.dr2.empty()) {
    check.tensor("dr2", a.dr2, kF32, pairs);
    check.tensor("df2", a.df2, kF32, pairs);
    check.tensor("ddr2", a.ddr2, kF32, pairs);
    check.tensor("ddf2", a.ddf2, kF32, pairs);
  }
  GT_CHECK(a.smooth >= 0.0f && a.smooth < 1.0f, "{}: label smoothing {} is not in [0, 1)", check.op(),
           a.smooth);
  GT_CHECK(a.lam >= 0.0f && a.center >= 0.0f, "{}: negative penalty: lam {}, center {}", check.op(), a.lam,
           a.center);
  d.ops().pair_loss(a);
}

void generator_pair_loss(Device& d, const GeneratorPairLoss& a) {
  const contract::Checker check("generator_pair_loss", d);
  check.rank("df", a.df, 1);
  const Shape pairs{a.df.dim(0)};
  GT_CHECK(pairs[0] > 0, "{}: no pairs", check.op());
  check.tensor("dr", a.dr, kF32, pairs);
  check.tensor("df", a.df, kF32, pairs);
  check.tensor("loss", a.loss, kF32, {1});
  check.tensor("ddf", a.ddf, kF32, pairs);
  d.ops().generator_pair_loss(a);
}

void rms_penalty(Device& d, const RmsPenalty& a) {
  const contract::Checker check("rms_penalty", d);
  check.rank("prompt", a.prompt, 2);
  GT_CHECK(a.prompt.count() > 0, "{}: the prompt is empty", check.op());
  check.tensor("prompt", a.prompt, kF32, a.prompt.shape());
  check.tensor("loss", a.loss, kF32, {1});
  check.tensor("rms", a.rms, kF32, {1});
  check.tensor("dprompt", a.dprompt, kF32, a.prompt.shape());
  GT_CHECK(a.reference_rms > 0.0f && std::isfinite(a.reference_rms), "{}: the reference rms is {}",
           check.op(), a.reference_rms);
  d.ops().rms_penalty(a);
}

int64_t segment_mean_forward_bytes(const SegmentMeanForward& a) {
  return a.x.bytes() + a.offsets.bytes() + a.y.bytes();
}
int64_t segment_mean_backward_bytes(const SegmentMeanBackward& a) {
  return a.dy.bytes() + a.offsets.bytes() + 2 * a.dx.bytes();
}
int64_t pair_loss_bytes(const PairLoss& a) {  // scores in, seeds out, for the copies as well
  return a.dr.bytes() + a.df.bytes() + contract::bytes_of(a.dr2) + contract::bytes_of(a.df2) +
         a.loss.bytes() + a.ddr.bytes() + a.ddf.bytes() + contract::bytes_of(a.ddr2) +
         contract::bytes_of(a.ddf2);
}
int64_t generator_pair_loss_bytes(const GeneratorPairLoss& a) {
  return a.dr.bytes() + a.df.bytes() + a.loss.bytes() + a.ddf.bytes();
}
int64_t rms_penalty_bytes(const RmsPenalty& a) {
  return a.prompt.bytes() + a.loss.bytes() + a.rms.bytes() + 2 * a.dprompt.bytes();
}

}  // namespace gantrain
