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

// Algorithm 2 of Loshchilov & Hutter with the schedule multiplier in lr, by hand and in double, over several
// tensors at once; more of them than one launch takes, and sizes around what a thread and a block own.
TEST_P(OptimizerOps, AdamWMatchesTheAlgorithmOverManySteps) {
  struct Setting {
    float beta1, beta2, decay, norm, clip, scale;  // scale: what norm and clip make of a gradient
  };
  std::vector<int64_t> sizes = {9001, 1, 3, 4, 5, 1023, 1024, 1025};
  for (int i = 0; i < 60; ++i) sizes.push_back(2 + i % 7);
  for (const Setting& s : {Setting{0.9f, 0.999f, 0.0f, 2.0f, 0.0f, 1.0f},
                           {0.0f, 0.99f, 0.1f, 2.0f, 1.0f, 0.5f},
                           {0.5f, 0.99f, 0.01f, 0.25f, 1.0f, 1.0f}}) {
    const int steps = 6;
    const float lr = 1e-2f, eps = 1e-8f;
    const auto start = [](size_t i, int64_t n) { return random_normal(n, 1 + i); };
    const auto gradient = [](size_t i, int64_t n, int t) {
      return random_normal(n, static_cast<uint64_t>(1000 * t) + i);
    };
    const auto got = run_deterministic([&](Device& d) {
      GuardedMemory mem(d);
      std::vector<Tensor> params, m, v;
      for (size_t i = 0; i < sizes.size(); ++i) {
        params.push_back(mem.accumulator(start(i, sizes[i]), {sizes[i]}));
        for (auto* moments : {&m, &v})
          moments->push_back(mem.accumulator(std::vector<float>(static_cast<size_t>(sizes[i])), {sizes[i]}));
      }
      for (int t = 1; t <= steps; ++t) {
        std::vector<Tensor> grads;
        for (size_t i = 0; i < sizes.size(); ++i)
          grads.push_back(mem.accumulator(gradient(i, sizes[i], t), {sizes[i]}));
        adamw(d, {.params = params,
                  .grads = grads,
                  .m = m,
                  .v = v,
                  .norm = mem.input(std::vector<float>{s.norm}, {1}),
                  .clip = s.clip,
                  .lr = lr,
                  .beta1 = s.beta1,
                  .beta2 = s.beta2,
                  .eps = eps,
                  .weight_decay = s.decay,
                  .step = t});
      }
      std::vector<std::vector<float>> out;
      for (size_t i = 0; i < sizes.size(); ++i)
        for (const Tensor& t : {params[i], m[i], v[i]}) out.push_back(mem.read(t));
      return out;
    });
    for (size_t k = 0; k < sizes.size(); ++k) {
      V param = to_double(start(k, sizes[k])), m(param.size(), 0.0), v(param.size(), 0.0);
      const double b1 = double(s.beta1), b2 = double(s.beta2);
      for (int t = 1; t <= steps; ++t) {
        const auto grad = gradient(k, sizes[k], t);
        for (size_t i = 0; i < param.size(); ++i) {
          const double g = double(grad[i]) * double(s.scale);
          m[i] = b1 * m[i] + (1.0 - b1) * g;
          v[i] = b2 * v[i] + (1.0 - b2) * g * g;
          const double mhat = m[i] / (1.0 - std::pow(b1, t)), vhat = v[i] / (1.0 - std::pow(b2, t));
          param[i] -= double(lr) * (mhat / (std::sqrt(vhat) + double(eps)) + double(s.decay) * param[i]);
        }
      }
      // A step moves a parameter by at most about lr * 8 (relative error ~8 units) and rounds it (|param| <
      // 5).
      EXPECT_TRUE(within("param", got[3 * k], param, steps * (8.0 * double(lr) * 8.0 + 5.0) * kUnitF32));
      EXPECT_TRUE(within("m", got[3 * k + 1], m, 5.0 * 3 * steps * kUnitF32));
      EXPECT_TRUE(within("v", got[3 * k + 2], v, 20.0 * 3 * steps * kUnitF32));
    }
  }
}

// Views that begin anywhere: the kernels' 16-byte path is closed to them.
TEST_P(OptimizerOps, TensorsMayBeginAtAnyElement) {
  const int64_t n = 1030;
  const auto x = random_normal(n, 1), y = random_normal(n, 2);
  GuardedMemory mem(device());
  const Tensor param = mem.accumulator(x, {n}), grad = mem.accumulator(y, {n}), m = mem.accumulator(y, {n}),
               v = mem.accumulator(std::vector<float>(x.size(), 4.0f), {n}), norm = mem.output({1}),
               mean = mem.accumulator(y, {n});
  // All but the first element, as five tensors: a block has to find its own among several.
  const auto tail = [&](const Tensor& t) {
    std::vector<Tensor> parts;
    for (const auto& [begin, end] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 6}, {6, 7}, {7, 706}, {706, 710}, {710, n}})
      parts.push_back(t.rows(begin, end - begin));
    return parts;
  };
  const std::vector<Tensor> written = tail(param);
  const std::vector<ConstTensor> now(written.begin(), written.end());
  gradient_norm(device(), {.grads = tail(grad), .out = norm});
  adamw(device(), {.params = tail(param),
                   .grads = tail(grad),
                   .m = tail(m),
                   .v = tail(v),
                   .norm = norm,
                   .clip = 1.0f,
                   .lr = 0.1f,
                   .beta1 = 0.0f,
                   .beta2 = 0.5f,
                   .eps = 1.0f,
                   .weight_decay = 0.0f,
                   .step = 1});
  ema(device(), {.x = now, .decay = 0.0f, .ema = tail(mean), .norm = {}});
  double square = 0.0;
  for (size_t i = 1; i < y.size(); ++i) square += double(y[i]) * double(y[i]);
  EXPECT_TRUE(within("norm", mem.read(norm), {std::sqrt(square)}, kUnitF32 * 1.01 * std::sqrt(square)));
  V want = to_double(x);
  for (size_t i = 1; i < y.size(); ++i) {
    const double g = double(y[i]) / std::sqrt(square), second = 0.5 * 4.0 + 0.5 * g * g;
    want[i] -= 0.1 * g / (std::sqrt(second / 0.5) + 1.0);
  }
  const auto got = mem.read(param);
  // A step of at most 0.1 with relative error ~8 units, and the rounding of |param| < 5.
  EXPECT_TRUE(within("param", got, want, (0.1 * 8.0 + 5.0) * kUnitF32));
  auto average = got;
  average[0] = y[0];
  EXPECT_TRUE(bitwise_equal("average", mem.read(mean), average));
}

TEST_P(OptimizerOps, ANormThatIsNotFiniteLeavesEverythingAsItWas) {
  const auto x = random_normal(2001, 1), y = random_normal(2001, 2);
  for (const float norm : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    GuardedMemory mem(device());
    const std::vector<Tensor> params = {mem.accumulator(x, {2001})}, grads = {mem.accumulator(y, {2001})},
                              m = {mem.accumulator(y, {2001})}, v = {mem.accumulator(x, {2001})},
                              mean = {mem.accumulator(y, {2001})};
    const std::vector<ConstTensor> now = {params[0]};
    const Tensor n = mem.accumulator({norm}, {1});
    adamw(device(), {.params = params,
                     .grads = grads,
                     .m = m,
                     .v = v,
                     .norm = n,
                     .clip = 1.0f,
                     .lr = 0.1f,
                     .beta1 = 0.9f,
                     .beta2 = 0.99f,
                     .eps = 1e-8f,
                     .weight_decay = 0.1f,
                     .step = 1});
    ema(device(), {.x = now, .decay = 0.5f, .ema = mean, .norm = n});
    EXPECT_TRUE(bitwise_equal("param", mem.read(params[0]), x));
    EXPECT_TRUE(bitwise_equal("m", mem.read(m[0]), y));
    EXPECT_TRUE(bitwise_equal("v", mem.read(v[0]), x));
    EXPECT_TRUE(bitwise_equal("average", mem.read(mean[0]), y));
  }
}

TEST_P(OptimizerOps, GradientNormSpansTensorsInAFixedOrder) {
  const auto a = random_normal(20001, 1), b = random_normal(7, 2, 100.0f);
  const auto got = run_deterministic([&](Device& d) {
    GuardedMemory m(d);
    std::vector<Tensor> grads = {m.accumulator(a, {20001}), m.accumulator(b, {7, 1})};
    for (int i = 0; i < 70; ++i) grads.push_back(m.accumulator(b, {7}));  // more than one launch takes
    const Tensor out = m.output({1});
    gradient_norm(d, {.grads = grads, .out = out});
    return std::vector<std::vector<float>>{m.read(out)};
  });
  double square = 0.0;
  for (float x : a) square += double(x) * double(x);
  for (float x : b) square += 71 * double(x) * double(x);
  EXPECT_TRUE(within("norm", got[0], {std::sqrt(square)}, kUnitF32 * 1.01 * std::sqrt(square)));
}

TEST_P(OptimizerOps, EmaMatchesTruth) {
  const std::vector<int64_t> sizes = {9001, 3, 1024};
  const auto x = [](size_t i, int64_t n) { return random_normal(n, 1 + 2 * i); };
  const auto start = [](size_t i, int64_t n) { return random_normal(n, 2 + 2 * i); };
  const float decay = 0.999f;
  const auto got = run_deterministic([&](Device& d) {
    GuardedMemory m(d);
    std::vector<ConstTensor> now;
    std::vector<Tensor> mean;
    for (size_t i = 0; i < sizes.size(); ++i) {
      now.push_back(m.input(x(i, sizes[i]), {sizes[i]}));
      mean.push_back(m.accumulator(start(i, sizes[i]), {sizes[i]}));
    }
    ema(d, {.x = now, .decay = decay, .ema = mean, .norm = {}});
    std::vector<std::vector<float>> out;
    for (const Tensor& t : mean) out.push_back(m.read(t));
    return out;
  });
  for (size_t k = 0; k < sizes.size(); ++k) {
    V want = to_double(start(k, sizes[k]));
    const auto now = x(k, sizes[k]);
    for (size_t i = 0; i < want.size(); ++i)
      want[i] = double(decay) * want[i] + (1.0 - double(decay)) * double(now[i]);
    EXPECT_TRUE(within("ema", got[k], want, 5.0 * 3.0 * kUnitF32));
  }
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
      for (const size_t at : {size_t{0}, size_t{8191}, size_t{19997}, size_t{19999}, size_t{20000}}) {
        auto y = x;
        y[at] = bad;
        EXPECT_FALSE(all_finite(device(), m.input(y, {20001}, dtype))) << bad << " at " << at;
      }
  }
}

// Words of two values: CUDA refuses 16-bit values at an address that has none, the CPU looks at each value.
TEST_P(OptimizerOps, AllFiniteOfViews) {
  auto x = random_normal(1003, 1);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    GuardedMemory m(device(), 1);
    for (const float last : {1.0f, std::numeric_limits<float>::infinity()}) {
      x.back() = last;
      const ConstTensor t = m.input(x, {1003}, dtype);
      if (dtype == DType::kF32 || host_sees_values()) {
        EXPECT_EQ(all_finite(device(), t), last == 1.0f) << dtype_name(dtype);
      } else {
        EXPECT_THROW(all_finite(device(), t), Error) << dtype_name(dtype);
      }
    }
  }
}

TEST_P(OptimizerOps, BrokenContractsThrow) {
  GuardedMemory mem(device());
  const Tensor a = mem.accumulator(random_normal(4, 1), {4}), b = mem.accumulator(random_normal(3, 2), {3});
  const std::vector<Tensor> one = {a}, other = {b}, two = {a, b};
  const std::vector<ConstTensor> values = {a};
  AdamW good{.params = one,
             .grads = one,
             .m = one,
             .v = one,
             .norm = {},
             .clip = 0.0f,
             .lr = 0.0f,
             .beta1 = 0.9f,
             .beta2 = 0.99f,
             .eps = 1e-8f,
             .weight_decay = 0.0f,
             .step = 1};
  AdamW p = good;
  p.grads = other;
  EXPECT_THROW(adamw(device(), p), Error);
  p = good;
  p.v = two;
  EXPECT_THROW(adamw(device(), p), Error);
  p = good;
  p.clip = 1.0f;  // of no norm
  EXPECT_THROW(adamw(device(), p), Error);
  p = good;
  p.norm = a;
  EXPECT_THROW(adamw(device(), p), Error);
  p = good;
  p.step = 0;
  EXPECT_THROW(adamw(device(), p), Error);
  p = good;
  p.beta2 = 1.0f;
  EXPECT_THROW(adamw(device(), p), Error);
  EXPECT_THROW(ema(device(), {.x = values, .decay = 1.5f, .ema = one, .norm = {}}), Error);
  EXPECT_THROW(ema(device(), {.x = values, .decay = 0.5f, .ema = other, .norm = {}}), Error);
  EXPECT_THROW(ema(device(), {.x = values, .decay = 0.5f, .ema = two, .norm = {}}), Error);
  const std::vector<Tensor> grads = {a};
  EXPECT_THROW(gradient_norm(device(), {.grads = grads, .out = a}), Error);
  EXPECT_THROW(all_finite(device(), mem.input(std::vector<int32_t>{1}, {1})), Error);
}

}  // namespace
}  // namespace gantrain
