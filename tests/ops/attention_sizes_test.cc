// Attention for heads of any size: what the kernels for 64 and 128 do not take, in every type, forward and
// backward.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "core/ops/attention.h"
#include "tests/reference/frozen.h"
#include "tests/support/complex_step.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;
using VC = std::vector<Complex>;

class AttentionSizes : public OpsTest {};
GT_ALL_DEVICES(AttentionSizes);

// A prompt of four rows that two segments of five and forty see, and three rows that no segment has.
constexpr int32_t kRows = 52;
AttentionPlan plan() {
  AttentionPlan p;
  p.spans = {{0, 4}};
  p.segments = {{0, 4, 0, 0, 0}, {4, 5, 0, 1, 4}, {12, 40, 0, 1, 12}};
  return p;
}
std::vector<std::vector<int>> seen_rows() {
  std::vector<std::vector<int>> sees(kRows);
  for (int r = 0; r < 4; ++r)
    for (int s = 0; s <= r; ++s) sees[z(r)].push_back(s);
  for (int r = 4; r < kRows; ++r) {
    if (r >= 9 && r < 12) continue;
    sees[z(r)] = {0, 1, 2, 3};
    for (int s = r < 9 ? 4 : 12; s <= r; ++s) sees[z(r)].push_back(s);
  }
  return sees;
}

// Rounding leaves no drift in what one instruction of the kernels stores: every fourth row, 32 columns.
void expect_unbiased(const std::string& what, const std::vector<float>& got, const V& want, int64_t heads,
                     int64_t d, DType stored) {
  for (int64_t row = 0; row < 4; ++row)
    for (int64_t column = 0; column < d; column += 32) {
      std::vector<float> some;
      V some_want;
      for (int64_t r = row * heads; r < kRows * heads; r += (r + 1) % heads == 0 ? 3 * heads + 1 : 1)
        for (int64_t j = column; j < std::min(d, column + 32); ++j) {
          some.push_back(got[z(r * d + j)]);
          some_want.push_back(want[z(r * d + j)]);
        }
      EXPECT_TRUE(unbiased(what, some, some_want, stored == DType::kF32 ? 0.0 : unit_of(stored)))
          << "row " << row << " of four, columns from " << column << " on";
    }
}

TEST_P(AttentionSizes, GradientsAgreeAlongDirections) {
  struct Heads {
    int64_t h, k, d;
  };
  const AttentionPlan p = plan();
  const int64_t n = kRows;
  for (const Types& t : kTypes)
    for (const auto& [h, k, d] : {Heads{2, 1, 20}, Heads{3, 3, 48}, Heads{2, 1, 100}, Heads{3, 3, 250}}) {
      const float scale = 1.3f / std::sqrt(static_cast<float>(d));
      const auto q = rounded_to(t.kept, random_normal(n * h * d, 1)),
                 key = rounded_to(t.kept, random_normal(n * k * d, 2)),
                 value = rounded_to(t.kept, random_normal(n * k * d, 3)),
                 d_o = rounded_to(t.weights, random_normal(n * h * d, 4));
      const auto got = run_deterministic([&, h = h, k = k, d = d](Device& dev) {
        GuardedMemory m(dev);
        const ConstTensor qt = m.input(q, {n, h, d}, t.kept), kt = m.input(key, {n, k, d}, t.kept),
                          vt = m.input(value, {n, k, d}, t.kept);
        AttentionForward f{.q = qt,
                           .k = kt,
                           .v = vt,
                           .plan = &p,
                           .scale = scale,
                           .o = m.output({n, h, d}, t.kept),
                           .lse = m.output({n, h}),
                           .scratch = {}};
        f.scratch = m.scratch(attention_forward_scratch(dev, f));
        attention_forward(dev, f);
        AttentionBackward b{.q = qt,
                            .k = kt,
                            .v = vt,
                            .o = f.o,
                            .lse = f.lse,
                            .d_o = m.input(d_o, {n, h, d}, t.weights),
                            .plan = &p,
                            .scale = scale,
                            .dq = m.output({n, h, d}, t.weights),
                            .dk = m.output({n, k, d}, t.weights),
                            .dv = m.output({n, k, d}, t.weights),
                            .scratch = {}};
        b.scratch = m.scratch(attention_backward_scratch(dev, b));
        attention_backward(dev, b);
        return std::vector<std::vector<float>>{m.read(f.o), m.read(b.dq), m.read(b.dk), m.read(b.dv)};
      });
      const V inputs[3] = {to_double(q), to_double(key), to_double(value)};
      const auto output = [&, h = h, k = k, d = d](const auto& a, const auto& b, const auto& c) {
        return reference::grouped_attention(a, b, c, seen_rows(), z(h), z(k), z(d),
                                            static_cast<double>(scale))
            .o;
      };
      // Averages of normals, each below 4, with weights that tensor cores would take in bf16.
      const V want = output(inputs[0], inputs[1], inputs[2]);
      EXPECT_TRUE(within("o", got[0], want, 4.0 * (2 * unit_of(t.kept) + 64 * kUnitF32)))
          << t.name << ", heads of " << d;
      if (d == 250) {
        const auto gradients = reference::grouped_attention_gradients(
            inputs[0], inputs[1], inputs[2], to_double(d_o), seen_rows(), z(h), z(k), z(d), double{scale});
        expect_unbiased("o", got[0], want, h, d, t.kept);
        expect_unbiased("dq", got[1], gradients.dq, h, d, t.weights);
        expect_unbiased("dk", got[2], gradients.dk, k, d, t.weights);
        expect_unbiased("dv", got[3], gradients.dv, k, d, t.weights);
      }
      for (size_t part = 0; part < 3; ++part) {
        const V direction = to_double(random_normal(static_cast<int64_t>(inputs[part].size()), 20 + part));
        const double slope = complex_step_along(inputs[part], direction, [&](const VC& at) {
          const auto of = [&](size_t i) { return i == part ? at : to_complex(inputs[i]); };
          return dot(output(of(0), of(1), of(2)), to_double(d_o));
        });
        const V gradient = to_double(got[part + 1]);
        double norm = 0;
        for (const double g : gradient) norm += g * g;
        // As in attention_test.cc: independent errors of the entries add up like the direction's.
        const double limit = (t.weights == DType::kF32 ? 3e-6 : 1.2e-2) * std::sqrt(norm);
        EXPECT_TRUE(within("slope", V{dot(gradient, direction)}, V{slope}, limit))
            << t.name << ", part " << part << ", heads of " << d;
      }
    }
}

}  // namespace
}  // namespace gantrain
