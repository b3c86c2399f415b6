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
  int64_t shift = 0;  // elements from an aligned address to where tensors begin
};
struct Data {
  Problem p;
  std::vector<float> x, gain, w, bias, rstd;
  // x * gain, as it may come in bf16.
  std::vector<float> scaled() const {
    std::vector<float> y = x;
    for (size_t i = 0; !gain.empty() && i < y.size(); ++i) y[i] *= gain[i % gain.size()];
    return y;
  }
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
// a, g, u; `keep` false: g and u are not asked for and come back empty. `rounded`: x * gain comes in bf16
// besides.
std::vector<std::vector<float>> forward(Device& d, const Data& a, const Types& t, bool keep = true,
                                        bool rounded = false) {
  const auto& [n, c, f, gain, bias, shift] = a.p;
  GuardedMemory m(d, shift);
  const auto w = frozen(d, a.w, 2 * f, c, t.weights);
  GateUpForward call{.x = m.input(a.x, {n, c}),
                     .rstd = m.input(a.rstd, {n}),
                     .gain = gain ? m.input(a.gain, {c}) : ConstTensor{},
                     .w = w.get(),
                     .bias = bias ? m.input(a.bias, {2 * f}) : ConstTensor{},
                     .g = keep ? m.output({n, f}, t.kept) : Tensor{},
                     .u = keep ? m.output({n, f}, t.kept) : Tensor{},
                     .a = m.output({n, f}, t.weights),
                     .scratch = {},
                     .x_bf16 = rounded ? m.input(a.scaled(), {n, c}, DType::kBF16) : ConstTensor{}};
  call.scratch = m.scratch(gate_up_forward_scratch(d, call));
  gate_up_forward(d, call);
  EXPECT_EQ(gate_up_forward_flops(call), 4 * n * c * f);
  if (!keep) return {m.read(call.a)};
  return {m.read(call.a), m.read(call.g), m.read(call.u)};
}

// The last is so wide that a big GPU has tiles of the largest size for all of its multiprocessors.
constexpr Problem kProblems[] = {{1, 8, 1, false, false},
                                 {3, 33, 31, true, true},
                                 {40, 64, 257, true, false},
                                 {7, 576, 1536, true, false},
                                 {1100, 16, 40, false, true},
                                 {128, 8, 8192, true, true},
                                 // Whole tiles of each size, also at places where no two neighbours are
                                 // aligned, and rows that end at each place of eight.
                                 {64, 40, 867, true, true},
                                 {64, 40, 867, true, false},
                                 {128, 40, 449, true, true},
                                 {128, 8, 450, true, false},
                                 {128, 8, 451, false, true},
                                 {128, 8, 452, true, false},
                                 {128, 8, 453, true, false},
                                 {128, 8, 454, true, true},
                                 {128, 8, 455, true, false},
                                 {128, 8, 456, true, false, 1},
                                 {128, 8, 2176, true, true, 1},
                                 {128, 8, 2176, true, false, 1},
                                 {128, 32, 3528, true, true},
                                 {128, 32, 3529, true, false},
                                 {9, 64, 48, true, true, 1},
                                 // Rows of x too odd for the tensor cores: SwiGLU is a kernel of its own.
                                 {19, 36, 1152, true, true}};

TEST_P(MlpOps, ForwardMatchesTruth) {
  for (const Types& t : kTypes)
    for (const Problem& p : kProblems)
      for (const bool rounded :
           {false, true}) {  // x * gain comes in bf16 besides, and rows may be scaled after
        if (rounded && t.weights != DType::kBF16) continue;
        // Slow on the software GPU's f32 units, and size shows nothing new there.
        if (t.weights == DType::kF32 && p.n * p.c * p.f > 8'000'000) continue;
        const Data a = make(p, t.weights);
        const auto got = run_deterministic([&](Device& d) { return forward(d, a, t, true, rounded); });
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

TEST_P(MlpOps, SwigluAgainGivesForwardsBits) {
  for (const Types& t : kTypes)
    for (const Problem& p :
         {Problem{3, 8, 31, true, false}, {5, 16, 40, true, false}, {5, 16, 40, true, false, 1}}) {
      const auto kept = forward(device(), make(p, t.weights), t);
      GuardedMemory m(device(), p.shift);
      const Tensor again = m.output({p.n, p.f}, t.weights);
      swiglu(
          device(),
          {.g = m.input(kept[1], {p.n, p.f}, t.kept), .u = m.input(kept[2], {p.n, p.f}, t.kept), .a = again});
      EXPECT_TRUE(bitwise_equal("a", m.read(again), kept[0])) << t.name << ", " << p.f << " columns";
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

// Widths that tensor cores take (multiples of 8) and others; few rows, and so many that tiles of 64 x 128 are
// taken, for which a lane has eight neighbours, with rests of both.
constexpr Problem kBackward[] = {{1, 8, 1, false, false},
                                 {5, 24, 31, true, true},
                                 {3, 40, 300, true, false},
                                 {19, 64, 96, false, false},
                                 {70, 16, 40, true, true},
                                 {300, 408, 8, true, false},
                                 {300, 8, 408, false, false},
                                 {19, 64, 96, true, false, 1},
                                 // whole tiles of 128 columns, unaligned; too odd for tensor cores; more of
                                 // k than the stages of a tile hold
                                 {20, 36, 64, true, false},
                                 {128, 8, 4224, true, false, 1},
                                 {40, 36, 33, true, false},
                                 {9, 1096, 16, true, false}};

// dy and the sum of dg g + du u, or without the sum; dout as it comes, or handed over rounded.
std::vector<std::vector<float>> down(Device& d, const Problem& p, const Types& t,
                                     const std::vector<float>& dout, const std::vector<float>& w,
                                     const std::vector<float>& g, const std::vector<float>& u, bool dot,
                                     bool rounded) {
  GuardedMemory m(d, p.shift);
  const auto matrix = frozen(d, w, p.c, p.f, t.weights);
  DownBackward b{.dout = m.input(dout, {p.n, p.c}),
                 .w = matrix.get(),
                 .g = m.input(g, {p.n, p.f}, t.kept),
                 .u = m.input(u, {p.n, p.f}, t.kept),
                 .dy = m.output({p.n, 2 * p.f}, t.weights),
                 .scratch = {},
                 .dout_bf16 = rounded ? m.input(dout, {p.n, p.c}, DType::kBF16) : ConstTensor{},
                 .dot = dot ? m.output({p.n}) : Tensor{}};
  b.scratch = m.scratch(down_backward_scratch(d, b));
  down_backward(d, b);
  EXPECT_EQ(down_backward_flops(b), 2 * p.n * p.c * p.f);
  if (!dot) return {m.read(b.dy)};
  return {m.read(b.dy), m.read(b.dot)};
}

TEST_P(MlpOps, DownBackwardMatchesTruth) {
  for (const Types& t : kTypes)
    for (const Problem& p : kBackward) {
      const auto dout = random_normal(p.n * p.c, 1),
                 w = rounded_to(t.weights,
                                random_normal(p.c * p.f, 2, 1.5f / std::sqrt(static_cast<float>(p.c)))),
                 g = rounded_to(t.kept, random_normal(p.n * p.f, 3, 2.0f)),
                 u = rounded_to(t.kept, random_normal(p.n * p.f, 4));
      const auto got =
          run_deterministic([&](Device& d) { return down(d, p, t, dout, w, g, u, true, false); });
      V wt(w.size());
      for (int64_t i = 0; i < p.c; ++i)
        for (int64_t j = 0; j < p.f; ++j) wt[z(j * p.c + i)] = static_cast<double>(w[z(i * p.f + j)]);
      const V gd = to_double(g), ud = to_double(u);
      const V da = reference::linear(to_double(dout), wt, V{}, z(p.n), z(p.c), z(p.f));
      const V want = reference::swiglu_gradient(gd, ud, da, z(p.f));
      // da is a sum of c terms of inputs that were rounded, and may itself be rounded before SwiGLU; the
      // sigmoid and its derivative cost a few units, at most 1 + |g| times |da u|.
      const V da_terms =
          reference::linear(absolute(to_double(dout)), absolute(wt), V{}, z(p.n), z(p.c), z(p.f));
      V terms;
      for (size_t i = 0; i < gd.size(); i += z(p.f))
        for (const bool gate : {true, false})
          for (size_t j = i; j < i + z(p.f); ++j)
            terms.push_back(da_terms[j] * (gate ? std::abs(ud[j]) * (1 + std::abs(gd[j])) : std::abs(gd[j])) *
                            reference::sigmoid(gd[j]));
      const V limits =
          rounding_limits(1.0, t.input_unit() + 2 * t.unit(), static_cast<double>(p.c + 12), terms);
      EXPECT_TRUE(within("dy", got[0], want, limits)) << t.name;
      EXPECT_TRUE(unbiased("dy", got[0], want, t.input_unit())) << t.name;
      // Against the dy that was given out: it may be summed before or after dy's own rounding.
      const V dy = to_double(got[0]);
      V dot, dot_terms;
      for (size_t i = 0; i < z(p.n); ++i) {
        dot.push_back(0), dot_terms.push_back(0);
        for (size_t j = 0; j < z(2 * p.f); ++j) {
          const double y = j < z(p.f) ? gd[i * z(p.f) + j] : ud[i * z(p.f) + j - z(p.f)];
          dot.back() += dy[i * z(2 * p.f) + j] * y;
          dot_terms.back() += std::abs(dy[i * z(2 * p.f) + j] * y);
        }
      }
      EXPECT_TRUE(within("dot", got[1], dot,
                         rounding_limits(1.0, t.unit(), static_cast<double>(2 * p.f + 4), dot_terms)))
          << t.name;
      EXPECT_TRUE(
          bitwise_equal("dy without dot", down(device(), p, t, dout, w, g, u, false, false)[0], got[0]));
      if (t.weights == DType::kBF16) {
        const auto handed = down(device(), p, t, dout, w, g, u, false, true)[0];
        EXPECT_TRUE(within("dy of dout handed over rounded", handed, want, limits)) << t.name;
        // The same product: where the handed rows begin at an odd element, another kernel takes them.
        if (p.shift == 0) {
          EXPECT_TRUE(bitwise_equal("dout handed over rounded", handed, got[0]));
        }
      }
    }
}

TEST_P(MlpOps, BackwardIsTheGradientAndAccumulates) {
  for (const Types& t : kTypes)
    for (const Problem& p : kBackward)
      for (const bool handed :
           {false, true}) {              // the dot product of dy and forward's g and u, and a rounded dx
        if (handed && p.bias) continue;  // the identity is one of products without bias
        const Data a = make(p, t.weights);
        const auto kept = forward(device(), a, t);
        const auto dy = rounded_to(t.weights, random_normal(2 * p.n * p.f, 11)),
                   dx0 = random_normal(p.n * p.c, 12);
        std::vector<float> y, dot;
        for (int64_t i = 0; i < p.n; ++i) {
          double sum = 0;
          for (int64_t j = 0; j < 2 * p.f; ++j) {
            y.push_back(j < p.f ? kept[1][z(i * p.f + j)] : kept[2][z(i * p.f + j - p.f)]);
            sum += static_cast<double>(dy[z(2 * i * p.f + j)]) * static_cast<double>(y.back());
          }
          dot.push_back(static_cast<float>(sum));
        }
        const bool rounded = handed && t.weights == DType::kBF16;
        const auto got = run_deterministic([&](Device& d) {
          GuardedMemory m(d, p.shift);
          const auto w = frozen(d, a.w, 2 * p.f, p.c, t.weights);
          GateUpBackward b{.x = m.input(a.x, {p.n, p.c}),
                           .rstd = m.input(a.rstd, {p.n}),
                           .gain = p.gain ? m.input(a.gain, {p.c}) : ConstTensor{},
                           .w = w.get(),
                           .dy = m.input(dy, {p.n, 2 * p.f}, t.weights),
                           .dx = m.accumulator(dx0, {p.n, p.c}),
                           .scratch = {},
                           .dot = handed ? m.input(dot, {p.n}) : ConstTensor{},
                           .dx_bf16 = rounded ? m.output({p.n, p.c}, DType::kBF16) : Tensor{}};
          b.scratch = m.scratch(gate_up_backward_scratch(d, b));
          gate_up_backward(d, b);
          return std::vector<std::vector<float>>{m.read(b.dx),
                                                 rounded ? m.read(b.dx_bf16) : std::vector<float>{}};
        });
        const V want = reference::norm_product_gradient(to_double(a.x), to_double(a.gain), to_double(a.w),
                                                        to_double(dy), z(p.c), kEps);
        // The y that was kept is off by its own rounding and by that of the product's input.
        const double unit = handed ? unit_of(t.kept) + t.input_unit() : 0.0;
        EXPECT_TRUE(within("dx", got[0], plus(want, to_double(dx0)),
                           norm_gradient_limits(a.x, a.rstd, a.gain, a.w, dy, y, unit, dx0)))
            << t.name;
        if (rounded) {
          EXPECT_TRUE(bitwise_equal("dx_bf16", got[1], rounded_to(DType::kBF16, got[0]))) << t.name;
        }
        if (p.n * p.c > 200) continue;
        // The same by complex step through the forward's formula.
        const V gradient = complex_step_gradient(to_double(a.x), [&](const VC& x) {
          const auto forward_y = truth(a, x);
          Complex sum = 0;
          for (int64_t i = 0; i < p.n; ++i)
            for (int64_t j = 0; j < p.f; ++j)
              sum += forward_y.g[z(i * p.f + j)] * static_cast<double>(dy[z(2 * i * p.f + j)]) +
                     forward_y.u[z(i * p.f + j)] * static_cast<double>(dy[z((2 * i + 1) * p.f + j)]);
          return sum;
        });
        EXPECT_TRUE(within("reference", std::vector<float>(want.begin(), want.end()), gradient,
                           2 * kUnitF32 * (1 + largest(gradient))));
      }
}

}  // namespace
}  // namespace gantrain
