#include "train/networks/parameters.h"

#include <cmath>
#include <limits>
#include <map>

#include "tests/support/devices.h"
#include "tests/support/fill.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;

class Parameters : public OpsTest {};
GT_ALL_DEVICES(Parameters);

std::vector<float> host(Device& d, ConstTensor t) {
  std::vector<float> out(static_cast<size_t>(t.count()));
  d.copy_out(out.data(), t);
  return out;
}

ParameterSet two_tensors(Device& d, uint64_t seed) {
  ParameterSet p(d);
  p.add("a", {3, 4}, values_init(random_normal(12, seed)));
  p.add("b", {5}, values_init(random_normal(5, seed + 1)));
  return p;
}
void set_gradients(Device& d, ParameterSet& p, uint64_t seed, float scale) {
  for (size_t i = 0; i < p.size(); ++i) {
    const auto g = random_normal(p.grad(i).count(), seed + i, scale);
    d.copy_in(p.grad(i), g.data());
  }
}

// The norm is taken over both tensors together and both are scaled by the same factor.
TEST_P(Parameters, StepClipsOverTheWholeSet) {
  for (const float scale : {0.01f, 100.0f}) {  // below the clip, above it
    ParameterSet p = two_tensors(device(), 1);
    const V a0 = to_double(host(device(), p.value(0)));
    // A large eps makes the step proportional to the gradient: the clipping shows in its length.
    const AdamSettings s{
        .lr = 0.1f, .beta1 = 0.0f, .beta2 = 0.0f, .eps = 1e3f, .weight_decay = 0.0f, .clip = 1.0f};
    set_gradients(device(), p, 10, scale);
    const V ga = to_double(host(device(), p.grad(0))), gb = to_double(host(device(), p.grad(1)));
    double square = 0.0;
    for (double x : ga) square += x * x;
    for (double x : gb) square += x * x;
    const double norm = std::sqrt(square), factor = norm > 1.0 ? 1.0 / norm : 1.0;
    EXPECT_NEAR(p.step(s), norm, 1e-6 * norm);
    EXPECT_EQ(p.steps(), 1);
    V want = a0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double g = ga[i] * factor;
      want[i] -= 0.1 * g / (std::abs(g) + 1e3);
    }
    // Steps are 1e-4 and less: the bound is the rounding of the parameters themselves.
    EXPECT_TRUE(within("a", host(device(), p.value(0)), want, 4.0 * 2.0 * kUnitF32));
  }
}

TEST_P(Parameters, RefusesAGradientThatIsNotFiniteAndChangesNothing) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    ParameterSet p = two_tensors(device(), 1);
    set_gradients(device(), p, 10, 1.0f);
    auto g = host(device(), p.grad(1));
    g[2] = bad;
    device().copy_in(p.grad(1), g.data());
    const auto before = host(device(), p.value(0));
    try {
      p.step({});
      FAIL() << "took a step along " << bad;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("'b'"), std::string::npos) << e.what();
    }
    EXPECT_TRUE(bitwise_equal("a", host(device(), p.value(0)), before));
    EXPECT_EQ(p.steps(), 0);
  }
}

TEST_P(Parameters, AveragesValues) {
  ParameterSet p = two_tensors(device(), 1), q = two_tensors(device(), 5);
  const V a = to_double(host(device(), p.value(0))), b = to_double(host(device(), q.value(0)));
  p.average_from(q, 0.75f);
  V want(a.size());
  for (size_t i = 0; i < a.size(); ++i) want[i] = 0.75 * a[i] + 0.25 * b[i];
  EXPECT_TRUE(within("average", host(device(), p.value(0)), want, 4.0 * 4.0 * kUnitF32));
  p.copy_values_from(q);
  EXPECT_TRUE(bitwise_equal("copy", host(device(), p.value(1)), host(device(), q.value(1))));
}

// A run that is saved and loaded in the middle takes the same steps, bit for bit.
TEST_P(Parameters, GoesOnAsItWasSaved) {
  ParameterSet p = two_tensors(device(), 1);
  const AdamSettings s{.lr = 0.01f};
  const auto step = [&](ParameterSet& set, uint64_t seed) {
    set_gradients(device(), set, seed, 0.1f);
    set.step(s);
  };
  for (uint64_t t = 0; t < 5; ++t) step(p, 100 + 10 * t);
  std::map<std::string, std::vector<float>> saved;
  p.save("g.", true, [&](const std::string& name, ConstTensor t) {
    saved[name].resize(static_cast<size_t>(t.count()));
    device().copy_out(saved[name].data(), t);
  });
  ASSERT_EQ(saved.size(), 6u);
  ParameterSet q = two_tensors(device(), 77);
  q.load("g.", true, [&](const std::string& name, Shape) { return saved.at(name); });
  q.set_steps(p.steps());
  for (uint64_t t = 5; t < 9; ++t) step(p, 100 + 10 * t), step(q, 100 + 10 * t);
  for (size_t i = 0; i < p.size(); ++i)
    EXPECT_TRUE(bitwise_equal(p.name(i), host(device(), p.value(i)), host(device(), q.value(i))));
  EXPECT_THROW(q.load("g.", false, [&](const std::string&, Shape) { return std::vector<float>(2); }), Error);
  q.reset_moments();
  EXPECT_EQ(q.steps(), 0);
}

TEST_P(Parameters, CountsAndHidesGradientsThatAreOff) {
  ParameterSet p = two_tensors(device(), 1);
  EXPECT_EQ(p.count(), 17);
  EXPECT_EQ(p.optimizer_bytes(), 17 * 12);
  p.set_gradients(false);
  EXPECT_TRUE(p.grad(0).empty());
  p.set_gradients(true);
  set_gradients(device(), p, 3, 1.0f);
  p.zero_grad();
  for (float x : host(device(), p.grad(1))) EXPECT_EQ(x, 0.0f);
}

TEST_P(Parameters, ValuesAloneTakeNoStepAndHoldNoGradient) {
  ParameterSet p(device(), true);
  const size_t i = p.add("x", {3, 2}, constant_init(2.0f));
  EXPECT_TRUE(p.grad(i).empty());
  EXPECT_EQ(p.count(), 6);
  EXPECT_EQ(p.optimizer_bytes(), 0);
  EXPECT_THROW(p.start_step({}), Error);
  ParameterSet trained(device());
  trained.add("x", {3, 2}, constant_init(4.0f));
  p.average_from(trained, 0.5f);
  for (const float x : host(device(), p.value(i))) EXPECT_EQ(x, 3.0f);
}

}  // namespace
}  // namespace gantrain
