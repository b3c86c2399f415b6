#include "core/ops/adversarial.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "tests/reference/adversarial.h"
#include "tests/support/complex_step.h"
#include "tests/support/devices.h"
#include "tests/support/fill.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;
using VC = std::vector<Complex>;

class AdversarialOps : public OpsTest {};
GT_ALL_DEVICES(AdversarialOps);

struct Kind {
  PairLossKind op;
  reference::PairKind truth;
};
constexpr Kind kKinds[] = {{PairLossKind::kRelativistic, reference::PairKind::kRelativistic},
                           {PairLossKind::kBce, reference::PairKind::kBce},
                           {PairLossKind::kHinge, reference::PairKind::kHinge}};

TEST_P(AdversarialOps, SegmentMeanAndItsBackward) {
  for (const int64_t width : {int64_t{1}, int64_t{33}}) {
    const std::vector<int32_t> offsets = {2, 3, 7, 14, 41};  // rows 0, 1 and 41 belong to nobody
    const int64_t n = 42, segments = 4;
    const auto x = random_normal(n * width, 1), dy = random_normal(segments * width, 2),
               dx0 = random_normal(n * width, 3);
    const auto got = run_deterministic([&](Device& d) {
      GuardedMemory m(d);
      const ConstTensor o = m.input(offsets, {segments + 1});
      const Tensor y = m.output({segments, width}), dx = m.accumulator(dx0, {n, width});
      segment_mean_forward(d, {.x = m.input(x, {n, width}), .offsets = o, .y = y});
      segment_mean_backward(d, {.dy = m.input(dy, {segments, width}), .offsets = o, .dx = dx});
      return std::vector<std::vector<float>>{m.read(y), m.read(dx)};
    });
    const V xd = to_double(x), dyd = to_double(dy);
    const auto w = static_cast<size_t>(width);
    // At most 31 normal values a mean, one rounding in the f64 form, n of them in a plain one.
    EXPECT_TRUE(within("y", got[0], reference::segment_mean(xd, offsets, w), 31 * 4.0 * kUnitF32));
    V dx = complex_step_gradient(
        xd, [&](const VC& v) { return dot(reference::segment_mean(v, offsets, w), dyd); });
    for (size_t i = 0; i < dx.size(); ++i) dx[i] += double(dx0[i]);
    EXPECT_TRUE(within("dx", got[1], dx, 2.0 * 8.0 * kUnitF32));
  }
}

TEST_P(AdversarialOps, SegmentsThatAreEmptyOrOutOfRangeThrow) {
  if (!host_sees_values()) return;
  GuardedMemory m(device());
  const ConstTensor x = m.input(random_normal(10, 1), {5, 2});
  for (const std::vector<int32_t>& bad :
       {std::vector<int32_t>{0, 2, 2}, {0, 3, 2}, {-1, 2, 3}, {0, 2, 6}, {0, 2147483647, 5}}) {
    const ConstTensor offsets = m.input(bad, {3});
    const Tensor y = m.output({2, 2}), dx = m.accumulator(random_normal(10, 2), {5, 2});
    EXPECT_THROW(segment_mean_forward(device(), {.x = x, .offsets = offsets, .y = y}), Error);
    EXPECT_THROW(segment_mean_backward(
                     device(), {.dy = m.input(random_normal(4, 3), {2, 2}), .offsets = offsets, .dx = dx}),
                 Error);
  }
}

// Every seed of the discriminator's loss, copies included, against the derivative of the loss as written.
TEST_P(AdversarialOps, PairLossSeedsAreTheGradient) {
  for (const Kind& kind : kKinds)
    for (const int64_t pairs : {int64_t{1}, int64_t{7}, int64_t{257}})
      for (const float smooth : {0.0f, 0.1f})
        for (const bool copies : {false, true}) {
          auto dr = random_normal(pairs, 1, 2.0f), df = random_normal(pairs, 2, 2.0f);
          const auto dr2 = random_normal(pairs, 3, 2.0f), df2 = random_normal(pairs, 4, 2.0f);
          if (pairs > 3) dr[1] = 60.0f, df[1] = -60.0f, dr[2] = -60.0f, df[2] = 60.0f;  // saturated both ways
          const float lam = 3.0f, center = 1e-3f;
          const auto got = run_deterministic([&](Device& d) {
            GuardedMemory m(d);
            const Tensor loss = m.output({1}), ddr = m.output({pairs}), ddf = m.output({pairs}),
                         ddr2 = m.output({pairs}), ddf2 = m.output({pairs});
            pair_loss(d, {.dr = m.input(dr, {pairs}),
                          .df = m.input(df, {pairs}),
                          .dr2 = copies ? m.input(dr2, {pairs}) : ConstTensor{},
                          .df2 = copies ? m.input(df2, {pairs}) : ConstTensor{},
                          .kind = kind.op,
                          .lam = lam,
                          .center = center,
                          .smooth = smooth,
                          .loss = loss,
                          .ddr = ddr,
                          .ddf = ddf,
                          .ddr2 = copies ? ddr2 : Tensor{},
                          .ddf2 = copies ? ddf2 : Tensor{}});
            std::vector<std::vector<float>> out{m.read(loss), m.read(ddr), m.read(ddf)};
            if (copies) out.push_back(m.read(ddr2)), out.push_back(m.read(ddf2));
            return out;
          });
          const V r = to_double(dr), f = to_double(df), r2 = copies ? to_double(dr2) : V{},
                  f2 = copies ? to_double(df2) : V{};
          const auto loss = [&](const auto& a, const auto& b, const auto& a2, const auto& b2) {
            return reference::pair_loss(kind.truth, a, b, a2, b2, double(lam), double(center),
                                        double(smooth));
          };
          const VC rc = to_complex(r), fc = to_complex(f), r2c = to_complex(r2), f2c = to_complex(f2);
          const double value = loss(r, f, r2, f2);
          EXPECT_TRUE(within("loss", got[0], {value}, 8.0 * kUnitF32 * (1.0 + std::abs(value))));
          // Each seed is a handful of roundings of terms of at most 2 lam * 64 (gap) + 1, all over B.
          const double limit = 8.0 * kUnitF32 * (1.0 + (copies ? 2.0 * 3.0 * 70.0 : 0.2)) / double(pairs);
          const auto gradient = [&](const V& at, auto fn) { return complex_step_gradient(at, fn); };
          EXPECT_TRUE(
              within("ddr", got[1], gradient(r, [&](const VC& v) { return loss(v, fc, r2c, f2c); }), limit));
          EXPECT_TRUE(
              within("ddf", got[2], gradient(f, [&](const VC& v) { return loss(rc, v, r2c, f2c); }), limit));
          if (!copies) continue;
          EXPECT_TRUE(
              within("ddr2", got[3], gradient(r2, [&](const VC& v) { return loss(rc, fc, v, f2c); }), limit));
          EXPECT_TRUE(
              within("ddf2", got[4], gradient(f2, [&](const VC& v) { return loss(rc, fc, r2c, v); }), limit));
        }
}

// A pair of twins says nothing about either: whatever D's parameters get from Dr they give back for Df.
TEST_P(AdversarialOps, IdenticalPairGivesZeroRelativisticGradient) {
  const int64_t pairs = 31;
  const auto d = random_normal(pairs, 1, 5.0f);
  GuardedMemory m(device());
  const Tensor loss = m.output({1}), ddr = m.output({pairs}), ddf = m.output({pairs});
  const ConstTensor twins = m.input(d, {pairs});
  pair_loss(device(), {.dr = twins,
                       .df = twins,
                       .dr2 = {},
                       .df2 = {},
                       .center = 0.0f,
                       .loss = loss,
                       .ddr = ddr,
                       .ddf = ddf,
                       .ddr2 = {},
                       .ddf2 = {}});
  const auto r = m.read(ddr), f = m.read(ddf);
  for (size_t i = 0; i < r.size(); ++i) EXPECT_EQ(r[i] + f[i], 0.0f) << i;
  EXPECT_TRUE(within("loss", m.read(loss), {std::log(2.0)}, 2.0 * kUnitF32));
}

TEST_P(AdversarialOps, GeneratorPairLossSeedIsTheGradient) {
  for (const Kind& kind : kKinds)
    for (const int64_t pairs : {int64_t{1}, int64_t{33}}) {
      auto dr = random_normal(pairs, 1, 2.0f), df = random_normal(pairs, 2, 2.0f);
      if (pairs > 2) dr[1] = 60.0f, df[1] = -60.0f;
      const auto got = run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const Tensor loss = m.output({1}), ddf = m.output({pairs});
        generator_pair_loss(d, {.dr = m.input(dr, {pairs}),
                                .df = m.input(df, {pairs}),
                                .kind = kind.op,
                                .loss = loss,
                                .ddf = ddf});
        return std::vector<std::vector<float>>{m.read(loss), m.read(ddf)};
      });
      const V r = to_double(dr), f = to_double(df);
      const double value = reference::generator_pair_loss(kind.truth, r, f);
      EXPECT_TRUE(within("loss", got[0], {value}, 8.0 * kUnitF32 * (1.0 + std::abs(value))));
      const V seed = complex_step_gradient(
          f, [&](const VC& v) { return reference::generator_pair_loss(kind.truth, to_complex(r), v); });
      EXPECT_TRUE(within("ddf", got[1], seed, 8.0 * kUnitF32 / double(pairs)));
    }
}

TEST_P(AdversarialOps, RmsPenaltyIsTheGradientAndVanishesAtTheReference) {
  // 2048 values: all blocks of the GPU's sum have four for each thread, and the last ends at the tensor's
  // end.
  for (const auto& [rows, width, reference_rms] :
       {std::tuple<int64_t, int64_t, float>{5, 33, 0.1f}, {5, 33, 2.0f}, {4, 512, 0.1f}}) {
    const auto x = random_normal(rows * width, 1, 0.3f), dx0 = random_normal(rows * width, 2);
    const float weight = 0.5f;
    const auto got =
        run_deterministic([&, rows = rows, width = width, reference_rms = reference_rms](Device& d) {
          GuardedMemory m(d);
          const Tensor loss = m.output({1}), rms = m.output({1}), dx = m.accumulator(dx0, {rows, width});
          rms_penalty(d, {.prompt = m.input(x, {rows, width}),
                          .reference_rms = reference_rms,
                          .weight = weight,
                          .loss = loss,
                          .rms = rms,
                          .dprompt = dx});
          return std::vector<std::vector<float>>{m.read(loss), m.read(rms), m.read(dx)};
        });
    const V xd = to_double(x);
    const auto loss = [&, reference_rms = reference_rms](const auto& v) {
      return reference::rms_penalty(v, double(reference_rms), double(weight));
    };
    EXPECT_TRUE(within("loss", got[0], {loss(xd)}, 8.0 * kUnitF32 * (1.0 + std::abs(loss(xd)))));
    V dx = complex_step_gradient(xd, [&](const VC& v) { return loss(v); });
    for (size_t i = 0; i < dx.size(); ++i) dx[i] += double(dx0[i]);
    EXPECT_TRUE(within("dprompt", got[2], dx, 2.0 * kUnitF32 * 4.0));
    double square = 0.0;
    for (double v : xd) square += v * v / double(xd.size());
    EXPECT_TRUE(within("rms", got[1], {std::sqrt(square)}, 2.0 * kUnitF32));
  }
  GuardedMemory m(device());
  const Tensor loss = m.output({1}), rms = m.output({1}), dx = m.accumulator({0.0f, 0.0f}, {1, 2});
  rms_penalty(device(), {.prompt = m.input(std::vector<float>{3.0f, -3.0f}, {1, 2}),
                         .reference_rms = 3.0f,
                         .weight = 1.0f,
                         .loss = loss,
                         .rms = rms,
                         .dprompt = dx});
  EXPECT_EQ(m.read(loss)[0], 0.0f);
  EXPECT_EQ(m.read(dx)[0], 0.0f);
  // A prompt of zeros has no logarithm: an error where the host sees it, an infinite loss elsewhere.
  const RmsPenalty zeros{.prompt = m.input(std::vector<float>{0.0f, 0.0f}, {1, 2}),
                         .reference_rms = 3.0f,
                         .weight = 1.0f,
                         .loss = loss,
                         .rms = rms,
                         .dprompt = dx};
  if (host_sees_values()) {
    EXPECT_THROW(rms_penalty(device(), zeros), Error);
  } else {
    rms_penalty(device(), zeros);
    EXPECT_TRUE(std::isinf(m.read(loss)[0]));
  }
}

TEST_P(AdversarialOps, BrokenContractsThrow) {
  GuardedMemory m(device());
  const ConstTensor a = m.input(random_normal(4, 1), {4}), b = m.input(random_normal(3, 2), {3});
  const Tensor loss = m.output({1}), da = m.output({4}), db = m.output({4});
  PairLoss good{
      .dr = a, .df = a, .dr2 = {}, .df2 = {}, .loss = loss, .ddr = da, .ddf = db, .ddr2 = {}, .ddf2 = {}};
  EXPECT_NO_THROW(pair_loss(device(), good));
  PairLoss p = good;
  p.df = b;
  EXPECT_THROW(pair_loss(device(), p), Error);
  p = good;
  p.dr2 = a;  // one copy only
  EXPECT_THROW(pair_loss(device(), p), Error);
  p.df2 = a;  // both, but nowhere to write their seeds
  EXPECT_THROW(pair_loss(device(), p), Error);
  p = good;
  p.smooth = 1.0f;
  EXPECT_THROW(pair_loss(device(), p), Error);
  p = good;
  p.loss = {};
  EXPECT_THROW(pair_loss(device(), p), Error);
}

}  // namespace
}  // namespace gantrain
