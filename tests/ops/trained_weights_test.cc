// What the frozen products' ops give to who trains their weights: the gradients behind a norm, and the head's
// own.
#include <gtest/gtest.h>

#include <cmath>

#include "core/buffer.h"
#include "core/ops.h"
#include "tests/reference/frozen.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;

class TrainedWeightsOps : public OpsTest {};
GT_ALL_DEVICES(TrainedWeightsOps);

// dy (N, O) w (O, C), and the sum of its terms' sizes.
V times(const V& dy, const V& w, int64_t n, int64_t o, int64_t c) {
  V out(z(n * c));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < o; ++k)
      for (int64_t j = 0; j < c; ++j) out[z(i * c + j)] += dy[z(i * o + k)] * w[z(k * c + j)];
  return out;
}
// a (N, O), b (N, C): a^T b
V outer(const V& a, const V& b, int64_t n, int64_t o, int64_t c) {
  V out(z(o * c));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < o; ++k)
      for (int64_t j = 0; j < c; ++j) out[z(k * c + j)] += a[z(i * o + k)] * b[z(i * c + j)];
  return out;
}

TEST_P(TrainedWeightsOps, QkvHandsOutItsGradient) {
  // 1100 rows: more than a block of the CPU's.
  for (const auto& [n, c, out] : {std::array<int64_t, 3>{1, 8, 6}, {9, 33, 30}, {1100, 40, 96}}) {
    const auto x = random_normal(n * c, 1), gain = random_uniform(c, 2, 0.5f, 2.0f),
               w = random_normal(out * c, 3), dy = random_normal(n * out, 4),
               rstd = random_uniform(n, 7, 0.5f, 2.0f), start = random_normal(n * c, 9);
    const auto run = [&, n = n, c = c, out = out](bool wanted) {
      return run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, out, c, DType::kF32);
        QkvBackward b{.x = m.input(x, {n, c}),
                      .rstd = m.input(rstd, {n}),
                      .gain = m.input(gain, {c}),
                      .w = matrix.get(),
                      .dy = m.input(dy, {n, out}),
                      .dx = m.accumulator(start, {n, c}),
                      .scratch = {},
                      .dnormed = wanted ? m.output({n, c}) : Tensor{}};
        b.scratch = m.scratch(qkv_backward_scratch(d, b));
        qkv_backward(d, b);
        std::vector<std::vector<float>> all{m.read(b.dx)};
        if (wanted) all.push_back(m.read(b.dnormed));
        return all;
      });
    };
    const auto got = run(true), plain = run(false);
    EXPECT_TRUE(bitwise_equal("dx", got[0], plain[0]));
    EXPECT_TRUE(within("dnormed", got[1], times(to_double(dy), to_double(w), n, out, c),
                       rounding_limits(1.0, 0.0, static_cast<double>(out),
                                       times(absolute(to_double(dy)), absolute(to_double(w)), n, out, c))));
  }
}

TEST_P(TrainedWeightsOps, GateUpHandsOutItsGradient) {
  for (const auto& [n, c, f2] : {std::array<int64_t, 3>{1, 7, 2}, {9, 32, 66}, {1100, 24, 40}}) {
    const auto x = random_normal(n * c, 1), gain = random_uniform(c, 2, 0.5f, 2.0f),
               w = random_normal(f2 * c, 3), dy = random_normal(n * f2, 4),
               rstd = random_uniform(n, 5, 0.5f, 2.0f), start = random_normal(n * c, 6);
    const auto run = [&, n = n, c = c, f2 = f2](bool wanted) {
      return run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, f2, c, DType::kF32);
        GateUpBackward b{.x = m.input(x, {n, c}),
                         .rstd = m.input(rstd, {n}),
                         .gain = m.input(gain, {c}),
                         .w = matrix.get(),
                         .dy = m.input(dy, {n, f2}),
                         .dx = m.accumulator(start, {n, c}),
                         .scratch = {},
                         .dnormed = wanted ? m.output({n, c}) : Tensor{}};
        b.scratch = m.scratch(gate_up_backward_scratch(d, b));
        gate_up_backward(d, b);
        std::vector<std::vector<float>> all{m.read(b.dx)};
        if (wanted) all.push_back(m.read(b.dnormed));
        return all;
      });
    };
    const auto got = run(true), plain = run(false);
    EXPECT_TRUE(bitwise_equal("dx", got[0], plain[0]));
    EXPECT_TRUE(within("dnormed", got[1], times(to_double(dy), to_double(w), n, f2, c),
                       rounding_limits(1.0, 0.0, static_cast<double>(f2),
                                       times(absolute(to_double(dy)), absolute(to_double(w)), n, f2, c))));
  }
}

TEST_P(TrainedWeightsOps, TheHeadsWeightAndGain) {
  constexpr double kEps = 1e-5;
  // 200 rows: more than a chunk; one row of x is scored twice.
  for (const auto& [n, c, v, r] : {std::array<int64_t, 4>{3, 8, 16, 3}, {7, 33, 37, 5}, {150, 12, 40, 200}}) {
    const auto x = random_normal(n * c, 1), gain = random_uniform(c, 2, 0.5f, 2.0f),
               w = random_normal(v * c, 3, 0.3f), weights = random_uniform(r, 4, -1.0f, 1.0f),
               start = random_normal(v * c, 5), gain_start = random_normal(c, 6),
               reference = random_normal(r * c, 7), other_gain = random_uniform(c, 8, 0.5f, 2.0f),
               other_w = random_normal(v * c, 9, 0.3f);
    auto rows = random_ints(r, 10, 0, static_cast<int32_t>(n) - 1);
    const auto labels = random_ints(r, 11, 0, static_cast<int32_t>(v) - 1);
    rows[0] = rows[1];
    const auto run = [&, n = n, c = c, v = v, r = r](bool trained) {
      return run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, v, c, DType::kF32), other = frozen(d, other_w, v, c, DType::kF32);
        HeadLoss h{.x = m.input(x, {n, c}),
                   .rows = m.input(rows, {r}),
                   .gain = m.input(gain, {c}),
                   .w = matrix.get(),
                   .eps = static_cast<float>(kEps),
                   .labels = m.input(labels, {r}),
                   .ce_weight = m.input(weights, {r}),
                   .reference = m.input(reference, {r, c}),
                   .kl_weight = {},
                   .reference_gain = m.input(other_gain, {c}),
                   .reference_w = other.get(),
                   .embedding_grad = {},
                   .key = {},
                   .counter = {},
                   .nll = m.output({r}),
                   .kl = m.output({r}),
                   .argmax = {},
                   .dx = m.accumulator(std::vector<float>(z(n * c)), {n, c}),
                   .scratch = {},
                   .dw = trained ? m.accumulator(start, {v, c}) : Tensor{},
                   .dgain = trained ? m.accumulator(gain_start, {c}) : Tensor{}};
        h.scratch = m.scratch(head_loss_scratch(d, h));
        head_loss(d, h);
        std::vector<std::vector<float>> all{m.read(h.dx), m.read(h.kl)};
        if (trained) {
          all.push_back(m.read(h.dw));
          all.push_back(m.read(h.dgain));
        }
        return all;
      });
    };
    const auto got = run(true), plain = run(false);
    EXPECT_TRUE(bitwise_equal("dx", got[0], plain[0]));
    V xs;
    for (const int32_t row : rows)
      for (int64_t j = 0; j < c; ++j) xs.push_back(static_cast<double>(x[z(row * c + j)]));
    const V ones(z(c), 1.0), plain_rows = reference::rmsnorm(xs, ones, z(c), kEps),
                             normed = reference::rmsnorm(xs, to_double(gain), z(c), kEps);
    const V logits = reference::linear(normed, to_double(w), V{}, z(r), z(c), z(v)),
            theirs =
                reference::linear(reference::rmsnorm(to_double(reference), to_double(other_gain), z(c), kEps),
                                  to_double(other_w), V{}, z(r), z(c), z(v));
    V seeds, kl;
    for (int64_t i = 0; i < r; ++i) {
      const V log_p = reference::log_softmax(V(logits.begin() + i * v, logits.begin() + (i + 1) * v)),
              log_q = reference::log_softmax(V(theirs.begin() + i * v, theirs.begin() + (i + 1) * v));
      kl.push_back(reference::kl(log_p, log_q));
      for (int64_t j = 0; j < v; ++j)
        seeds.push_back(static_cast<double>(weights[z(i)]) *
                        (std::exp(log_p[z(j)]) - (j == labels[z(i)] ? 1 : 0)));
    }
    EXPECT_TRUE(within("kl", got[1], kl, 1e-5));  // as in head_test.cc: losses of some nats in f32
    V dgain = to_double(gain_start), terms(z(c));
    const V dnormed = times(seeds, to_double(w), r, v, c);
    for (int64_t i = 0; i < r; ++i)
      for (int64_t j = 0; j < c; ++j) {
        dgain[z(j)] += dnormed[z(i * c + j)] * plain_rows[z(i * c + j)];
        terms[z(j)] += std::abs(dnormed[z(i * c + j)] * plain_rows[z(i * c + j)]);
      }
    // The seeds carry the roundings of logits that are sums of C terms and of sums over V.
    const double length = static_cast<double>(r + c + v);
    EXPECT_TRUE(
        within("dw", got[2], plus(outer(seeds, normed, r, v, c), to_double(start)),
               plus(rounding_limits(2.0, 0.0, length, outer(absolute(seeds), absolute(normed), r, v, c)),
                    V(z(v * c), 1e-6))));
    EXPECT_TRUE(
        within("dgain", got[3], dgain, plus(rounding_limits(2.0, 0.0, length, terms), V(z(c), 2e-6))));
  }
}

TEST_P(TrainedWeightsOps, OnlyF32WeightsAreTrained) {
  GuardedMemory m(device());
  const auto matrix = frozen(device(), random_normal(6 * 4, 1), 6, 4, DType::kBF16);
  GateUpBackward b{.x = m.output({2, 4}),
                   .rstd = m.output({2}),
                   .gain = {},
                   .w = matrix.get(),
                   .dy = m.output({2, 6}, DType::kBF16),
                   .dx = m.output({2, 4}),
                   .scratch = m.scratch(1 << 16),
                   .dnormed = m.output({2, 4})};
  EXPECT_THROW(gate_up_backward(device(), b), Error);
}

// N = 2 rows, C = 3, V = 5, (H + 2 K) D = 8, 2 F = 6: what is handed out is written once, what is added to is
// read too.
TEST_P(TrainedWeightsOps, Counts) {
  GuardedMemory m(device());
  const auto head = frozen(device(), random_normal(15, 1), 5, 3, DType::kF32),
             qkv = frozen(device(), random_normal(24, 2), 8, 3, DType::kF32),
             gate_up = frozen(device(), random_normal(18, 3), 6, 3, DType::kF32);
  const Tensor x = m.output({2, 3}), r = m.output({2}), ints = m.output({2}, DType::kI32),
               gain = m.output({3});
  HeadLoss h{.x = x,
             .rows = ints,
             .gain = gain,
             .w = head.get(),
             .labels = ints,
             .ce_weight = r,
             .reference = {},
             .kl_weight = {},
             .embedding_grad = {},
             .key = {},
             .counter = {},
             .nll = r,
             .kl = {},
             .argmax = {},
             .dx = x,
             .scratch = {}};
  const int64_t bytes = head_loss_bytes(h), flops = head_loss_flops(h);
  h.dw = m.output({5, 3});
  h.dgain = gain;
  EXPECT_EQ(head_loss_bytes(h) - bytes, 2 * (15 + 3) * 4);
  EXPECT_EQ(head_loss_flops(h) - flops, 2 * 2 * 5 * 3);
  QkvBackward q{
      .x = x, .rstd = r, .gain = gain, .w = qkv.get(), .dy = m.output({2, 8}), .dx = x, .scratch = {}};
  const int64_t plain = qkv_backward_bytes(q);
  q.dnormed = x;
  EXPECT_EQ(qkv_backward_bytes(q) - plain, 6 * 4);
  GateUpBackward g{
      .x = x, .rstd = r, .gain = gain, .w = gate_up.get(), .dy = m.output({2, 6}), .dx = x, .scratch = {}};
  const int64_t without = gate_up_backward_bytes(g);
  g.dnormed = x;
  EXPECT_EQ(gate_up_backward_bytes(g) - without, 6 * 4);
}

// A matrix over values that change is read as they are now.
TEST_P(TrainedWeightsOps, AMatrixOverValuesSeesThemChange) {
  Device& d = device();
  OwnedTensor values(d, DType::kF32, {5, 3}), x(d, DType::kF32, {1, 3}), tokens(d, DType::kI32, {1});
  const auto matrix = d.matrix_over(values.view());
  EXPECT_EQ(matrix->bytes(), 0);
  const int32_t token = 4;
  d.copy_in(tokens, &token);
  for (const uint64_t seed : {1, 2}) {
    const auto w = random_normal(15, seed);
    d.copy_in(values, w.data());
    embed_forward(d, {.table = matrix.get(), .tokens = tokens, .prompt = {}, .x = x});
    std::vector<float> got(3);
    d.copy_out(got.data(), x);
    EXPECT_EQ(got, std::vector<float>(w.begin() + 12, w.end()));
  }
}

}  // namespace
}  // namespace gantrain
