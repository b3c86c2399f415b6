#include "core/ops/norm.h"

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

class NormOps : public OpsTest {};
GT_ALL_DEVICES(NormOps);

struct NormShape {
  int64_t n, c, shift = 0;  // shift: elements from an aligned address to where tensors begin
};
constexpr NormShape kShapes[] = {{1, 1},   {1, 7},     {3, 64},   {3, 64, 1},
                                 {17, 33}, {130, 576}, {5, 4096}, {3, 1155}};
constexpr double kEps = 1e-5;

V inverse_rms(const V& x, size_t c) {
  V out;
  for (size_t i = 0; i < x.size(); i += c) {
    double sum = 0;
    for (size_t j = i; j < i + c; ++j) sum += x[j] * x[j];
    out.push_back(1.0 / std::sqrt(sum / static_cast<double>(c) + kEps));
  }
  return out;
}

TEST_P(NormOps, ForwardMatchesTruth) {
  for (const auto& [n, c, shift] : kShapes)
    for (const float scale : {1.0f, 1e-4f, 300.0f})
      for (const bool gain : {true, false}) {
        const auto x = random_normal(n * c, 1, scale), w = random_normal(c, 2);
        const auto got = run_deterministic([&, n = n, c = c, shift = shift](Device& d) {
          GuardedMemory m(d, shift), odd(d, 1);
          const Tensor y = m.output({n, c}), rstd = m.output({n}), alone = m.output({n}),
                       beside = m.output({n}), rounded = m.output({n, c}, DType::kBF16),
                       odd_rounded = odd.output({n, c}, DType::kBF16);
          const ConstTensor in = m.input(x, {n, c});
          rmsnorm_forward(d, {.x = in,
                              .w = gain ? m.input(w, {c}) : ConstTensor{},
                              .y = y,
                              .rstd = rstd,
                              .eps = static_cast<float>(kEps)});
          row_rstd(d, {.x = in, .rstd = alone, .eps = static_cast<float>(kEps)});
          row_rstd(d, {.x = in,
                       .rstd = beside,
                       .eps = static_cast<float>(kEps),
                       .x_bf16 = rounded,
                       .gain = gain ? m.input(w, {c}) : ConstTensor{}});
          row_rstd(d, {.x = in,
                       .rstd = beside,
                       .eps = static_cast<float>(kEps),
                       .x_bf16 = odd_rounded,
                       .gain = gain ? m.input(w, {c}) : ConstTensor{}});
          return std::vector<std::vector<float>>{m.read(y),      m.read(rstd),    m.read(alone),
                                                 m.read(beside), m.read(rounded), odd.read(odd_rounded)};
        });
        const V xd = to_double(x), want_rstd = inverse_rms(xd, z(c));
        const V want = reference::rmsnorm(xd, gain ? to_double(w) : V{}, z(c), kEps);
        const double n_terms = static_cast<double>(c) / 2 + 6;
        EXPECT_TRUE(within("y", got[0], want, rounding_limits(1.0, 0.0, n_terms, absolute(want))));
        EXPECT_TRUE(within("rstd", got[1], want_rstd, rounding_limits(1.0, 0.0, n_terms, want_rstd)));
        EXPECT_TRUE(bitwise_equal("row_rstd alone", got[1], got[2]));
        EXPECT_TRUE(bitwise_equal("row_rstd beside a rounded copy", got[1], got[3]));
        std::vector<float> scaled = x;
        for (size_t i = 0; gain && i < scaled.size(); ++i) scaled[i] *= w[i % z(c)];
        EXPECT_TRUE(bitwise_equal("x_bf16", got[4], rounded_to(DType::kBF16, scaled)));
        EXPECT_TRUE(bitwise_equal("x_bf16 at an odd element", got[5], got[4]));
      }
}

TEST_P(NormOps, BackwardIsTheGradientAndAccumulates) {
  for (const auto& [n, c, shift] : {NormShape{1, 1}, NormShape{3, 7}, NormShape{4, 40}, NormShape{4, 40, 1},
                                    NormShape{2, 168}, NormShape{3, 8}, NormShape{3, 555}})
    for (const bool gain : {true, false}) {
      const auto x = random_normal(n * c, 1), w = random_normal(c, 2), dy = random_normal(n * c, 3);
      const auto dx0 = random_normal(n * c, 4), dw0 = random_normal(c, 5);
      const V xd = to_double(x), wd = gain ? to_double(w) : V{}, rstd = inverse_rms(xd, z(c));
      const auto got = run_deterministic([&, n = n, c = c, shift = shift](Device& d) {
        GuardedMemory m(d, shift);
        const Tensor dx = m.accumulator(dx0, {n, c}), dw = m.accumulator(dw0, {c});
        rmsnorm_backward(d, {.x = m.input(x, {n, c}),
                             .w = gain ? m.input(w, {c}) : ConstTensor{},
                             .rstd = m.input(std::vector<float>(rstd.begin(), rstd.end()), {n}),
                             .dy = m.input(dy, {n, c}),
                             .dx = dx,
                             .dw = gain ? dw : Tensor{}});
        return std::vector<std::vector<float>>{m.read(dx), m.read(dw)};
      });
      const V dyd = to_double(dy);
      const V dx = complex_step_gradient(xd, [&, c = c](const VC& t) {
        return dot(reference::rmsnorm(t, to_complex(wd), z(c), kEps), dyd);
      });
      EXPECT_TRUE(within("dx", got[0], plus(dx, to_double(dx0)), 4e-6 * (largest(dx) + 4)));
      if (!gain) continue;
      const V dw = complex_step_gradient(wd, [&, c = c](const VC& t) {
        return dot(reference::rmsnorm(to_complex(xd), t, z(c), kEps), dyd);
      });
      EXPECT_TRUE(within("dw", got[1], plus(dw, to_double(dw0)), 4e-6 * (largest(dw) + 4)));
    }
}

}  // namespace
}  // namespace gantrain
