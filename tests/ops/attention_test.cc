#include "core/ops/attention.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/rng.h"
#include "tests/reference/frozen.h"
#include "tests/support/complex_step.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;
using VC = std::vector<Complex>;

class AttentionOps : public OpsTest {};
GT_ALL_DEVICES(AttentionOps);

struct Problem {
  const char* name;
  int64_t n, m;  // query rows, key rows
  AttentionPlan plan;
  int64_t shift = 0;  // elements from an aligned address to where tensors begin
};
// One after the other, each sees itself only.
Problem causal(const char* name, const std::vector<int32_t>& lengths, int32_t gap = 0) {
  Problem p{name, 0, 0, {}};
  for (const int32_t length : lengths) {
    p.plan.segments.push_back({static_cast<int32_t>(p.n), length, 0, 0, static_cast<int32_t>(p.n)});
    p.n += length + gap;
  }
  p.m = p.n;
  return p;
}
// A prompt, two inputs behind it, and two answers to each input: keys of the prompt have five readers.
Problem forest(const char* name, int32_t prompt, int32_t input, int32_t answer) {
  Problem p{name, 0, 0, {}};
  AttentionPlan& plan = p.plan;
  int32_t at = prompt;
  plan.segments.push_back({0, prompt, 0, 0, 0});
  plan.spans.push_back({0, prompt});
  for (int i = 0; i < 2; ++i) {
    const int32_t own = at, spans = static_cast<int32_t>(plan.spans.size());
    plan.segments.push_back({at, input, 0, 1, at});
    at += input;
    plan.spans.push_back({0, prompt});
    plan.spans.push_back({own, input});
    for (int j = 0; j < 2; ++j) {
      plan.segments.push_back({at, answer + j, spans, 2, at});
      at += answer + j;
    }
  }
  p.n = p.m = at;
  return p;
}
// Queries that see spans alone, out of order: cross-attention.
Problem cross(const char* name) {
  Problem p{name, 20, 130, {}};
  p.plan.spans = {{70, 60}, {0, 3}, {10, 1}};
  p.plan.segments = {{12, 8, 0, 2, -1}, {0, 5, 2, 1, -1}, {5, 7, 0, 1, -1}};
  return p;
}
// One token of each of three sequences against cached rows, as in decoding.
Problem decoding(const char* name) {
  Problem p{name, 3, 400, {}};
  p.plan.spans = {{0, 20}, {20, 150}, {200, 199}};
  p.plan.segments = {{0, 1, 0, 2, 170}, {1, 1, 0, 1, 171}, {2, 1, 2, 1, 399}};
  return p;
}
std::vector<Problem> problems() {
  return {causal("one row", {1}),
          causal("three sequences and rows of none", {1, 7, 33}, 2),
          causal("several blocks of keys", {150}),
          forest("prompt, inputs, answers", 20, 9, 14),
          forest("a prompt longer than a block", 70, 3, 40),
          cross("spans alone"),
          decoding("one token a sequence")};
}
std::vector<std::vector<int>> seen_rows(const Problem& p) {
  std::vector<std::vector<int>> sees(z(p.n));
  for (const AttentionSegment& s : p.plan.segments)
    for (int32_t j = 0; j < s.q_count; ++j) {
      std::vector<int>& rows = sees[z(s.q_begin + j)];
      for (int32_t i = 0; i < s.span_count; ++i) {
        const KvSpan& span = p.plan.spans[z(s.span_begin + i)];
        for (int32_t r = 0; r < span.count; ++r) rows.push_back(span.begin + r);
      }
      for (int32_t r = 0; s.kv_begin >= 0 && r <= j; ++r) rows.push_back(s.kv_begin + r);
    }
  return sees;
}

struct Heads {
  int64_t h, k, d;
};
constexpr Heads kHeads[] = {{1, 1, 5},   {3, 3, 16}, {9, 3, 64}, {4, 1, 100},
                            {8, 1, 128}, {4, 2, 18}, {20, 1, 8}, {6, 3, 8}};

struct Data {
  std::vector<float> q, k, v;
};
Data make(const Problem& p, const Heads& a, DType kept) {
  return {rounded_to(kept, random_normal(p.n * a.h * a.d, 1)),
          rounded_to(kept, random_normal(p.m * a.k * a.d, 2)),
          rounded_to(kept, random_normal(p.m * a.k * a.d, 3))};
}
double scale_of(const Heads& a) { return 1.7 / std::sqrt(static_cast<double>(a.d)); }  // not the usual one

std::vector<std::vector<float>> forward(Device& dev, const Problem& p, const Heads& a, const Data& x,
                                        const Types& t, bool lse = true) {
  GuardedMemory m(dev, p.shift);
  AttentionForward f{.q = m.input(x.q, {p.n, a.h, a.d}, t.kept),
                     .k = m.input(x.k, {p.m, a.k, a.d}, t.kept),
                     .v = m.input(x.v, {p.m, a.k, a.d}, t.kept),
                     .plan = &p.plan,
                     .scale = static_cast<float>(scale_of(a)),
                     .o = m.output({p.n, a.h, a.d}, t.kept),
                     .lse = lse ? m.output({p.n, a.h}) : Tensor{},
                     .scratch = {}};
  f.scratch = m.scratch(attention_forward_scratch(dev, f));
  attention_forward(dev, f);
  if (!lse) return {m.read(f.o)};
  return {m.read(f.o), m.read(f.lse)};
}

TEST_P(AttentionOps, ForwardMatchesTruth) {
  for (const Types& t : kTypes)
    for (const Problem& p : problems())
      for (const Heads& a : kHeads) {
        // Kernels on the f32 units are slow on the software GPU, and size shows nothing new there.
        const bool tensor_cores = t.kept == DType::kBF16 && (a.d == 64 || a.d == 128);
        if (p.n * a.h * a.d > (host_sees_values() || tensor_cores ? 60000 : 20000)) continue;
        const Data x = make(p, a, t.kept);
        const auto got = run_deterministic([&](Device& d) { return forward(d, p, a, x, t); });
        const auto want = reference::grouped_attention(to_double(x.q), to_double(x.k), to_double(x.v),
                                                       seen_rows(p), z(a.h), z(a.k), z(a.d), scale_of(a));
        // Scores of size up to ~10 carry an error of d/2 f32 units each, and so do weights and values. Values
        // are averages of normals: below 4.
        const double f32 = 6 * kUnitF32 * (static_cast<double>(a.d) / 8 + 10);
        V size = plus(absolute(want.o), V(want.o.size(), f32 / unit_of(t.kept)));
        // Tensor cores take softmax's weights in bf16: each term of the average is off by half a unit.
        if (!host_sees_values() && t.kept == DType::kBF16) {
          const V terms =
              reference::grouped_attention(to_double(x.q), to_double(x.k), absolute(to_double(x.v)),
                                           seen_rows(p), z(a.h), z(a.k), z(a.d), scale_of(a))
                  .o;
          for (size_t i = 0; i < size.size(); ++i) size[i] += terms[i];
        }
        EXPECT_TRUE(within("o", got[0], want.o, rounding_limits(1.0, unit_of(t.kept), 0.0, size)))
            << t.name << ", " << p.name << ", heads of " << a.d;
        EXPECT_TRUE(within("lse", got[1], want.lse, f32)) << t.name << ", " << p.name << ", heads of " << a.d;
        EXPECT_TRUE(bitwise_equal("o without lse", forward(device(), p, a, x, t, false)[0], got[0]));
      }
}

// The weights of keys 2 i and 2 i + 1, at every place among 64 keys, one token a sequence: each is rounded to
// nearest, or what they add would be smaller. A third key, of values 0, has the largest score, whose weight
// is rounded to itself; all others are far below.
TEST_P(AttentionOps, WeightsOfOneTokenAreRoundedWithoutBias) {
  const Heads a{8, 1, 64};
  const Types t = kTypes[1];
  constexpr int32_t kEach = 3, kKeys = 64;  // sequences a place
  Problem p{"pairs of keys", kEach * kKeys / 2, kEach * kKeys / 2 * kKeys, {}};
  for (int32_t i = 0; i < p.n; ++i) {
    p.plan.spans.push_back({i * kKeys, kKeys});
    p.plan.segments.push_back({i, 1, i, 1, -1});
  }
  Data x = make(p, a, t.kept);
  for (float& q : x.q) q = std::abs(q);
  for (int64_t i = 0; i < p.m * a.d; ++i) {
    const int64_t key = i / a.d % kKeys, first = i / a.d / kKeys / kEach * 2;
    if (key == first || key == first + 1) continue;
    const bool largest = key == (first + 2) % kKeys;
    x.k[z(i)] = largest ? 0.28125f : -8.0f;  // a score near 3, those of the pair being near 0
    if (largest) x.v[z(i)] = 0.0f;
  }
  const auto got = forward(device(), p, a, x, t);
  const V want = reference::grouped_attention(to_double(x.q), to_double(x.k), to_double(x.v), seen_rows(p),
                                              z(a.h), z(a.k), z(a.d), scale_of(a))
                     .o;
  const int64_t of_place = kEach * a.h * a.d;
  for (int64_t at = 0; at < p.n * a.h * a.d; at += of_place)
    EXPECT_TRUE(unbiased("o", std::vector<float>(got[0].begin() + at, got[0].begin() + at + of_place),
                         V(want.begin() + at, want.begin() + at + of_place), kUnitBF16))
        << "keys " << at / of_place * 2 << " and the next";
}

TEST_P(AttentionOps, ScoresFarApartStayFinite) {
  // Scores of 1000 and more: only a running maximum keeps exp in range.
  const Problem p = causal("150 rows", {150});
  const Heads a{2, 1, 16};
  Data x = make(p, a, DType::kF32);
  for (float& v : x.q) v *= 100.0f;
  for (float& v : x.k) v *= 10.0f;
  const auto got = forward(device(), p, a, x, kTypes[0]);
  const auto want = reference::grouped_attention(to_double(x.q), to_double(x.k), to_double(x.v), seen_rows(p),
                                                 2, 1, 16, scale_of(a));
  // An error of 2^-24 of a score of some thousands in the exponent.
  EXPECT_TRUE(within("o", got[0], want.o, 4e-3));
  EXPECT_TRUE(within("lse", got[1], want.lse, 2e-3));
}

struct Gradients {
  std::vector<float> dq, dk, dv;
};
// Backward from what forward gave, as the model does it.
std::vector<std::vector<float>> backward(Device& dev, const Problem& p, const Heads& a, const Data& x,
                                         const std::vector<float>& d_o, const Types& t) {
  const auto kept = forward(dev, p, a, x, t);
  GuardedMemory m(dev, p.shift);
  AttentionBackward b{.q = m.input(x.q, {p.n, a.h, a.d}, t.kept),
                      .k = m.input(x.k, {p.m, a.k, a.d}, t.kept),
                      .v = m.input(x.v, {p.m, a.k, a.d}, t.kept),
                      .o = m.input(kept[0], {p.n, a.h, a.d}, t.kept),
                      .lse = m.input(kept[1], {p.n, a.h}),
                      .d_o = m.input(d_o, {p.n, a.h, a.d}, t.weights),
                      .plan = &p.plan,
                      .scale = static_cast<float>(scale_of(a)),
                      .dq = m.output({p.n, a.h, a.d}, t.weights),
                      .dk = m.output({p.m, a.k, a.d}, t.weights),
                      .dv = m.output({p.m, a.k, a.d}, t.weights),
                      .scratch = {}};
  b.scratch = m.scratch(attention_backward_scratch(dev, b));
  attention_backward(dev, b);
  return {m.read(b.dq), m.read(b.dk), m.read(b.dv)};
}

// Softmax's backward takes differences of terms of size 1 and more, made of what was kept: where the gradient
// is smaller, their rounding remains.
double limit(const Types& t, const V& want) {
  return gradient_limit(t, want) * std::max(1.0, 1.0 / largest(want));
}

TEST_P(AttentionOps, BackwardIsTheGradient) {
  std::vector<Problem> small{causal("rows of none", {1, 5}, 2), forest("forest", 4, 2, 3)};
  Problem spans{"spans alone", 6, 9, {}};
  spans.plan.spans = {{4, 5}, {0, 3}};
  spans.plan.segments = {{2, 4, 0, 2, -1}, {0, 2, 1, 1, -1}};
  small.push_back(spans);
  for (const Types& t : kTypes)
    for (const Problem& p : small)
      for (const Heads& a : {Heads{1, 1, 3}, Heads{4, 2, 6}, Heads{18, 1, 2}}) {
        const Data x = make(p, a, t.kept);
        const auto d_o = rounded_to(t.weights, random_normal(p.n * a.h * a.d, 4));
        const auto got = run_deterministic([&](Device& d) { return backward(d, p, a, x, d_o, t); });
        const auto loss = [&](const VC& q, const VC& k, const VC& v) {
          return dot(
              reference::grouped_attention(q, k, v, seen_rows(p), z(a.h), z(a.k), z(a.d), scale_of(a)).o,
              to_double(d_o));
        };
        const VC q = to_complex(to_double(x.q)), k = to_complex(to_double(x.k)),
                 v = to_complex(to_double(x.v));
        const V dq = complex_step_gradient(to_double(x.q), [&](const VC&at) { return loss(at, k, v); }),
                dk = complex_step_gradient(to_double(x.k), [&](const VC&at) { return loss(q, at, v); }),
                dv = complex_step_gradient(to_double(x.v), [&](const VC&at) { return loss(q, k, at); });
        EXPECT_TRUE(within("dq", got[0], dq, limit(t, dq))) << t.name << ", " << p.name;
        EXPECT_TRUE(within("dk", got[1], dk, limit(t, dk))) << t.name << ", " << p.name;
        EXPECT_TRUE(within("dv", got[2], dv, limit(t, dv))) << t.name << ", " << p.name;
      }
}

// Some rows of keys in front that have no query, as a trained prefix has, and sequences that see them.
Problem behind_a_prefix(const char* name, int32_t prefix, const std::vector<int32_t>& lengths,
                        int64_t shift = 0) {
  Problem p = causal(name, lengths);
  p.plan.spans = {{0, prefix}};
  for (AttentionSegment& s : p.plan.segments) s.span_count = 1, s.kv_begin += prefix;
  p.m = p.n + prefix;
  p.shift = shift;
  return p;
}
// The gradient of the projection in front: dq, dk and dv, which the tests above hold against truth, rotated
// back beside each other, and their products with q, k and v.
TEST_P(AttentionOps, BackwardGoesOnToTheProjection) {
  const std::vector<Problem> all{
      causal("sequences and rows of none", {1, 70, 9}, 2), forest("prompt, inputs, answers", 20, 9, 14),
      behind_a_prefix("behind a prefix", 7, {3, 66}), behind_a_prefix("behind a block", 64, {5}),
      behind_a_prefix("unaligned", 5, {30}, 1)};
  for (const Types& t : kTypes)
    for (const Problem& p : all)
      for (const Heads& a : {Heads{6, 2, 64}, Heads{2, 1, 128}, Heads{3, 3, 10}, Heads{4, 1, 100}}) {
        const bool tensor_cores = t.kept == DType::kBF16 && (a.d == 64 || a.d == 128) && p.shift == 0;
        if (p.n * a.h * a.d > (host_sees_values() || tensor_cores ? 60000 : 12000)) continue;
        const Data x = make(p, a, t.kept);
        const auto d_o = rounded_to(t.weights, random_normal(p.n * a.h * a.d, 4));
        const int64_t width = (a.h + 2 * a.k) * a.d, front = p.m - p.n;
        const auto positions = random_ints(p.n, 5, 0, 500);
        std::vector<float> frequencies;
        for (int64_t i = 0; i < a.d / 2; ++i)
          frequencies.push_back(std::pow(100.0f, -static_cast<float>(i) / static_cast<float>(a.d)));
        const auto angles = angles_of(positions, frequencies);
        const auto kept = forward(device(), p, a, x, t);
        const auto run = [&](Device& dev, bool dots) {
          GuardedMemory m(dev, p.shift);
          AttentionBackward b{.q = m.input(x.q, {p.n, a.h, a.d}, t.kept),
                              .k = m.input(x.k, {p.m, a.k, a.d}, t.kept),
                              .v = m.input(x.v, {p.m, a.k, a.d}, t.kept),
                              .o = m.input(kept[0], {p.n, a.h, a.d}, t.kept),
                              .lse = m.input(kept[1], {p.n, a.h}),
                              .d_o = m.input(d_o, {p.n, a.h, a.d}, t.weights),
                              .plan = &p.plan,
                              .scale = static_cast<float>(scale_of(a)),
                              .dq = {},
                              .dk = front > 0 ? m.output({front, a.k, a.d}, t.weights) : Tensor{},
                              .dv = front > 0 ? m.output({front, a.k, a.d}, t.weights) : Tensor{},
                              .scratch = {},
                              .dy = m.output({p.n, width}, t.weights),
                              .rotary = m.input(angles, {p.n, a.d}),
                              .dot = dots ? m.output({p.n, a.h + a.k}) : Tensor{}};
          b.scratch = m.scratch(attention_backward_scratch(dev, b));
          attention_backward(dev, b);
          std::vector<std::vector<float>> out{m.read(b.dy)};
          if (dots) out.push_back(m.read(b.dot));
          if (front > 0) out.push_back(m.read(b.dk)), out.push_back(m.read(b.dv));
          return out;
        };
        const auto got = run_deterministic([&](Device& d) { return run(d, true); });
        EXPECT_TRUE(bitwise_equal("dy without dot", run(device(), false)[0], got[0]));
        const auto plain = backward(device(), p, a, x, d_o, t);
        const auto rows = [&](const std::vector<float>& all_rows, int64_t begin, int64_t count) {
          return std::vector<float>(all_rows.begin() + begin * a.k * a.d,
                                    all_rows.begin() + (begin + count) * a.k * a.d);
        };
        if (front > 0) {
          EXPECT_TRUE(bitwise_equal("dk in front", got[2], rows(plain[1], 0, front)));
          EXPECT_TRUE(bitwise_equal("dv in front", got[3], rows(plain[2], 0, front)));
        }
        V want, limits, sums, sum_limits;
        std::vector<float> dots;
        const auto dk = rows(plain[1], front, p.n), own_dv = rows(plain[2], front, p.n),
                   k = rows(x.k, front, p.n), v = rows(x.v, front, p.n);
        for (int64_t n = 0; n < p.n; ++n) {
          double sum = 0, size = 0;
          float parts = 0;
          for (int64_t head = 0; head < a.h + 2 * a.k; ++head) {
            const bool query = head < a.h, value = head >= a.h + a.k;
            const auto at = z((query ? n * a.h + head : n * a.k + (head - a.h) % a.k) * a.d);
            const auto &d = query ? plain[0] : value ? own_dv : dk, &y = query ? x.q : value ? v : k;
            for (size_t j = 0; j < z(a.d); ++j) {
              const size_t half = z(a.d / 2), other = at + (j + half) % z(a.d);
              const double own = static_cast<double>(d[at + j]), beside = static_cast<double>(d[other]);
              const double c = static_cast<double>(angles[z(n * a.d) + j % half]),
                           s = static_cast<double>(angles[z(n * a.d) + half + j % half]);
              want.push_back(value ? own : own * c + (j < half ? beside : -beside) * s);
              const double unit = std::max(t.unit(), 4 * kUnitF32);
              limits.push_back(value ? 0.0
                                     : unit * (std::abs(own) + std::abs(beside) + std::abs(want.back())));
              sum += own * static_cast<double>(y[at + j]);
              size += std::abs(own * static_cast<double>(y[at + j]));
            }
            if (!value) parts += got[1][z(n * (a.h + a.k) + head)];
          }
          dots.push_back(parts);
          sums.push_back(sum);
          sum_limits.push_back((t.unit() + kUnitF32 * static_cast<double>(a.d + 10)) * size);
        }
        EXPECT_TRUE(within("dy", got[0], want, limits)) << t.name << ", " << p.name << ", heads of " << a.d;
        EXPECT_TRUE(unbiased("dy", got[0], want, t.input_unit())) << t.name << ", " << p.name;
        EXPECT_TRUE(within("dot", dots, sums, sum_limits))
            << t.name << ", " << p.name << ", heads of " << a.d;
      }
}

// Shapes with several blocks of queries and keys: the derivative along a random direction.
TEST_P(AttentionOps, BackwardOfLongSegmentsAgreesAlongDirections) {
  for (const Types& t : kTypes)
    for (const Problem& p : {causal("long", {150, 3}), forest("forest", 70, 3, 40)})
      for (const Heads& a : {Heads{9, 3, 64}, Heads{2, 1, 100}, Heads{4, 1, 128}}) {
        // On the CPU one of the two larger heads is enough, and of the GPU's kernels each is wanted once.
        const bool wanted = host_sees_values()       ? a.d != 128
                            : t.kept == DType::kBF16 ? a.d != 100
                                                     : t.kept == DType::kF32 && a.d == 100;
        if (!wanted) continue;
        const Data x = make(p, a, t.kept);
        const auto d_o = rounded_to(t.weights, random_normal(p.n * a.h * a.d, 4));
        const auto got = run_deterministic([&](Device& d) { return backward(d, p, a, x, d_o, t); });
        const V values[3] = {to_double(x.q), to_double(x.k), to_double(x.v)};
        for (size_t part = 0; part < 3; ++part) {
          const V direction = to_double(random_normal(static_cast<int64_t>(values[part].size()), 20 + part));
          const double want = complex_step_along(values[part], direction, [&](const VC& at) {
            const auto of = [&](size_t i) { return i == part ? at : to_complex(values[i]); };
            return dot(reference::grouped_attention(of(0), of(1), of(2), seen_rows(p), z(a.h), z(a.k), z(a.d),
                                                    scale_of(a))
                           .o,
                       to_double(d_o));
          });
          const V gradient = to_double(got[part]);
          double norm = 0;
          for (const double g : gradient) norm += g * g;
          // Independent errors of the entries, each a share of a typical entry, add up like the direction's.
          const double limit = (t.weights == DType::kF32 ? 3e-6 : 1.2e-2) * std::sqrt(norm);
          EXPECT_TRUE(within("slope", V{dot(gradient, direction)}, V{want}, limit))
              << t.name << ", " << p.name << ", part " << part << ", heads of " << a.d;
        }
      }
}

// Scores of 30 and more, made again from q and k as they are kept: an error of one bf16 rounding in them,
// 2^-9 of each term, would change softmax's weights by some percent.
TEST_P(AttentionOps, BackwardOfLargeScoresIsTheGradient) {
  const Types& t = kTypes[2];
  ASSERT_EQ(t.kept, DType::kF16);
  const Problem p = forest("forest", 40, 30, 3);
  const Heads a{3, 1, 64};
  Data x = make(p, a, t.kept);
  for (float& q : x.q) q *= 16.0f;
  const auto d_o = rounded_to(t.weights, random_normal(p.n * a.h * a.d, 4));
  const auto got = run_deterministic([&](Device& d) { return backward(d, p, a, x, d_o, t); });
  const auto want =
      reference::grouped_attention_gradients(to_double(x.q), to_double(x.k), to_double(x.v), to_double(d_o),
                                             seen_rows(p), z(a.h), z(a.k), z(a.d), scale_of(a));
  EXPECT_TRUE(within("dq", got[0], want.dq, limit(t, want.dq)));
  EXPECT_TRUE(within("dk", got[1], want.dk, limit(t, want.dk)));
  EXPECT_TRUE(within("dv", got[2], want.dv, limit(t, want.dv)));
}

// What the kernels for bf16 and heads of 64 and 128 are made for: tiles of queries and of keys that are full,
// one short and one over, prompts longer than a tile with several readers, and one to eight heads a key head.
struct Tuned {
  Problem problem;
  Heads heads;
};
std::vector<Tuned> tuned() {
  Problem odd = causal("at an odd place", {40});
  odd.shift = 1;
  return {{odd, {2, 1, 64}},
          {causal("around a tile", {63, 64, 65, 2}, 1), {3, 3, 64}},
          {causal("several tiles", {170, 30}), {3, 1, 64}},
          {forest("a prompt of several tiles", 200, 1, 20), {4, 1, 64}},
          {forest("inputs longer than answers", 20, 70, 9), {8, 1, 64}},
          {cross("spans alone"), {9, 3, 64}},
          {causal("around a tile", {31, 32, 33, 65}, 1), {2, 2, 128}},
          {forest("inputs longer than answers", 20, 70, 9), {3, 1, 128}},
          {causal("several tiles", {130}), {4, 1, 128}},
          {forest("a prompt of several tiles", 140, 5, 17), {8, 1, 128}},
          {cross("spans alone"), {12, 3, 128}}};
}
constexpr Types kTunedTypes{"bf16", DType::kBF16, DType::kBF16};

// What rounding softmax's weights and the result to the stored type may cost: a unit of each term.
V output_limits(const Problem& p, const Heads& a, const Data& x, const V& want, DType kept) {
  const double f32 = 6 * kUnitF32 * (static_cast<double>(a.d) / 8 + 10);  // as in ForwardMatchesTruth
  const V terms = reference::grouped_attention(to_double(x.q), to_double(x.k), absolute(to_double(x.v)),
                                               seen_rows(p), z(a.h), z(a.k), z(a.d), scale_of(a))
                      .o;
  const double unit = unit_of(kept);
  return rounding_limits(1.0, unit, 0.0, plus(plus(absolute(want), terms), V(want.size(), f32 / unit)));
}

TEST_P(AttentionOps, TunedHeadsMatchTruthInEveryCoordinate) {
  const Types& t = kTunedTypes;
  const auto cpu = make_cpu();
  for (const auto& [p, a] : tuned()) {
    SCOPED_TRACE(fmt::format("{}, {} heads of {} for {} key heads", p.name, a.h, a.d, a.k));
    const Data x = make(p, a, t.kept);
    const auto d_o = rounded_to(t.weights, random_normal(p.n * a.h * a.d, 4));
    const V q = to_double(x.q), k = to_double(x.k), v = to_double(x.v), dd = to_double(d_o);
    const auto sees = seen_rows(p);
    const auto of = [&](const auto& at_q, const auto& at_k, const auto& at_v) {
      return reference::grouped_attention(at_q, at_k, at_v, sees, z(a.h), z(a.k), z(a.d), scale_of(a));
    };
    const auto o = of(q, k, v);
    const auto got = forward(device(), p, a, x, t);
    EXPECT_TRUE(within("o", got[0], o.o, output_limits(p, a, x, o.o, t.kept)));
    EXPECT_TRUE(within("lse", got[1], o.lse, 6 * kUnitF32 * (static_cast<double>(a.d) / 8 + 10)));

    const auto want =
        reference::grouped_attention_gradients(q, k, v, dd, sees, z(a.h), z(a.k), z(a.d), scale_of(a));
    const V direction = to_double(random_normal(static_cast<int64_t>(k.size()), 5));
    const VC cq = to_complex(q), cv = to_complex(v);
    EXPECT_NEAR(complex_step_along(k, direction, [&](const VC& at) { return dot(of(cq, at, cv).o, dd); }),
                dot(want.dk, direction), 1e-10);
    const auto gradients = backward(device(), p, a, x, d_o, t);
    const auto baseline = backward(*cpu, p, a, x, d_o, t);
    const V* wants[] = {&want.dq, &want.dk, &want.dv};
    const char* names[] = {"dq", "dk", "dv"};
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(within(names[i], gradients[i], *wants[i], limit(t, *wants[i])));
      EXPECT_TRUE(within_baseline(names[i], gradients[i], baseline[i], *wants[i], kUnitBF16));
    }
  }
}

// Keys whose scores grow by far more than f32's exponent holds from one tile to the next, and others that
// stay below the first tile's: whoever keeps a maximum of earlier keys has to notice in time.
TEST_P(AttentionOps, ScoresThatGrowFromTileToTile) {
  const Types& t = kTunedTypes;
  for (const auto& [p, a] :
       {Tuned{causal("causal", {300}), {2, 1, 64}}, Tuned{forest("forest", 200, 70, 9), {3, 1, 128}}})
    for (const double growth : {-30.0, 0.2, 6.0, 40.0}) {
      SCOPED_TRACE(fmt::format("{}, heads of {}, growth {}", p.name, a.d, growth));
      Data x = make(p, a, t.kept);
      // Every query and key has the same large first coordinate, so that a key's place decides its scores.
      for (int64_t i = 0; i < p.n * a.h; ++i) x.q[z(i * a.d)] = 16.0f;
      for (int64_t r = 0; r < p.m; ++r)
        x.k[z(r * a.d)] = static_cast<float>(growth) * static_cast<float>(r / 64);
      x.k = rounded_to(t.kept, x.k);
      const auto got = forward(device(), p, a, x, t);
      const auto want = reference::grouped_attention(to_double(x.q), to_double(x.k), to_double(x.v),
                                                     seen_rows(p), z(a.h), z(a.k), z(a.d), scale_of(a));
      // A score of some hundreds is one large product and d - 1 small ones: each addition of its lane (d / 8,
      // in vectors of eight) and the four that join lanes round at its size, and exp makes that error one of
      // the weights.
      const double most = largest(want.lse) * kUnitF32 * (static_cast<double>(a.d) / 8 + 4);
      V limits = output_limits(p, a, x, want.o, t.kept);
      for (double& l : limits) l += 4 * most;  // values are below 4
      EXPECT_TRUE(within("o", got[0], want.o, limits));
      EXPECT_TRUE(within("lse", got[1], want.lse, 6 * kUnitF32 * (static_cast<double>(a.d) / 8 + 10) + most));
    }
}

// Few queries, and contexts around the pieces into which decoding cuts them; the queries' own rows lie apart.
TEST_P(AttentionOps, FewQueriesOfLongContextsMatchTruth) {
  Problem p{"contexts", 0, 41, {}};
  for (const int32_t keys : {1, 31, 32, 33, 257, 510, 511, 520, 1023, 1700})
    for (int32_t queries = 1; queries <= (keys == 257 || keys == 510 ? 3 : 1); ++queries) {
      const auto n = static_cast<int32_t>(p.n);
      p.plan.spans.push_back({static_cast<int32_t>(p.m), keys});
      p.plan.segments.push_back({n, queries, static_cast<int32_t>(p.plan.spans.size()) - 1, 1, n + 1});
      p.n += queries;
      p.m += keys + 3;
    }
  for (const Types& t : {kTypes[0], kTunedTypes})
    for (const Heads& a : {Heads{2, 2, 64}, Heads{3, 1, 64}, Heads{8, 1, 64}, Heads{4, 1, 128},
                           Heads{8, 1, 128}, Heads{20, 1, 128}}) {
      if (t.kept == DType::kF32 && a.h > 2) continue;
      Data x = make(p, a, t.kept);
      // A cache's rows that no query sees, the first one of all too, may hold anything.
      std::vector<bool> seen(z(p.m));
      for (const auto& rows : seen_rows(p))
        for (const int r : rows) seen[z(r)] = true;
      for (int64_t i = 0; i < p.m * a.k * a.d; ++i)
        if (!seen[z(i / (a.k * a.d))]) x.k[z(i)] = x.v[z(i)] = std::numeric_limits<float>::quiet_NaN();
      // Once with every score so far below zero that exp of it is nothing: a maximum that starts at zero or
      // counts a warp without keys would take all the weights away.
      const bool low = t.kept == DType::kBF16 && (a.h == 3 || a.h == 4);
      if (low) {
        for (int64_t i = 0; i < p.n * a.h; ++i) x.q[z(i * a.d)] = 32.0f;
        for (int64_t i = 0; i < p.m * a.k; ++i)
          if (seen[z(i / a.k)]) x.k[z(i * a.d)] = -32.0f;
      }
      const auto got = run_deterministic([&](Device& d) { return forward(d, p, a, x, t); });
      const auto want = reference::grouped_attention(to_double(x.q), to_double(x.k), to_double(x.v),
                                                     seen_rows(p), z(a.h), z(a.k), z(a.d), scale_of(a));
      // A score of some hundreds: as in ScoresThatGrowFromTileToTile.
      const double most = low ? largest(want.lse) * kUnitF32 * (static_cast<double>(a.d) / 8 + 4) : 0;
      V limits = output_limits(p, a, x, want.o, t.kept);
      for (double& l : limits) l += 4 * most;
      EXPECT_TRUE(within("o", got[0], want.o, limits)) << t.name << ", " << a.h << " heads of " << a.d;
      EXPECT_TRUE(within("lse", got[1], want.lse, 6 * kUnitF32 * (static_cast<double>(a.d) / 8 + 10) + most))
          << t.name << ", " << a.h << " heads of " << a.d;
    }
}

// The rows [begin, begin + count) of a tensor of rows of `width`.
std::vector<float> rows_of(const std::vector<float>& x, int64_t begin, int64_t count, int64_t width) {
  return {x.begin() + begin * width, x.begin() + (begin + count) * width};
}

TEST_P(AttentionOps, AQueryDoesNotDependOnTheOtherSegments) {
  for (const Types& t : {kTypes[0], kTunedTypes})
    for (const auto& [p, a] :
         {Tuned{forest("forest", 20, 9, 70), {3, 1, 64}}, Tuned{cross("cross"), {4, 2, 128}},
          Tuned{decoding("decoding"), {8, 1, 128}}}) {
      const Data x = make(p, a, t.kept);
      const auto d_o = rounded_to(t.weights, random_normal(p.n * a.h * a.d, 4));
      const auto all = forward(device(), p, a, x, t);
      const auto dq = backward(device(), p, a, x, d_o, t)[0];
      for (size_t i = 0; i < p.plan.segments.size(); ++i) {
        SCOPED_TRACE(fmt::format("{}, {}, segment {}", t.name, p.name, i));
        Problem one = p;
        const AttentionSegment s = p.plan.segments[i];
        one.plan.segments = {s};
        const auto alone = forward(device(), one, a, x, t);
        const auto dq_alone = backward(device(), one, a, x, d_o, t)[0];
        const auto same = [&](const char* what, const auto& in_all, const auto& by_itself, int64_t width) {
          EXPECT_TRUE(bitwise_equal(what, rows_of(in_all, s.q_begin, s.q_count, width),
                                    rows_of(by_itself, s.q_begin, s.q_count, width)));
        };
        same("o", all[0], alone[0], a.h * a.d);
        same("lse", all[1], alone[1], a.h);
        same("dq", dq, dq_alone, a.h * a.d);
      }
    }
}

// The same keys in the same order, first in one piece and then in pieces here and there.
TEST_P(AttentionOps, WhereKeysLieChangesNothing) {
  constexpr int32_t kPieces[][2] = {{130, 1}, {0, 30}, {90, 37}, {31, 20}, {132, 8}};  // row, count
  Problem whole{"in one piece", 75, 200, {}}, pieces{"in pieces", 75, 200, {}};
  whole.plan.spans = {{3, 96}};
  whole.plan.segments = {{0, 3, 0, 1, 150}, {3, 72, 0, 1, -1}};
  pieces.plan.segments = {{0, 3, 0, 5, 150}, {3, 72, 0, 5, -1}};
  std::vector<int64_t> place(200, -1);  // where row r of `whole` lies in `pieces`
  int64_t at = 3;
  for (const auto& [row, count] : kPieces) {
    pieces.plan.spans.push_back({row, count});
    for (int32_t i = 0; i < count; ++i) place[z(at++)] = row + i;
  }
  for (int64_t r = 150; r < 153; ++r) place[z(r)] = r;
  for (const Types& t : {kTypes[0], kTunedTypes})
    for (const Heads& a : {Heads{3, 1, 64}, Heads{2, 2, 128}}) {
      if (t.kept == DType::kF32 && a.d > 64) continue;
      SCOPED_TRACE(fmt::format("{}, heads of {}", t.name, a.d));
      const int64_t width = a.k * a.d;
      const Data x = make(whole, a, t.kept);
      Data moved = x;
      const auto d_o = rounded_to(t.weights, random_normal(whole.n * a.h * a.d, 4));
      for (int64_t r = 0; r < 200; ++r) {
        if (place[z(r)] < 0) continue;
        std::copy_n(x.k.begin() + r * width, width, moved.k.begin() + place[z(r)] * width);
        std::copy_n(x.v.begin() + r * width, width, moved.v.begin() + place[z(r)] * width);
      }
      const auto want = forward(device(), whole, a, x, t), got = forward(device(), pieces, a, moved, t);
      EXPECT_TRUE(bitwise_equal("o", got[0], want[0]));
      EXPECT_TRUE(bitwise_equal("lse", got[1], want[1]));
      const auto g_want = backward(device(), whole, a, x, d_o, t),
                 g_got = backward(device(), pieces, a, moved, d_o, t);
      EXPECT_TRUE(bitwise_equal("dq", g_got[0], g_want[0]));
      for (size_t part = 1; part < 3; ++part)
        for (int64_t r = 0; r < 200; ++r) {
          if (place[z(r)] < 0) continue;
          EXPECT_EQ(rows_of(g_got[part], place[z(r)], 1, width), rows_of(g_want[part], r, 1, width))
              << "row " << r;
        }
    }
}

TEST_P(AttentionOps, CachedRowsAreCopiedToTheirSlots) {
  const int64_t n = 5, m = 9, k = 2;
  for (const DType t : {DType::kF32, DType::kBF16, DType::kF16})
    for (const auto& [d, shift] : {std::pair<int64_t, int64_t>{6, 0}, {8, 0}, {8, 1}}) {
      const auto kv = rounded_to(t, random_normal(n * k * d, 1)),
                 vv = rounded_to(t, random_normal(n * k * d, 2));
      const std::vector<int32_t> slots{-7, 8, -1, 0, 3};  // the last row has one
      GuardedMemory mem(device(), shift);
      const Tensor kc = mem.output({m, k, d}, t), vc = mem.output({m, k, d}, t);
      kv_append(device(), {.k = mem.input(kv, {n, k, d}, t),
                           .v = mem.input(vv, {n, k, d}, t),
                           .slots = mem.input(slots, {n}),
                           .k_cache = kc,
                           .v_cache = vc});
      const auto got_k = mem.read(kc), got_v = mem.read(vc);
      for (int64_t slot = 0; slot < m; ++slot) {
        const auto from = std::find(slots.begin(), slots.end(), static_cast<int32_t>(slot)) - slots.begin();
        for (int64_t j = 0; j < k * d; ++j) {
          const size_t to = z(slot * k * d + j);
          if (from == n) {
            EXPECT_TRUE(std::isnan(got_k[to]) && std::isnan(got_v[to]))
                << "slot " << slot << " was written to";
          } else {
            EXPECT_EQ(got_k[to], kv[z(from * k * d + j)]);
            EXPECT_EQ(got_v[to], vv[z(from * k * d + j)]);
          }
        }
      }
    }
}

}  // namespace
}  // namespace gantrain
