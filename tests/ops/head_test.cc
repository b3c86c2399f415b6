#include "core/ops/head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
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

class HeadOps : public OpsTest {};
GT_ALL_DEVICES(HeadOps);

constexpr double kEps = 1e-5;

struct Problem {
  int64_t n, c, v;
  std::vector<int32_t> rows;
  bool gain;
};
struct Data {
  std::vector<float> x, gain, w;
};
Data make(const Problem& p, DType weights) {
  return {random_normal(p.n * p.c, 1, 2.0f),
          p.gain ? random_uniform(p.c, 2, 0.5f, 2.0f) : std::vector<float>{},
          rounded_to(weights, random_normal(p.v * p.c, 3, 2.0f / std::sqrt(static_cast<float>(p.c))))};
}
// Row r's logits.
template <typename T>
std::vector<T> logits_of(const Problem& p, const Data& a, const std::vector<T>& x, size_t row) {
  const V w = to_double(a.w), gain = to_double(a.gain);
  const auto begin = x.begin() + static_cast<long>(row * z(p.c));
  const std::vector<T> one(begin, begin + p.c);
  const auto h = reference::rmsnorm(one, std::vector<T>(gain.begin(), gain.end()), z(p.c), kEps);
  std::vector<T> l(z(p.v), T(0.0));
  for (size_t t = 0; t < z(p.v); ++t)
    for (size_t j = 0; j < z(p.c); ++j) l[t] += h[j] * w[t * z(p.c) + j];
  return l;
}
int64_t count(const Problem& p) { return static_cast<int64_t>(p.rows.size()); }

TEST_P(HeadOps, LogitsMatchTruthAndDoNotDependOnOtherRows) {
  const Problem problems[] = {
      {1, 8, 1, {0}, false}, {7, 33, 257, {6, 0, 3, 3}, true}, {40, 576, 1031, {39, 1, 20}, true}};
  for (const DType weights : {DType::kF32, DType::kBF16})
    for (const Problem& p : problems) {
      const Data a = make(p, weights);
      const auto run = [&](Device& d, const std::vector<int32_t>& rows) {
        GuardedMemory m(d);
        const auto w = frozen(d, a.w, p.v, p.c, weights);
        const auto r = static_cast<int64_t>(rows.size());
        HeadLogits f{.x = m.input(a.x, {p.n, p.c}),
                     .rows = m.input(rows, {r}),
                     .gain = p.gain ? m.input(a.gain, {p.c}) : ConstTensor{},
                     .w = w.get(),
                     .eps = static_cast<float>(kEps),
                     .logits = m.output({r, p.v}),
                     .scratch = {}};
        f.scratch = m.scratch(head_logits_scratch(d, f));
        head_logits(d, f);
        EXPECT_EQ(head_logits_flops(f), 2 * r * p.v * p.c);
        return std::vector<std::vector<float>>{m.read(f.logits)};
      };
      const auto got = run_deterministic([&](Device& d) { return run(d, p.rows); })[0];
      Data size = a;
      for (float& w : size.w) w = std::abs(w);
      for (size_t r = 0; r < p.rows.size(); ++r) {
        const std::vector<float> row(got.begin() + static_cast<long>(r * z(p.v)),
                                     got.begin() + static_cast<long>((r + 1) * z(p.v)));
        const V terms = logits_of(p, size, absolute(to_double(a.x)), z(p.rows[r]));
        EXPECT_TRUE(within("logits", row, logits_of(p, a, to_double(a.x), z(p.rows[r])),
                           rounding_limits(1.0, weights == DType::kF32 ? 0.0 : kUnitBF16,
                                           static_cast<double>(p.c + 6), terms)));
        EXPECT_TRUE(bitwise_equal("a row alone", run(device(), {p.rows[r]})[0], row));
      }
    }
}

// Which parts of the seed a call asks for.
struct Parts {
  bool ce, reference, kl, gumbel;
  int32_t top_k = 0;
  float tau = 1.0f;
};
struct Inputs {
  std::vector<int32_t> labels;
  std::vector<float> ce_weight, kl_weight, reference, embedding, embedding_grad, dx0;
  std::vector<int64_t> key, counter;
};
Inputs inputs_of(const Problem& p, DType weights) {
  const int64_t r = count(p);
  Inputs i{random_ints(r, 10, 0, static_cast<int32_t>(p.v) - 1),
           random_normal(r, 11),  // of both signs, as rewards make them
           random_uniform(r, 12, 0.1f, 1.0f),
           random_normal(r * p.c, 13, 2.0f),
           rounded_to(weights, random_normal(p.v * p.c, 14)),
           rounded_to(weights, random_normal(r * p.c, 15, 0.3f)),
           random_normal(p.n * p.c, 16),
           {},
           {}};
  for (int64_t k = 0; k < r; ++k) {
    i.key.push_back(static_cast<int64_t>(derive_key(5, 6, static_cast<uint64_t>(k))));
    i.counter.push_back(3 * k);
  }
  return i;
}
V noise_of(const Inputs& in, size_t r, int64_t v) {
  V out;
  for (int64_t j = 0; j < v; ++j) {
    const auto words = Philox{static_cast<uint64_t>(in.key[r])}(static_cast<uint64_t>(in.counter[r]),
                                                                static_cast<uint64_t>(j / 4));
    const double u = static_cast<double>(uniform_open(words[z(j % 4)]));
    out.push_back(-std::log(-std::log(u)));
  }
  return out;
}
// The scalar whose gradient the seeds are.
template <typename T>
T objective(const Problem& p, const Data& a, const Inputs& in, const Parts& parts, const std::vector<T>& x) {
  T sum(0.0);
  for (size_t r = 0; r < p.rows.size(); ++r) {
    const auto l = logits_of(p, a, x, z(p.rows[r]));
    const auto log_p = reference::log_softmax(l);
    if (parts.ce) sum -= static_cast<double>(in.ce_weight[r]) * log_p[z(in.labels[r])];
    if (parts.kl) {
      const V ref(in.reference.begin(), in.reference.end());
      const V log_q = reference::log_softmax(logits_of(p, a, ref, r));
      sum += static_cast<double>(in.kl_weight[r]) *
             reference::kl(log_p, std::vector<T>(log_q.begin(), log_q.end()));
    }
    if (parts.gumbel) {
      const V noise = noise_of(in, r, p.v);
      V t(z(p.v), 0.0);
      for (size_t j = 0; j < z(p.v); ++j)
        for (size_t i = 0; i < z(p.c); ++i)
          t[j] += static_cast<double>(in.embedding[j * z(p.c) + i]) *
                  static_cast<double>(in.embedding_grad[r * z(p.c) + i]);
      std::vector<bool> kept;
      if (parts.top_k > 0) {
        std::vector<size_t> order(z(p.v));
        std::iota(order.begin(), order.end(), size_t{0});
        std::sort(order.begin(), order.end(), [&](size_t i, size_t j) {
          return reference::real_part(l[i]) + noise[i] > reference::real_part(l[j]) + noise[j];
        });
        kept.assign(z(p.v), false);
        for (int32_t k = 0; k < parts.top_k; ++k) kept[order[z(k)]] = true;
      }
      sum += reference::soft_choice(l, noise, t, static_cast<double>(parts.tau), kept);
    }
  }
  return sum;
}
// nll, kl (empty without reference), argmax as floats, dx (empty if not wanted)
std::vector<std::vector<float>> loss(Device& d, const Problem& p, const Data& a, const Inputs& in,
                                     const Parts& parts, DType weights, bool wants_dx = true) {
  GuardedMemory m(d);
  const int64_t r = count(p);
  const auto w = frozen(d, a.w, p.v, p.c, weights), e = frozen(d, in.embedding, p.v, p.c, weights);
  HeadLoss f{.x = m.input(a.x, {p.n, p.c}),
             .rows = m.input(p.rows, {r}),
             .gain = p.gain ? m.input(a.gain, {p.c}) : ConstTensor{},
             .w = w.get(),
             .eps = static_cast<float>(kEps),
             .labels = m.input(in.labels, {r}),
             .ce_weight = parts.ce ? m.input(in.ce_weight, {r}) : ConstTensor{},
             .reference = parts.reference ? m.input(in.reference, {r, p.c}) : ConstTensor{},
             .kl_weight = parts.kl ? m.input(in.kl_weight, {r}) : ConstTensor{},
             .embedding = parts.gumbel ? e.get() : nullptr,
             .embedding_grad = parts.gumbel ? m.input(in.embedding_grad, {r, p.c}) : ConstTensor{},
             .key = parts.gumbel ? m.input(in.key, {r}) : ConstTensor{},
             .counter = parts.gumbel ? m.input(in.counter, {r}) : ConstTensor{},
             .tau = parts.tau,
             .top_k = parts.top_k,
             .nll = m.output({r}),
             .kl = parts.reference ? m.output({r}) : Tensor{},
             .argmax = m.output({r}, DType::kI32),
             .dx = wants_dx ? m.accumulator(in.dx0, {p.n, p.c}) : Tensor{},
             .scratch = {}};
  f.scratch = m.scratch(head_loss_scratch(d, f));
  head_loss(d, f);
  std::vector<std::vector<float>> out{m.read(f.nll)};
  out.push_back(parts.reference ? m.read(f.kl) : std::vector<float>{});
  const auto best = m.read_ints(f.argmax);
  out.emplace_back(best.begin(), best.end());
  out.push_back(wants_dx ? m.read(f.dx) : std::vector<float>{});
  return out;
}

const Parts kParts[] = {{true, false, false, false},          {false, false, false, false},
                        {true, true, false, false},           {true, true, true, false},
                        {false, true, true, false},           {false, false, false, true, 0, 0.7f},
                        {false, false, false, true, 5, 1.3f}, {true, true, true, true, 0, 1.0f}};

TEST_P(HeadOps, LossesMatchTruthAndSeedsAreTheGradient) {
  // Vocabularies and rows that are no multiple of 16 bytes, and some that are.
  struct Case {
    int64_t c, v;
    DType weights;
  };
  constexpr Case kCases[] = {{12, 37, DType::kF32},  {12, 37, DType::kBF16}, {12, 40, DType::kF32},
                             {12, 40, DType::kBF16}, {13, 40, DType::kF32},  {16, 37, DType::kBF16}};
  for (const auto& [c, v, weights] : kCases) {
    const Problem p{5, c, v, {4, 0, 2, 2}, true};
    const Types t{"", weights, weights};
    const Data a = make(p, weights);
    const Inputs in = inputs_of(p, weights);
    for (const Parts& parts : kParts) {
      const auto got =
          run_deterministic([&, weights = weights](Device& d) { return loss(d, p, a, in, parts, weights); });
      V nll, kl, best;
      for (size_t r = 0; r < p.rows.size(); ++r) {
        const V l = logits_of(p, a, to_double(a.x), z(p.rows[r])), log_p = reference::log_softmax(l);
        nll.push_back(-log_p[z(in.labels[r])]);
        const V log_q = reference::log_softmax(logits_of(p, a, to_double(in.reference), r));
        kl.push_back(reference::kl(log_p, log_q));
        best.push_back(static_cast<double>(std::max_element(l.begin(), l.end()) - l.begin()));
      }
      const double limit = weights == DType::kF32 ? 4e-6 : 5e-2;
      EXPECT_TRUE(within("nll", got[0], nll, limit));
      if (parts.reference) {
        EXPECT_TRUE(within("kl", got[1], kl, limit));
      }
      if (weights == DType::kF32) {
        EXPECT_TRUE(within("argmax", got[2], best, 0.0));
      }
      const V want =
          complex_step_gradient(to_double(a.x), [&](const VC& x) { return objective(p, a, in, parts, x); });
      EXPECT_TRUE(within("dx", got[3], plus(want, to_double(in.dx0)), gradient_limit(t, want) + 1e-6))
          << "ce " << parts.ce << ", reference " << parts.reference << ", kl " << parts.kl << ", gumbel "
          << parts.gumbel << ", top_k " << parts.top_k;
      // Asking for less changes nothing of the rest.
      const auto losses = loss(device(), p, a, in, parts, weights, false);
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(bitwise_equal("losses alone", losses[i], got[i]));
    }
  }
}

// Of bf16 products the seeds are rounded to nearest, with whole vectors of them and without: rounded toward
// zero they would make the gradient smaller. The gradient from its formula in f64.
TEST_P(HeadOps, SeedsAreRoundedWithoutBias) {
  struct Case {
    int32_t v, half;  // labels are of the first or of the second half of the vocabulary
    bool kl;
  };
  for (const auto& [v, half, kl] : {Case{600, 0, false},
                                    {600, 1, true},
                                    {1023, 0, false},
                                    {1023, 1, false},
                                    {1023, 0, true},
                                    {1023, 1, true}}) {
    Problem p{100, 16, v, {}, true};
    for (int32_t i = 0; i < 100; ++i) p.rows.push_back(i);
    const Data a = make(p, DType::kBF16);
    Inputs in = inputs_of(p, DType::kBF16);
    in.dx0.assign(in.dx0.size(), 0.0f);
    for (int32_t& label : in.labels) label = label % (v / 2) + half * (v / 2);
    const auto got = loss(device(), p, a, in, {true, kl, kl, false}, DType::kBF16);
    V dy;
    for (size_t r = 0; r < p.rows.size(); ++r) {
      const V log_p = reference::log_softmax(logits_of(p, a, to_double(a.x), r)),
              log_q = reference::log_softmax(logits_of(p, a, to_double(in.reference), r));
      const double divergence = reference::kl(log_p, log_q);
      for (size_t j = 0; j < log_p.size(); ++j)
        dy.push_back(static_cast<double>(in.ce_weight[r]) *
                         (std::exp(log_p[j]) - (j == z(in.labels[r]) ? 1.0 : 0.0)) +
                     (kl ? static_cast<double>(in.kl_weight[r]) * std::exp(log_p[j]) *
                               (log_p[j] - log_q[j] - divergence)
                         : 0.0));
    }
    const V want =
        reference::norm_product_gradient(to_double(a.x), to_double(a.gain), to_double(a.w), dy, z(p.c), kEps);
    EXPECT_TRUE(unbiased("dx", got[3], want, kUnitBF16)) << v << ", half " << half << ", KL " << kl;
  }
}

// More rows than a chunk and a vocabulary of several ranges; the gradient along one direction.
TEST_P(HeadOps, LongCallsAgreeAlongADirection) {
  Problem p{150, 16, 9001, {}, true};
  p.rows = random_ints(140, 30, 0, 149);
  const Data a = make(p, DType::kF32);
  const Inputs in = inputs_of(p, DType::kF32);
  const Parts parts{true, true, true, true, 0, 0.9f};
  const auto got = run_deterministic([&](Device& d) { return loss(d, p, a, in, parts, DType::kF32); });
  V nll;
  for (size_t r = 0; r < p.rows.size(); ++r)
    nll.push_back(-reference::log_softmax(logits_of(p, a, to_double(a.x), z(p.rows[r])))[z(in.labels[r])]);
  EXPECT_TRUE(within("nll", got[0], nll, 1e-5));
  const V direction = to_double(random_normal(p.n * p.c, 31));
  const double want = complex_step_along(to_double(a.x), direction,
                                         [&](const VC& x) { return objective(p, a, in, parts, x); });
  V gradient = to_double(got[3]);
  for (size_t i = 0; i < gradient.size(); ++i) gradient[i] -= static_cast<double>(in.dx0[i]);
  double norm = 0;
  for (const double g : gradient) norm += g * g;
  EXPECT_TRUE(within("slope", V{dot(gradient, direction)}, V{want}, 1e-5 * std::sqrt(norm)));
}

TEST_P(HeadOps, TheArgmaxOfATieIsTheLowestIndex) {
  const Problem p{1, 4, 9, {0}, false};
  Data a = make(p, DType::kF32);
  for (int64_t t : {2, 5, 8})
    for (int64_t j = 0; j < p.c; ++j) a.w[z(t * p.c + j)] = 3.0f * a.x[z(j)];
  const auto got = loss(device(), p, a, inputs_of(p, DType::kF32), kParts[0], DType::kF32, false);
  EXPECT_EQ(got[2][0], 2.0f);
}

// Chunks of 128 rows, as the CPU has them and GANTRAIN_HEAD_MIB=0 makes them on CUDA, give the bits that one
// of all rows gives. Rows are scored twice, in one chunk and across two.
TEST_P(HeadOps, ChunksOfRowsChangeNoBit) {
  Problem p{290, 24, 33, {}, true};
  for (int32_t i = 0; i < 290; ++i) p.rows.push_back(i % 7 == 0 ? i / 2 : i);
  for (const DType weights : {DType::kF32, DType::kBF16}) {
    const Data a = make(p, weights);
    const Inputs in = inputs_of(p, weights);
    const Parts parts{true, true, true, true, 5, 0.7f};
    ::setenv("GANTRAIN_HEAD_MIB", "0", 1);
    const auto in_chunks = loss(device(), p, a, in, parts, weights);
    ::unsetenv("GANTRAIN_HEAD_MIB");
    const auto whole = loss(device(), p, a, in, parts, weights);
    ASSERT_EQ(whole.size(), in_chunks.size());
    for (size_t i = 0; i < whole.size(); ++i)
      EXPECT_TRUE(bitwise_equal("output", in_chunks[i], whole[i])) << dtype_name(weights) << ", " << i;
  }
}

}  // namespace
}  // namespace gantrain
