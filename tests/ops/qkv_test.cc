#include "core/ops/qkv.h"

#include <gtest/gtest.h>

#include <array>
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

class QkvOps : public OpsTest {};
GT_ALL_DEVICES(QkvOps);

constexpr double kEps = 1e-5;

struct Problem {
  int64_t n, c, h, k, d;
  bool gain, bias;
  int32_t far = 60;   // positions below this
  int64_t shift = 0;  // elements from an aligned address to where tensors begin
};
struct Data {
  Problem p;
  std::vector<float> x, gain, w, bias, inv_freq, rstd;
  std::vector<int32_t> positions;
  int64_t out() const { return (p.h + 2 * p.k) * p.d; }
  // x * gain, as it may come in bf16.
  std::vector<float> scaled() const {
    std::vector<float> y = x;
    for (size_t i = 0; !gain.empty() && i < y.size(); ++i) y[i] *= gain[i % gain.size()];
    return y;
  }
};
Data make(const Problem& p, DType weights, uint64_t seed = 1) {
  Data a{p, random_normal(p.n * p.c, seed, 2.0f), {}, {}, {}, {}, {}, {}};
  const float scale = 1.0f / std::sqrt(static_cast<float>(p.c));
  a.w = rounded_to(weights, random_normal(a.out() * p.c, seed + 1, scale));
  if (p.gain) a.gain = random_uniform(p.c, seed + 2, 0.5f, 2.0f);
  if (p.bias) a.bias = random_normal(a.out(), seed + 3);
  for (int64_t i = 0; i < p.d / 2; ++i)
    a.inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(p.d)));
  a.positions = random_ints(p.n, seed + 4, 0, p.far - 1);
  for (int64_t i = 0; i < p.n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < p.c; ++j) sum += std::pow(static_cast<double>(a.x[z(i * p.c + j)]), 2);
    a.rstd.push_back(static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(p.c) + kEps)));
  }
  return a;
}
template <typename T>
reference::Qkv<T> truth(const Data& a, const std::vector<T>& x) {
  const V w = to_double(a.w), gain = to_double(a.gain), bias = to_double(a.bias);
  return reference::qkv(x, std::vector<T>(gain.begin(), gain.end()), std::vector<T>(w.begin(), w.end()),
                        std::vector<T>(bias.begin(), bias.end()), a.positions, to_double(a.inv_freq),
                        z(a.p.h), z(a.p.k), z(a.p.c), kEps);
}
// q, k, v; `rounded`: x * gain comes in bf16 besides.
std::vector<std::vector<float>> forward(Device& d, const Data& a, const Types& t, bool rounded = false) {
  const auto& [n, c, h, k, dim, gain, bias, far, shift] = a.p;
  GuardedMemory m(d, shift);
  const auto w = frozen(d, a.w, a.out(), c, t.weights);
  QkvForward f{.x = m.input(a.x, {n, c}),
               .rstd = m.input(a.rstd, {n}),
               .gain = gain ? m.input(a.gain, {c}) : ConstTensor{},
               .w = w.get(),
               .bias = bias ? m.input(a.bias, {a.out()}) : ConstTensor{},
               .rotary = m.input(angles_of(a.positions, a.inv_freq), {n, dim}),
               .q = m.output({n, h, dim}, t.kept),
               .k = m.output({n, k, dim}, t.kept),
               .v = m.output({n, k, dim}, t.kept),
               .scratch = {},
               .x_bf16 = rounded ? m.input(a.scaled(), {n, c}, DType::kBF16) : ConstTensor{}};
  f.scratch = m.scratch(qkv_forward_scratch(d, f));
  qkv_forward(d, f);
  EXPECT_EQ(qkv_forward_flops(f), 2 * n * c * a.out());
  return {m.read(f.q), m.read(f.k), m.read(f.v)};
}

// Longer than a block of rows, with positions that reach where angles are large; and so wide that a big GPU
// has tiles of the largest size for all of its multiprocessors.
constexpr Problem kProblems[] = {
    {1, 8, 1, 1, 2, false, false},
    {3, 33, 3, 1, 16, true, false},
    {17, 64, 4, 2, 10, true, true},
    {40, 96, 2, 2, 100, false, true},
    {129, 576, 9, 3, 64, true, false},
    {1300, 16, 2, 1, 4, true, true, 100000},
    {128, 8, 124, 2, 128, true, true},
    // Rows of x too odd for the tensor cores: the rotation is a kernel of its own.
    {19, 36, 3, 1, 64, true, true},
    {5, 36, 2, 1, 100, false, false},
    {9, 64, 3, 1, 64, true, true, 60, 1}};

// In f64 and rounded once: the angle is exact, sin and cos are good to some units of f64, so that a value is
// half a unit of f32 off, and a bit more where it lies that near to the middle between two.
TEST_P(QkvOps, RotaryTableIsRoundedOnce) {
  for (const auto& [n, d, far] : std::initializer_list<std::array<int32_t, 3>>{{1, 2, 10},
                                                                               {7, 10, 60},
                                                                               {33, 64, 100000},
                                                                               {257, 100, 2000},
                                                                               {32, 128, 1 << 30},
                                                                               {1000, 64, 8192}}) {
    const auto positions = random_ints(n, 3, 0, far - 1);
    std::vector<float> inv_freq;
    for (int32_t i = 0; i < d / 2; ++i)
      inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(d)));
    const auto got = run_deterministic([&](Device& device) {
      GuardedMemory m(device);
      const Tensor table = m.output({n, d});
      rotary_table(
          device,
          {.positions = m.input(positions, {n}), .inv_freq = m.input(inv_freq, {d / 2}), .table = table});
      return std::vector<std::vector<float>>{m.read(table)};
    });
    V want, limits;
    for (const int32_t position : positions) {
      for (const float f : inv_freq) want.push_back(std::cos(double{f} * position));
      for (const float f : inv_freq) want.push_back(std::sin(double{f} * position));
    }
    for (const double x : want) limits.push_back(kUnitF32 * std::abs(x) + 1e-15);
    EXPECT_TRUE(within("table", got[0], want, limits)) << n << " x " << d;
  }
}

TEST_P(QkvOps, ForwardMatchesTruth) {
  for (const Types& t : kTypes)
    for (const Problem& p : kProblems)
      for (const bool rounded :
           {false, true}) {  // x * gain comes in bf16 besides, and rows may be scaled after
        if (rounded && t.weights != DType::kBF16) continue;
        const Data a = make(p, t.weights);
        const auto got = run_deterministic([&](Device& d) { return forward(d, a, t, rounded); });
        const auto want = truth(a, to_double(a.x));
        // Sums of |terms| of both halves of a pair: a rotation mixes them.
        Data size = a;
        for (float& v : size.w) v = std::abs(v);
        for (float& v : size.bias) v = std::abs(v);
        size.positions.assign(size.positions.size(), 0);
        auto terms = truth(size, absolute(to_double(a.x)));
        const auto paired = [&](V y) {
          const size_t half = z(p.d / 2);
          for (size_t i = 0; i < y.size(); i += 2 * half)
            for (size_t j = i; j < i + half; ++j) y[j] = y[j + half] = y[j] + y[j + half];
          return y;
        };
        // An angle is position * inv_freq with inv_freq in f32: exact in f64, so only its table is rounded.
        const auto limits = [&](const V& y) {
          return rounding_limits(1.0, t.input_unit() + unit_of(t.kept), static_cast<double>(p.c + 8), y);
        };
        EXPECT_TRUE(within("q", got[0], want.q, limits(paired(terms.q)))) << t.name;
        EXPECT_TRUE(within("k", got[1], want.k, limits(paired(terms.k)))) << t.name;
        EXPECT_TRUE(within("v", got[2], want.v, limits(terms.v))) << t.name;
        EXPECT_TRUE(unbiased("q", got[0], want.q, t.input_unit())) << t.name;
        EXPECT_TRUE(unbiased("k", got[1], want.k, t.input_unit())) << t.name;
        EXPECT_TRUE(unbiased("v", got[2], want.v, t.input_unit())) << t.name;
      }
}

TEST_P(QkvOps, ARowDoesNotDependOnItsNeighbours) {
  for (const Types& t : kTypes) {
    const Problem p{70, 576, 9, 3, 64, true, true};
    const Data all = make(p, t.weights);
    const auto whole = forward(device(), all, t);
    for (const int64_t row : {int64_t{0}, int64_t{33}, p.n - 1}) {
      Data one = all;
      one.p.n = 1;
      one.x.assign(all.x.begin() + row * p.c, all.x.begin() + (row + 1) * p.c);
      one.rstd = {all.rstd[z(row)]};
      one.positions = {all.positions[z(row)]};
      const auto alone = forward(device(), one, t);
      for (size_t i = 0; i < 3; ++i) {
        const auto size = static_cast<int64_t>(alone[i].size());
        EXPECT_TRUE(bitwise_equal(
            "row", alone[i],
            std::vector<float>(whole[i].begin() + row * size, whole[i].begin() + (row + 1) * size)))
            << t.name << ", row " << row;
      }
    }
  }
}

// Widths that tensor cores take (multiples of 8) and others; few rows, and so many that tiles of 64 x 128 are
// taken, for which a lane has eight neighbours, with rests of both.
constexpr Problem kBackward[] = {{1, 8, 1, 1, 2, false, false},        {4, 24, 3, 1, 6, true, true},
                                 {9, 40, 2, 2, 16, true, false},       {19, 64, 6, 2, 64, false, false},
                                 {70, 16, 2, 1, 100, true, false},     {300, 408, 1, 1, 8, false, false},
                                 {9, 40, 2, 2, 16, true, false, 60, 1}};

TEST_P(QkvOps, BackwardIsTheGradientAndAccumulates) {
  for (const Types& t : kTypes) {
    if (t.kept == DType::kF16) continue;  // nothing kept is read
    for (const Problem& p : kBackward)
      for (const int64_t parts : {int64_t{0}, p.h + p.k, int64_t{1}}) {  // of <dy, y>
        if (parts > 0 && p.bias) continue;  // the identity is one of products without bias
        const Data a = make(p, t.weights);
        const auto dy = rounded_to(t.weights, random_normal(p.n * a.out(), 11)),
                   dx0 = random_normal(p.n * p.c, 14);
        // The product before RoPE and without bias.
        V normed = to_double(a.x);
        for (int64_t i = 0; i < p.n * p.c; ++i)
          normed[z(i)] *= static_cast<double>(a.rstd[z(i / p.c)]) *
                          (p.gain ? static_cast<double>(a.gain[z(i % p.c)]) : 1.0);
        const V y = reference::linear(normed, to_double(a.w), V{}, z(p.n), z(p.c), z(a.out()));
        std::vector<float> dots;
        for (int64_t i = 0; i < p.n && parts > 0; ++i) {
          double sum = 0;
          for (int64_t j = i * a.out(); j < (i + 1) * a.out(); ++j)
            sum += static_cast<double>(dy[z(j)]) * y[z(j)];
          const auto rest = random_normal(parts - 1, 15 + static_cast<uint64_t>(i));
          for (const float part : rest) sum -= static_cast<double>(part);
          dots.insert(dots.end(), rest.begin(), rest.end());
          dots.push_back(static_cast<float>(sum));
        }
        const bool rounded = parts > 0 && t.weights == DType::kBF16;
        const auto got = run_deterministic([&](Device& d) {
          GuardedMemory m(d, p.shift);
          const auto w = frozen(d, a.w, a.out(), p.c, t.weights);
          QkvBackward b{.x = m.input(a.x, {p.n, p.c}),
                        .rstd = m.input(a.rstd, {p.n}),
                        .gain = p.gain ? m.input(a.gain, {p.c}) : ConstTensor{},
                        .w = w.get(),
                        .dy = m.input(dy, {p.n, a.out()}, t.weights),
                        .dx = m.accumulator(dx0, {p.n, p.c}),
                        .scratch = {},
                        .dot = parts > 0 ? m.input(dots, {p.n, parts}) : ConstTensor{},
                        .dx_bf16 = rounded ? m.output({p.n, p.c}, DType::kBF16) : Tensor{}};
          b.scratch = m.scratch(qkv_backward_scratch(d, b));
          qkv_backward(d, b);
          EXPECT_EQ(qkv_backward_flops(b), 2 * p.n * p.c * a.out());
          return std::vector<std::vector<float>>{m.read(b.dx),
                                                 rounded ? m.read(b.dx_bf16) : std::vector<float>{}};
        });
        const V want = reference::norm_product_gradient(to_double(a.x), to_double(a.gain), to_double(a.w),
                                                        to_double(dy), z(p.c), kEps);
        const V limits = norm_gradient_limits(a.x, a.rstd, a.gain, a.w, dy,
                                              std::vector<float>(y.begin(), y.end()), 0.0, dx0);
        EXPECT_TRUE(within("dx", got[0], plus(want, to_double(dx0)), limits)) << t.name << ", " << parts;
        if (rounded) {
          EXPECT_TRUE(bitwise_equal("dx_bf16", got[1], rounded_to(DType::kBF16, got[0]))) << t.name;
        }
        if (p.n * p.c > 400) continue;
        // The same by complex step through the forward's formula, whose q and k are rotated.
        const auto dqkv = reference::apart(to_double(dy), a.positions, to_double(a.inv_freq), z(p.h), z(p.k));
        const V gradient = complex_step_gradient(to_double(a.x), [&](const VC& x) {
          const auto of = truth(a, x);
          return dot(of.q, dqkv.q) + dot(of.k, dqkv.k) + dot(of.v, dqkv.v);
        });
        EXPECT_TRUE(within("reference", std::vector<float>(want.begin(), want.end()), gradient,
                           2 * kUnitF32 * (1 + largest(gradient))));
      }
  }
}

}  // namespace
}  // namespace gantrain
