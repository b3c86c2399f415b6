#include "core/ops/mlp.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/reference/frozen.h"
#include "tests/support/complex_step.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;
using VC = std::vector<Complex>;

class MlpOps : public OpsTest {};
GT_ALL_DEVICES(MlpOps);

constexpr double kEps = 1e-5;

struct Problem {
  int64_t n, c, f;
  bool gain, bias;
};
struct Data {
  Problem p;
  std::vector<float> x, gain, w, bias, rstd;
};
Data make(const Problem& p, DType weights) {
  Data a{p, random_normal(p.n * p.c, 1, 2.0f), {}, {}, {}, {}};
  a.w = rounded_to(weights, random_normal(2 * p.f * p.c, 2, 1.5f / std::sqrt(static_cast<float>(p.c))));
  if (p.gain) a.gain = random_uniform(p.c, 3, 0.5f, 2.0f);
  if (p.bias) a.bias = random_normal(2 * p.f, 4);
  for (int64_t i = 0; i < p.n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < p.c; ++j) sum += std::pow(static_cast<double>(a.x[z(i * p.c + j)]), 2);
    a.rstd.push_back(static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(p.c) + kEps)));
  }
  return a;
}
template <typename T>
reference::GateUp<T> truth(const Data& a, const std::vector<T>& x) {
  const V w = to_double(a.w), gain = to_double(a.gain), bias = to_double(a.bias);
  return reference::gate_up(x, std::vector<T>(gain.begin(), gain.end()), std::vector<T>(w.begin(), w.end()),
                            std::vector<T>(bias.begin(), bias.end()), z(a.p.c), z(a.p.f), kEps);
}
// a, g, u; `keep` false: g and u are not asked for and come back empty.
std::vector<std::vector<float>> forward(Device& d, const Data& a, const Types& t, bool keep = true) {
  GuardedMemory m(d);
  const auto& [n, c, f, gain, bias] = a.p;
  const auto w = frozen(d, a.w, 2 * f, c, t.weights);
  GateUpForward call{.x = m.input(a.x, {n, c}),
                     .rstd = m.input(a.rstd, {n}),
                     .gain = gain ? m.input(a.gain, {c}) : ConstTensor{},
                     .w = w.get(),
                     .bias = bias ? m.input(a.bias, {2 * f}) : ConstTensor{},
                     .g = keep ? m.output({n, f}, t.kept) : Tensor{},
                     .u = keep ? m.output({n, f}, t.kept) : Tensor{},
                     .a = m.output({n, f}, t.weights),
                     .scratch = {}};
  call.scratch = m.scratch(gate_up_forward_scratch(d, call));
  gate_up_forward(d, call);
  EXPECT_EQ(gate_up_forward_flops(call), 4 * n * c * f);
  if (!keep) return {m.read(call.a)};
  return {m.read(call.a), m.read(call.g), m.read(call.u)};
}

// The last is so wide that a big GPU has tiles of the largest size for all of its multiprocessors.
constexpr Problem kProblems[] = {{1, 8, 1, false, false},     {3, 33, 31, true, true},
                                 {40, 64, 257, true, false},  {7, 576, 1536, true, false},
                                 {1100, 16, 40, false, true}, {128, 8, 8192, true, true}};

TEST_P(MlpOps, ForwardMatchesTruth) {
  for (const Types& t : kTypes)
    for (const Problem& p : kProblems) {
      const Data a = make(p, t.weights);
      const auto got = run_deterministic([&](Device& d) { return forward(d, a, t); });
      const auto want = truth(a, to_double(a.x));
      Data size = a;
      for (float& v : size.w) v = std::abs(v);
      for (float& v : size.bias) v = std::abs(v);
      const auto terms = truth(size, absolute(to_double(a.x)));
      const auto limits = [&](const V& y) {
        return rounding_limits(1.0, t.input_unit() + unit_of(t.kept), static_cast<double>(p.c + 6), y);
      };
      EXPECT_TRUE(within("g", got[1], want.g, limits(terms.g))) << t.name;
      EXPECT_TRUE(within("u", got[2], want.u, limits(terms.u))) << t.name;
      EXPECT_TRUE(unbiased("g", got[1], want.g, t.input_unit())) << t.name;
      EXPECT_TRUE(unbiased("u", got[2], want.u, t.input_unit())) << t.name;
      // a is exact in the g and u that were kept, but for its own rounding and the sigmoid's few units.
      const V act = reference::swiglu(to_double(got[1]), to_double(got[2]));
      EXPECT_TRUE(within("a", got[0], act, rounding_limits(1.0, t.unit(), 8.0, absolute(act)))) << t.name;
      EXPECT_TRUE(unbiased("a", got[0], act, t.input_unit())) << t.name;
    }
}

// Inference, which keeps nothing, sees the same values as a forward that keeps what this device likes to
// keep.
TEST_P(MlpOps, NotKeepingChangesNothing) {
  for (const DType weights : {DType::kF32, DType::kBF16}) {
    const Types t{"", weights, device().kept_dtype(weights)};
    const Data a = make({9, 64, 300, true, true}, weights);
    EXPECT_TRUE(bitwise_equal("a", forward(device(), a, t, false)[0], forward(device(), a, t, true)[0]));
  }
}

TEST_P(MlpOps, ARowDoesNotDependOnItsNeighbours) {
  for (const Types& t : kTypes) {
    const Problem p{70, 576, 1536, true, false};
    const Data all = make(p, t.weights);
    const auto whole = forward(device(), all, t)[0];
    for (const int64_t row : {int64_t{0}, int64_t{33}, p.n - 1}) {
      Data one = all;
      one.p.n = 1;
      one.x.assign(all.x.begin() + row * p.c, all.x.begin() + (row + 1) * p.c);
      one.rstd = {all.rstd[z(row)]};
      EXPECT_TRUE(
          bitwise_equal("row", forward(device(), one, t)[0],
                        std::vector<float>(whole.begin() + row * p.f, whole.begin() + (row + 1) * p.f)))
          << t.name << ", row " << row;
    }
  }
}

TEST_P(MlpOps, BackwardIsTheGradientAndAccumulates) {
  for (const Types& t : kTypes)
    for (const Problem& p :
         {Problem{1, 8, 1, false, false}, Problem{5, 24, 31, true, true}, Problem{3, 40, 300, true, false}}) {
      const Data a = make(p, t.weights);
      const auto kept = forward(device(), a, t);
      const auto da = rounded_to(t.weights, random_normal(p.n * p.f, 11)), dx0 = random_normal(p.n * p.c, 12);
      const auto got = run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto w = frozen(d, a.w, 2 * p.f, p.c, t.weights);
        GateUpBackward b{.x = m.input(a.x, {p.n, p.c}),
                         .rstd = m.input(a.rstd, {p.n}),
                         .gain = p.gain ? m.input(a.gain, {p.c}) : ConstTensor{},
                         .w = w.get(),
                         .g = m.input(kept[1], {p.n, p.f}, t.kept),
                         .u = m.input(kept[2], {p.n, p.f}, t.kept),
                         .da = m.input(da, {p.n, p.f}, t.weights),
                         .dx = m.accumulator(dx0, {p.n, p.c}),
                         .scratch = {}};
        b.scratch = m.scratch(gate_up_backward_scratch(d, b));
        gate_up_backward(d, b);
        return std::vector<std::vector<float>>{m.read(b.dx)};
      });
      const V want = complex_step_gradient(to_double(a.x), [&](const VC& x) {
        const auto y = truth(a, x);
        return dot(reference::swiglu(y.g, y.u), to_double(da));
      });
      EXPECT_TRUE(within("dx", got[0], plus(want, to_double(dx0)), gradient_limit(t, want) + 1e-6)) << t.name;
    }
}

}  // namespace
}  // namespace gantrain
