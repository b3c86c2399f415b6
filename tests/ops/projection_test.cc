#include "core/ops/projection.h"

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

class ProjectionOps : public OpsTest {};
GT_ALL_DEVICES(ProjectionOps);

constexpr double kEps = 1e-5;

struct Problem {
  int64_t n, in, c;
  bool bias;
};
constexpr Problem kProblems[] = {{1, 1, 1, false},
                                 {1, 7, 33, true},
                                 {31, 33, 65, true},
                                 {64, 576, 576, false},
                                 {17, 1536, 576, false},
                                 {1300, 40, 24, true},
                                 // whole 16 bytes in, and columns out that end within a tile's vectors
                                 {40, 64, 69, true},
                                 {260, 64, 181, true}};

std::vector<std::vector<float>> forward(Device& d, const Problem& p, const Types& t, DType input,
                                        bool in_place, const std::vector<float>& a,
                                        const std::vector<float>& w, const std::vector<float>& b,
                                        const std::vector<float>& residual) {
  GuardedMemory m(d);
  const auto matrix = frozen(d, w, p.c, p.in, t.weights);
  const Tensor out = in_place ? m.accumulator(residual, {p.n, p.c}) : m.output({p.n, p.c});
  ProjectForward f{.a = m.input(a, {p.n, p.in}, input),
                   .w = matrix.get(),
                   .bias = p.bias ? m.input(b, {p.c}) : ConstTensor{},
                   .residual = in_place ? ConstTensor(out) : m.input(residual, {p.n, p.c}),
                   .out = out,
                   .rstd = m.output({p.n}),
                   .eps = static_cast<float>(kEps),
                   .scratch = {},
                   .out_bf16 = m.output({p.n, p.c}, DType::kBF16),
                   .out_gain = p.bias ? m.input(b, {p.c}) : ConstTensor{}};
  f.scratch = m.scratch(project_forward_scratch(d, f));
  project_forward(d, f);
  EXPECT_EQ(project_forward_flops(f), 2 * p.n * p.in * p.c);
  return {m.read(f.out), m.read(f.rstd), m.read(f.out_bf16)};
}

// The input comes in the weights' type (MLP) or as it was kept (attention output).
TEST_P(ProjectionOps, ForwardMatchesTruth) {
  for (const Types& t : kTypes)
    for (const Problem& p : kProblems) {
      const DType input = t.kept;
      const auto a = rounded_to(input, random_normal(p.n * p.in, 1)),
                 w = rounded_to(t.weights, random_normal(p.c * p.in, 2)), b = random_normal(p.c, 3),
                 residual = random_normal(p.n * p.c, 4, 3.0f);
      const auto got =
          run_deterministic([&](Device& d) { return forward(d, p, t, input, false, a, w, b, residual); });
      const V bd = p.bias ? to_double(b) : V{};
      const V want = plus(reference::linear(to_double(a), to_double(w), bd, z(p.n), z(p.in), z(p.c)),
                          to_double(residual));
      const V terms = plus(reference::linear(absolute(to_double(a)), absolute(to_double(w)), absolute(bd),
                                             z(p.n), z(p.in), z(p.c)),
                           absolute(to_double(residual)));
      const double rounding = input == DType::kF16 ? kUnitBF16 : 0.0;
      EXPECT_TRUE(
          within("out", got[0], want, rounding_limits(1.0, rounding, static_cast<double>(p.in + 3), terms)))
          << t.name;
      V rstd;
      for (int64_t i = 0; i < p.n; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < p.c; ++j) sum += std::pow(static_cast<double>(got[0][z(i * p.c + j)]), 2);
        rstd.push_back(1.0 / std::sqrt(sum / static_cast<double>(p.c) + kEps));
      }
      EXPECT_TRUE(
          within("rstd", got[1], rstd, rounding_limits(1.0, 0.0, static_cast<double>(p.c) / 2 + 6, rstd)));
      const auto in_place =
          run_deterministic([&](Device& d) { return forward(d, p, t, input, true, a, w, b, residual); });
      EXPECT_TRUE(bitwise_equal("in place", in_place[0], got[0])) << t.name;
      // The gain is the bias here, where there is one.
      std::vector<float> scaled = got[0];
      for (size_t i = 0; p.bias && i < scaled.size(); ++i) scaled[i] *= b[i % z(p.c)];
      EXPECT_TRUE(bitwise_equal("out_bf16", got[2], rounded_to(DType::kBF16, scaled))) << t.name;
    }
}

TEST_P(ProjectionOps, ARowDoesNotDependOnItsNeighbours) {
  for (const Types& t : kTypes) {
    const Problem p{70, 1536, 576, false};
    const auto a = rounded_to(t.kept, random_normal(p.n * p.in, 1)), w = random_normal(p.c * p.in, 2),
               residual = random_normal(p.n * p.c, 4);
    const auto whole = forward(device(), p, t, t.kept, false, a, w, {}, residual)[0];
    for (const int64_t row : {int64_t{0}, int64_t{33}, p.n - 1}) {
      Problem one = p;
      one.n = 1;
      const auto alone =
          forward(device(), one, t, t.kept, false, {a.begin() + row * p.in, a.begin() + (row + 1) * p.in}, w,
                  {}, {residual.begin() + row * p.c, residual.begin() + (row + 1) * p.c})[0];
      EXPECT_TRUE(bitwise_equal(
          "row", alone, std::vector<float>(whole.begin() + row * p.c, whole.begin() + (row + 1) * p.c)))
          << t.name << ", row " << row;
    }
  }
}

// Blocks of rows and columns, their rests and k's tail: every cut of the same rows gives the same bits.
TEST_P(ProjectionOps, AnyNumberOfRowsGivesTheSameBits) {
  for (const Types& t : kTypes)
    for (const auto& [in, c] : {std::pair<int64_t, int64_t>{576, 192}, {100, 433}, {1, 5}, {1531, 62}}) {
      const Problem all{300, in, c, true};
      const auto a = rounded_to(t.kept, random_normal(all.n * in, 1)), w = random_normal(c * in, 2),
                 bias = random_normal(c, 3), residual = random_normal(all.n * c, 4);
      const auto rows = [](const std::vector<float>& x, int64_t begin, int64_t n, int64_t width) {
        return std::vector<float>(x.begin() + begin * width, x.begin() + (begin + n) * width);
      };
      const auto whole = forward(device(), all, t, t.kept, false, a, w, bias, residual)[0];
      for (const auto& [begin, n] : {std::pair<int64_t, int64_t>{299, 1},
                                     {5, 2},
                                     {290, 3},
                                     {17, 4},
                                     {1, 5},
                                     {9, 6},
                                     {17, 7},
                                     {40, 8},
                                     {3, 64},
                                     {100, 65},
                                     {1, 129},
                                     {0, 200}}) {
        const Problem part{n, in, c, true};
        const auto got = forward(device(), part, t, t.kept, false, rows(a, begin, n, in), w, bias,
                                 rows(residual, begin, n, c))[0];
        EXPECT_TRUE(bitwise_equal("rows", got, rows(whole, begin, n, c)))
            << t.name << ", " << in << " to " << c << ", rows " << begin << " +" << n;
      }
    }
}

TEST_P(ProjectionOps, BackwardIsTheTransposedProduct) {
  for (const Types& t : kTypes) {
    if (t.kept == DType::kF16) continue;  // gradients have the weights' type
    for (const Problem& p : kProblems) {
      const auto dout = random_normal(p.n * p.c, 1), w = rounded_to(t.weights, random_normal(p.c * p.in, 2));
      const auto backward = [&](Device& d, bool rounded) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, p.c, p.in, t.weights);
        ProjectBackward b{.dout = m.input(dout, {p.n, p.c}),
                          .w = matrix.get(),
                          .da = m.output({p.n, p.in}, t.weights),
                          .scratch = {},
                          .dout_bf16 = rounded ? m.input(dout, {p.n, p.c}, DType::kBF16) : ConstTensor{}};
        b.scratch = m.scratch(project_backward_scratch(d, b));
        project_backward(d, b);
        return std::vector<std::vector<float>>{m.read(b.da)};
      };
      const auto got = run_deterministic([&](Device& d) { return backward(d, false); });
      if (t.weights == DType::kBF16) {
        EXPECT_TRUE(bitwise_equal("dout handed over rounded", backward(device(), true)[0], got[0]));
      }
      V wt(w.size());
      for (int64_t i = 0; i < p.c; ++i)
        for (int64_t j = 0; j < p.in; ++j) wt[z(j * p.c + i)] = static_cast<double>(w[z(i * p.in + j)]);
      const V want = reference::linear(to_double(dout), wt, V{}, z(p.n), z(p.c), z(p.in));
      const V terms =
          reference::linear(absolute(to_double(dout)), absolute(wt), V{}, z(p.n), z(p.c), z(p.in));
      EXPECT_TRUE(
          within("da", got[0], want,
                 rounding_limits(1.0, t.input_unit() + t.unit(), static_cast<double>(p.c + 2), terms)))
          << t.name;
      EXPECT_TRUE(unbiased("da", got[0], want, t.input_unit())) << t.name;
      if (p.n * p.in > 1100) continue;
      // The same by complex step through the forward's formula.
      const V gradient = complex_step_gradient(V(z(p.n * p.in), 0.5), [&](const VC& a) {
        return dot(reference::linear(a, to_complex(to_double(w)), VC{}, z(p.n), z(p.in), z(p.c)),
                   to_double(dout));
      });
      EXPECT_TRUE(within("reference", want, gradient, 1e-12 * (1 + largest(gradient))));
    }
  }
}

}  // namespace
}  // namespace gantrain
