#include "core/ops/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/devices.h"
#include "tests/support/fill.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;

class OptimizerOps : public OpsTest {};
GT_ALL_DEVICES(OptimizerOps);

// Algorithm 2 of Loshchilov & Hutter with the schedule multiplier in lr, by hand and in double.
TEST_P(OptimizerOps, AdamWMatchesTheAlgorithmOverManySteps) {
  struct Setting {
    float beta1, beta2, decay, scale;
  };
  for (const Setting& s :
       {Setting{0.9f, 0.999f, 0.0f, 1.0f}, {0.0f, 0.99f, 0.1f, 0.5f}, {0.5f, 0.99f, 0.01f, 1.0f}}) {
    const int64_t n = 9001;
    const int steps = 25;
    const float lr = 1e-2f, eps = 1e-8f;
    const auto start = random_normal(n, 1);
    const auto got = run_deterministic([&](Device& d) {
      GuardedMemory mem(d);
      const Tensor param = mem.accumulator(start, {n}), m = mem.accumulator(std::vector<float>(9001), {n}),
                   v = mem.accumulator(std::vector<float>(9001), {n});
      for (int t = 1; t <= steps; ++t)
        adamw(d, {.param = param,
                  .grad = mem.input(random_normal(n, static_cast<uint64_t>(100 + t)), {n}),
                  .m = m,
                  .v = v,
                  .lr = lr,
                  .beta1 = s.beta1,
                  .beta2 = s.beta2,
                  .eps = eps,
                  .weight_decay = s.decay,
                  .grad_scale = s.scale,
                  .step = t});
      return std::vector<std::vector<float>>{mem.read(param), mem.read(m), mem.read(v)};
    });
    V param = to_double(start), m(param.size(), 0.0), v(param.size(), 0.0);
    const double b1 = double(s.beta1), b2 = double(s.beta2);
    for (int t = 1; t <= steps; ++t) {
      const auto grad = random_normal(n, static_cast<uint64_t>(100 + t));
      for (size_t i = 0; i < param.size(); ++i) {
        const double g = double(grad[i]) * double(s.scale);
        m[i] = b1 * m[i] + (1.0 - b1) * g;
        v[i] = b2 * v[i] + (1.0 - b2) * g * g;
        const double mhat = m[i] / (1.0 - std::pow(b1, t)), vhat = v[i] / (1.0 - std::pow(b2, t));
        param[i] -= double(lr) * (mhat / (std::sqrt(vhat) + double(eps)) + double(s.decay) * param[i]);
      }
    }
    // A step moves a parameter by at most about lr * 8 (relative error ~8 units) and rounds it (|param| < 5).
    EXPECT_TRUE(within("param", got[0], param, steps * (8.0 * double(lr) * 8.0 + 5.0) * kUnitF32));
    EXPECT_TRUE(within("m", got[1], m, 5.0 * 3 * steps * kUnitF32));
    EXPECT_TRUE(within("v", got[2], v, 20.0 * 3 * steps * kUnitF32));
  }
}

TEST_P(OptimizerOps, GradientNormSpansTensorsInAFixedOrder) {
  const auto a = random_normal(20001, 1), b = random_normal(7, 2, 100.0f);
  const auto got = run_deterministic([&](Device& d) {
    GuardedMemory m(d);
    const std::vector<Tensor> grads = {m.accumulator(a, {20001}), m.accumulator(b, {7, 1})};
    const Tensor out = m.output({1});
    gradient_norm(d, {.grads = grads, .out = out});
    return std::vector<std::vector<float>>{m.read(out)};
  });
  double square = 0.0;
  for (float x : a) square += double(x) * double(x);
  for (float x : b) square += double(x) * double(x);
  EXPECT_TRUE(within("norm", got[0], {std::sqrt(square)}, kUnitF32 * 1.01 * std::sqrt(square)));
}

TEST_P(OptimizerOps, EmaMatchesTruth) {
  const int64_t n = 9001;
  const auto x = random_normal(n, 1), start = random_normal(n, 2);
  const float decay = 0.999f;
  const auto got = run_deterministic([&](Device& d) {
    GuardedMemory m(d);
    const Tensor mean = m.accumulator(start, {n});
    ema(d, {.x = m.input(x, {n}), .decay = decay, .ema = mean});
    return std::vector<std::vector<float>>{m.read(mean)};
  });
  V want = to_double(start);
  for (size_t i = 0; i < want.size(); ++i)
    want[i] = double(decay) * want[i] + (1.0 - double(decay)) * double(x[i]);
  EXPECT_TRUE(within("ema", got[0], want, 5.0 * 3.0 * kUnitF32));
}

TEST_P(OptimizerOps, AllFiniteFindsOneBadValueAnywhere) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    auto x = random_normal(20001, 1);
    x[3] = std::numeric_limits<float>::denorm_min();
    x[4] = dtype == DType::kF16 ? 65504.0f : 3e38f;
    GuardedMemory m(device());
    EXPECT_TRUE(all_finite(device(), m.input(x, {20001}, dtype)));
    for (const float bad : {inf, -inf, nan, -nan})
      for (const size_t at : {size_t{0}, size_t{8191}, size_t{20000}}) {
        auto y = x;
        y[at] = bad;
        EXPECT_FALSE(all_finite(device(), m.input(y, {20001}, dtype))) << bad << " at " << at;
      }
  }
}

TEST_P(OptimizerOps, BrokenContractsThrow) {
  GuardedMemory mem(device());
  const Tensor a = mem.accumulator(random_normal(4, 1), {4}), b = mem.accumulator(random_normal(3, 2), {3});
  AdamW good{.param = a,
             .grad = a,
             .m = a,
             .v = a,
             .lr = 0.0f,
             .beta1 = 0.9f,
             .beta2 = 0.99f,
             .eps = 1e-8f,
             .weight_decay = 0.0f,
             .grad_scale = 1.0f,
             .step = 1};
  AdamW p = good;
  p.grad = b;
  EXPECT_THROW(adamw(device(), p), Error);
  p = good;
  p.step = 0;
  EXPECT_THROW(adamw(device(), p), Error);
  p = good;
  p.beta2 = 1.0f;
  EXPECT_THROW(adamw(device(), p), Error);
  EXPECT_THROW(ema(device(), {.x = a, .decay = 1.5f, .ema = a}), Error);
  EXPECT_THROW(ema(device(), {.x = a, .decay = 0.5f, .ema = b}), Error);
  const std::vector<Tensor> grads = {a};
  EXPECT_THROW(gradient_norm(device(), {.grads = grads, .out = a}), Error);
  EXPECT_THROW(all_finite(device(), mem.input(std::vector<int32_t>{1}, {1})), Error);
}

}  // namespace
}  // namespace gantrain
