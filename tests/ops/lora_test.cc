// Adapters on the products of the frozen model, held against the same products with merged weights.
#include "core/ops/lora.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/ops.h"
#include "tests/reference/frozen.h"
#include "tests/reference/lora.h"
#include "tests/support/complex_step.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;
using VC = std::vector<Complex>;

class LoraOps : public OpsTest {};
GT_ALL_DEVICES(LoraOps);

constexpr double kEps = 1e-5;

// One adapter's numbers.
struct Adapter {
  int64_t rank, in, out, first;
  float scale;
  std::vector<float> a, b;
};
Adapter adapter(int64_t rank, int64_t in, int64_t out, int64_t first, float scale, uint64_t seed) {
  return {rank,
          in,
          out,
          first,
          scale,
          random_normal(rank * in, seed, 1.0f / std::sqrt(static_cast<float>(in))),
          random_normal(out * rank, seed + 1, 0.5f)};
}
template <typename T>
std::vector<T> in_type(const std::vector<float>& v) {
  return {v.begin(), v.end()};
}
template <typename T>
std::vector<T> with_adapters(const std::vector<float>& w, const std::vector<Adapter>& adapters) {
  std::vector<T> m = in_type<T>(w);
  for (const Adapter& p : adapters)
    m = reference::merged(m, in_type<T>(p.a), in_type<T>(p.b), static_cast<double>(p.scale), z(p.first),
                          z(p.in), z(p.rank));
  return m;
}
// The sum of |terms| of what the adapters add to each output, as a matrix of the same shape.
std::vector<float> magnitude(const std::vector<float>& w, const std::vector<Adapter>& adapters) {
  std::vector<float> m = w;
  std::vector<Adapter> all = adapters;
  for (float& v : m) v = std::abs(v);
  for (Adapter& p : all) {
    for (auto* t : {&p.a, &p.b})
      for (float& v : *t) v = std::abs(v);
    p.scale = std::abs(p.scale);
  }
  const V sum = with_adapters<double>(m, all);
  return {sum.begin(), sum.end()};
}

struct Forward {
  std::vector<LoraPart> parts;
  Forward(GuardedMemory& m, const std::vector<Adapter>& adapters, int64_t n) {
    for (const Adapter& p : adapters)
      parts.push_back({.a = m.input(p.a, {p.rank, p.in}),
                       .b = m.input(p.b, {p.out, p.rank}),
                       .scale = p.scale,
                       .first = p.first,
                       .z = m.output({n, p.rank})});
  }
  void read(GuardedMemory& m, std::vector<std::vector<float>>& to) const {
    for (const LoraPart& p : parts) to.push_back(m.read(p.z));
  }
};
// z: one an adapter. Sums start at 1 and 2, so that what is overwritten shows.
struct Backward {
  std::vector<LoraPartBackward> parts;
  Backward(GuardedMemory& m, const std::vector<Adapter>& adapters, int64_t n,
           const std::vector<std::vector<float>>& zs) {
    for (size_t i = 0; i < adapters.size(); ++i) {
      const Adapter& p = adapters[i];
      parts.push_back({.a = m.input(p.a, {p.rank, p.in}),
                       .b = m.input(p.b, {p.out, p.rank}),
                       .scale = p.scale,
                       .first = p.first,
                       .z = m.input(zs[i], {n, p.rank}),
                       .da = m.accumulator(std::vector<float>(p.a.size(), 1.0f), {p.rank, p.in}),
                       .db = m.accumulator(std::vector<float>(p.b.size(), 2.0f), {p.out, p.rank})});
    }
  }
  void read(GuardedMemory& m, std::vector<std::vector<float>>& to) const {
    for (const LoraPartBackward& p : parts) {
      to.push_back(m.read(p.da));
      to.push_back(m.read(p.db));
    }
  }
};

// got: dx first, then da and db of each adapter. f(x, w) is the scalar whose gradient they are.
template <typename F>
void check_gradients(const char* name, const Types& t, const std::vector<std::vector<float>>& got,
                     const std::vector<float>& x, const std::vector<float>& dx0, const std::vector<float>& w,
                     const std::vector<Adapter>& adapters, const F& f) {
  const VC merged = with_adapters<Complex>(w, adapters);
  const V dx = complex_step_gradient(to_double(x), [&](const VC& at) { return f(at, merged); });
  EXPECT_TRUE(within("dx", got[0], plus(dx, to_double(dx0)), gradient_limit(t, dx) + 1e-6)) << name << t.name;
  const VC plain = in_type<Complex>(x);
  for (size_t i = 0; i < adapters.size(); ++i) {
    const Adapter& p = adapters[i];
    std::vector<Adapter> others = adapters;
    others.erase(others.begin() + static_cast<std::ptrdiff_t>(i));
    const VC rest = with_adapters<Complex>(w, others);
    const auto loss = [&](const VC& a, const VC& b) {
      return f(plain,
               reference::merged(rest, a, b, static_cast<double>(p.scale), z(p.first), z(p.in), z(p.rank)));
    };
    const VC a = in_type<Complex>(p.a), b = in_type<Complex>(p.b);
    const V da = complex_step_gradient(to_double(p.a), [&](const VC& at) { return loss(at, b); });
    const V db = complex_step_gradient(to_double(p.b), [&](const VC& at) { return loss(a, at); });
    // What the sums started at is rounded with them.
    EXPECT_TRUE(within("da", got[1 + 2 * i], plus(da, V(da.size(), 1.0)), gradient_limit(t, da) + 1e-6))
        << name << t.name << ", adapter " << i;
    EXPECT_TRUE(within("db", got[2 + 2 * i], plus(db, V(db.size(), 2.0)), gradient_limit(t, db) + 1e-6))
        << name << t.name << ", adapter " << i;
  }
}

std::vector<float> statistics(const std::vector<float>& x, int64_t n, int64_t c) {
  std::vector<float> r;
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < c; ++j) sum += std::pow(static_cast<double>(x[z(i * c + j)]), 2);
    r.push_back(static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(c) + kEps)));
  }
  return r;
}

// z of every adapter: scale * input a^T, in f32 whatever the frozen type is.
void check_z(const std::vector<std::vector<float>>& got, size_t at, const V& input, int64_t n,
             const std::vector<Adapter>& adapters) {
  for (size_t i = 0; i < adapters.size(); ++i) {
    const Adapter& p = adapters[i];
    const auto scaled = [&](V v) {
      for (double& y : v) y *= std::abs(static_cast<double>(p.scale));
      return v;
    };
    const V sign = p.scale < 0 ? V{-1.0} : V{1.0};
    V want = scaled(reference::linear(input, to_double(p.a), {}, z(n), z(p.in), z(p.rank)));
    for (double& y : want) y *= sign[0];
    const V terms =
        scaled(reference::linear(absolute(input), absolute(to_double(p.a)), {}, z(n), z(p.in), z(p.rank)));
    EXPECT_TRUE(
        within("z", got[at + i], want, rounding_limits(1.0, 0.0, static_cast<double>(p.in + 10), terms)));
  }
}

// ---- q, k, v

struct QkvCase {
  int64_t n, c, h, k, d;
  std::vector<Adapter> adapters;
};
std::vector<QkvCase> qkv_cases() {
  return {{4, 24, 3, 1, 6, {adapter(8, 24, 18, 0, 2.0f, 21), adapter(8, 24, 6, 24, 2.0f, 23)}},
          {9, 40, 2, 2, 16, {adapter(1, 40, 32, 32, -0.5f, 25)}},
          {3, 33, 3, 1, 8, {adapter(5, 33, 24, 0, 1.0f, 27), adapter(13, 33, 8, 24, 0.25f, 29)}}};
}
struct QkvData {
  std::vector<float> x, gain, w, bias, rstd, inv_freq;
  std::vector<int32_t> positions;
};
QkvData qkv_data(const QkvCase& p, DType weights) {
  const int64_t out = (p.h + 2 * p.k) * p.d;
  QkvData a;
  a.x = random_normal(p.n * p.c, 1, 2.0f);
  a.gain = random_uniform(p.c, 3, 0.5f, 2.0f);
  a.w = rounded_to(weights, random_normal(out * p.c, 2, 1.0f / std::sqrt(static_cast<float>(p.c))));
  a.bias = random_normal(out, 4);
  a.rstd = statistics(a.x, p.n, p.c);
  a.positions = random_ints(p.n, 5, 0, 59);
  for (int64_t i = 0; i < p.d / 2; ++i)
    a.inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(p.d)));
  return a;
}
template <typename T>
reference::Qkv<T> qkv_truth(const QkvCase& p, const QkvData& a, const std::vector<T>& x,
                            const std::vector<T>& w) {
  return reference::qkv(x, in_type<T>(a.gain), w, in_type<T>(a.bias), a.positions, to_double(a.inv_freq),
                        z(p.h), z(p.k), z(p.c), kEps);
}
std::vector<std::vector<float>> qkv_run(Device& d, const QkvCase& p, const QkvData& a, const Types& t) {
  GuardedMemory m(d);
  const int64_t out = (p.h + 2 * p.k) * p.d;
  const auto w = frozen(d, a.w, out, p.c, t.weights);
  const Forward lora(m, p.adapters, p.n);
  QkvForward f{.x = m.input(a.x, {p.n, p.c}),
               .rstd = m.input(a.rstd, {p.n}),
               .gain = m.input(a.gain, {p.c}),
               .w = w.get(),
               .bias = m.input(a.bias, {out}),
               .rotary = m.input(angles_of(a.positions, a.inv_freq), {p.n, p.d}),
               .q = m.output({p.n, p.h, p.d}, t.kept),
               .k = m.output({p.n, p.k, p.d}, t.kept),
               .v = m.output({p.n, p.k, p.d}, t.kept),
               .scratch = {},
               .lora = lora.parts};
  f.scratch = m.scratch(qkv_forward_scratch(d, f));
  qkv_forward(d, f);
  std::vector<std::vector<float>> got{m.read(f.q), m.read(f.k), m.read(f.v)};
  lora.read(m, got);
  return got;
}

TEST_P(LoraOps, QkvForwardMatchesMergedWeights) {
  for (const Types& t : kTypes)
    for (const QkvCase& p : qkv_cases()) {
      const QkvData a = qkv_data(p, t.weights);
      const auto got = run_deterministic([&](Device& d) { return qkv_run(d, p, a, t); });
      const auto want = qkv_truth<double>(p, a, to_double(a.x), with_adapters<double>(a.w, p.adapters));
      QkvData size = a;
      for (float& v : size.bias) v = std::abs(v);
      size.positions.assign(size.positions.size(), 0);
      auto terms =
          qkv_truth<double>(p, size, absolute(to_double(a.x)), to_double(magnitude(a.w, p.adapters)));
      // A rotation mixes both halves of a pair.
      for (V* y : {&terms.q, &terms.k}) {
        const size_t half = z(p.d / 2);
        for (size_t i = 0; i < y->size(); i += 2 * half)
          for (size_t j = i; j < i + half; ++j) (*y)[j] = (*y)[j + half] = (*y)[j] + (*y)[j + half];
      }
      // Two sums one after the other, of C and of R terms.
      const auto limits = [&](const V& y) {
        return rounding_limits(1.0, t.input_unit() + unit_of(t.kept), static_cast<double>(p.c + 13 + 16), y);
      };
      EXPECT_TRUE(within("q", got[0], want.q, limits(terms.q))) << t.name;
      EXPECT_TRUE(within("k", got[1], want.k, limits(terms.k))) << t.name;
      EXPECT_TRUE(within("v", got[2], want.v, limits(terms.v))) << t.name;
      check_z(got, 3, reference::rmsnorm(to_double(a.x), to_double(a.gain), z(p.c), kEps), p.n, p.adapters);
    }
}

TEST_P(LoraOps, QkvBackwardIsTheGradient) {
  for (const Types& t : kTypes) {
    if (t.kept == DType::kF16) continue;  // gradients have the weights' type, and nothing kept is read
    for (const QkvCase& p : qkv_cases()) {
      const QkvData a = qkv_data(p, t.weights);
      const auto kept = qkv_run(device(), p, a, t);
      const int64_t out = (p.h + 2 * p.k) * p.d;
      const auto dy = rounded_to(t.weights, random_normal(p.n * out, 11)), dx0 = random_normal(p.n * p.c, 14);
      const auto got = run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto w = frozen(d, a.w, out, p.c, t.weights);
        const Backward lora(m, p.adapters, p.n, {kept.begin() + 3, kept.end()});
        QkvBackward b{.x = m.input(a.x, {p.n, p.c}),
                      .rstd = m.input(a.rstd, {p.n}),
                      .gain = m.input(a.gain, {p.c}),
                      .w = w.get(),
                      .dy = m.input(dy, {p.n, out}, t.weights),
                      .dx = m.accumulator(dx0, {p.n, p.c}),
                      .scratch = {},
                      .lora = lora.parts};
        b.scratch = m.scratch(qkv_backward_scratch(d, b));
        qkv_backward(d, b);
        std::vector<std::vector<float>> result{m.read(b.dx)};
        lora.read(m, result);
        return result;
      });
      const auto of = reference::apart(to_double(dy), a.positions, to_double(a.inv_freq), z(p.h), z(p.k));
      check_gradients("qkv ", t, got, a.x, dx0, a.w, p.adapters, [&](const VC& x, const VC& w) {
        const auto y = qkv_truth<Complex>(p, a, x, w);
        return dot(y.q, of.q) + dot(y.k, of.k) + dot(y.v, of.v);
      });
    }
  }
}

// ---- gate, up

struct MlpCase {
  int64_t n, c, f;
  std::vector<Adapter> adapters;
};
std::vector<MlpCase> mlp_cases() {
  return {{5, 24, 31, {adapter(4, 24, 31, 0, 2.0f, 31), adapter(4, 24, 31, 31, 2.0f, 33)}},
          {3, 40, 64, {adapter(9, 40, 64, 64, 0.5f, 35)}}};
}
struct MlpData {
  std::vector<float> x, gain, w, rstd;
};
MlpData mlp_data(const MlpCase& p, DType weights) {
  MlpData a;
  a.x = random_normal(p.n * p.c, 1, 2.0f);
  a.gain = random_uniform(p.c, 3, 0.5f, 2.0f);
  a.w = rounded_to(weights, random_normal(2 * p.f * p.c, 2, 1.0f / std::sqrt(static_cast<float>(p.c))));
  a.rstd = statistics(a.x, p.n, p.c);
  return a;
}
std::vector<std::vector<float>> mlp_run(Device& d, const MlpCase& p, const MlpData& a, const Types& t) {
  GuardedMemory m(d);
  const auto w = frozen(d, a.w, 2 * p.f, p.c, t.weights);
  const Forward lora(m, p.adapters, p.n);
  GateUpForward f{.x = m.input(a.x, {p.n, p.c}),
                  .rstd = m.input(a.rstd, {p.n}),
                  .gain = m.input(a.gain, {p.c}),
                  .w = w.get(),
                  .bias = {},
                  .g = m.output({p.n, p.f}, t.kept),
                  .u = m.output({p.n, p.f}, t.kept),
                  .a = m.output({p.n, p.f}, t.weights),
                  .scratch = {},
                  .lora = lora.parts};
  f.scratch = m.scratch(gate_up_forward_scratch(d, f));
  gate_up_forward(d, f);
  std::vector<std::vector<float>> got{m.read(f.a), m.read(f.g), m.read(f.u)};
  // SwiGLU again, from what was kept: what a backward behind it reads.
  const Tensor again = m.output({p.n, p.f}, t.weights);
  swiglu(d, {.g = f.g, .u = f.u, .a = again});
  EXPECT_TRUE(bitwise_equal("SwiGLU again", m.read(again), got[0])) << t.name;
  lora.read(m, got);
  return got;
}

TEST_P(LoraOps, GateUpForwardMatchesMergedWeights) {
  for (const Types& t : kTypes)
    for (const MlpCase& p : mlp_cases()) {
      const MlpData a = mlp_data(p, t.weights);
      const auto got = run_deterministic([&](Device& d) { return mlp_run(d, p, a, t); });
      const auto want = reference::gate_up(to_double(a.x), to_double(a.gain),
                                           with_adapters<double>(a.w, p.adapters), V{}, z(p.c), z(p.f), kEps);
      const auto terms = reference::gate_up(absolute(to_double(a.x)), to_double(a.gain),
                                            to_double(magnitude(a.w, p.adapters)), V{}, z(p.c), z(p.f), kEps);
      const auto limits = [&](const V& y) {
        return rounding_limits(1.0, t.input_unit() + unit_of(t.kept), static_cast<double>(p.c + 9 + 16), y);
      };
      EXPECT_TRUE(within("g", got[1], want.g, limits(terms.g))) << t.name;
      EXPECT_TRUE(within("u", got[2], want.u, limits(terms.u))) << t.name;
      check_z(got, 3, reference::rmsnorm(to_double(a.x), to_double(a.gain), z(p.c), kEps), p.n, p.adapters);
    }
}

TEST_P(LoraOps, GateUpBackwardIsTheGradient) {
  for (const Types& t : kTypes)
    for (const MlpCase& p : mlp_cases()) {
      const MlpData a = mlp_data(p, t.weights);
      const auto kept = mlp_run(device(), p, a, t);
      const auto dy = rounded_to(t.weights, random_normal(2 * p.n * p.f, 11)),
                 dx0 = random_normal(p.n * p.c, 12);
      const auto got = run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto w = frozen(d, a.w, 2 * p.f, p.c, t.weights);
        const Backward lora(m, p.adapters, p.n, {kept.begin() + 3, kept.end()});
        GateUpBackward b{.x = m.input(a.x, {p.n, p.c}),
                         .rstd = m.input(a.rstd, {p.n}),
                         .gain = m.input(a.gain, {p.c}),
                         .w = w.get(),
                         .dy = m.input(dy, {p.n, 2 * p.f}, t.weights),
                         .dx = m.accumulator(dx0, {p.n, p.c}),
                         .scratch = {},
                         .lora = lora.parts};
        b.scratch = m.scratch(gate_up_backward_scratch(d, b));
        gate_up_backward(d, b);
        std::vector<std::vector<float>> result{m.read(b.dx)};
        lora.read(m, result);
        return result;
      });
      check_gradients("gate and up ", t, got, a.x, dx0, a.w, p.adapters, [&](const VC& x, const VC& w) {
        const auto y = reference::gate_up(x, in_type<Complex>(a.gain), w, VC{}, z(p.c), z(p.f), kEps);
        Complex sum = 0;
        for (int64_t i = 0; i < p.n; ++i)
          for (int64_t k = 0; k < p.f; ++k)
            sum += y.g[z(i * p.f + k)] * static_cast<double>(dy[z(2 * i * p.f + k)]) +
                   y.u[z(i * p.f + k)] * static_cast<double>(dy[z((2 * i + 1) * p.f + k)]);
        return sum;
      });
    }
}

// Behind the adapted down projection: the da that project_backward gives, and the same adapters' gradients.
TEST_P(LoraOps, DownBackwardIsProjectBackwardAndSwiglu) {
  for (const Types& t : kTypes) {
    const int64_t n = 9, f = 40, c = 24;
    const Adapter lora = adapter(3, f, c, 0, 0.5f, 43);
    const auto dout = random_normal(n * c, 1), w = rounded_to(t.weights, random_normal(c * f, 2)),
               g = rounded_to(t.kept, random_normal(n * f, 3)),
               u = rounded_to(t.kept, random_normal(n * f, 4)),
               a = rounded_to(t.weights, random_normal(n * f, 5)), saved = random_normal(n * 3, 6);
    const auto got = run_deterministic([&](Device& d) {
      GuardedMemory m(d);
      const auto matrix = frozen(d, w, c, f, t.weights);
      const Backward one(m, {lora}, n, {saved}), other(m, {lora}, n, {saved});
      const ConstTensor out = m.input(dout, {n, c}), input = m.input(a, {n, f}, t.weights);
      DownBackward b{.dout = out,
                     .w = matrix.get(),
                     .g = m.input(g, {n, f}, t.kept),
                     .u = m.input(u, {n, f}, t.kept),
                     .dy = m.output({n, 2 * f}, t.weights),
                     .scratch = {},
                     .dot = m.output({n}),
                     .lora = one.parts,
                     .a = input};
      b.scratch = m.scratch(down_backward_scratch(d, b));
      down_backward(d, b);
      ProjectBackward p{.dout = out,
                        .w = matrix.get(),
                        .da = m.output({n, f}, t.weights),
                        .scratch = {},
                        .lora = other.parts,
                        .a = input};
      p.scratch = m.scratch(project_backward_scratch(d, p));
      project_backward(d, p);
      std::vector<std::vector<float>> all{m.read(b.dy), m.read(p.da)};
      one.read(m, all);
      other.read(m, all);
      return all;
    });
    const V want = reference::swiglu_gradient(to_double(g), to_double(u), to_double(got[1]), z(f));
    // dy's own rounding, and a few units of the sigmoid and its derivative, at most 1 + |g| times the value.
    V terms;
    for (size_t i = 0; i < want.size(); ++i) {
      const size_t at = i / z(2 * f) * z(f) + i % z(f);
      terms.push_back(std::abs(want[i]) + std::abs(static_cast<double>(got[1][at])) *
                                              (std::abs(static_cast<double>(u[at])) + 1) *
                                              (1 + std::abs(static_cast<double>(g[at]))));
    }
    EXPECT_TRUE(within("dy", got[0], want, rounding_limits(1.0, t.unit(), 12.0, terms))) << t.name;
    const size_t grads = (got.size() - 2) / 2;
    for (size_t i = 0; i < grads; ++i)
      EXPECT_TRUE(bitwise_equal("da, db", got[2 + i], got[2 + grads + i])) << t.name;
  }
}

// ---- o, down

struct ProjectCase {
  int64_t n, in, c;
  Adapter adapter;
};
std::vector<ProjectCase> project_cases() {
  return {{5, 33, 24, adapter(8, 33, 24, 0, 2.0f, 41)}, {7, 64, 40, adapter(3, 64, 40, 0, 0.5f, 43)}};
}
std::vector<std::vector<float>> project_run(Device& d, const ProjectCase& p, const std::vector<float>& a,
                                            const std::vector<float>& w, const std::vector<float>& residual,
                                            const Types& t) {
  GuardedMemory m(d);
  const auto matrix = frozen(d, w, p.c, p.in, t.weights);
  const Forward lora(m, {p.adapter}, p.n);
  ProjectForward f{.a = m.input(a, {p.n, p.in}, t.kept),
                   .w = matrix.get(),
                   .bias = {},
                   .residual = m.input(residual, {p.n, p.c}),
                   .out = m.output({p.n, p.c}),
                   .rstd = m.output({p.n}),
                   .eps = static_cast<float>(kEps),
                   .scratch = {},
                   .lora = lora.parts};
  f.scratch = m.scratch(project_forward_scratch(d, f));
  project_forward(d, f);
  std::vector<std::vector<float>> got{m.read(f.out), m.read(f.rstd)};
  lora.read(m, got);
  return got;
}

TEST_P(LoraOps, ProjectForwardMatchesMergedWeights) {
  for (const Types& t : kTypes)
    for (const ProjectCase& p : project_cases()) {
      const auto a = rounded_to(t.kept, random_normal(p.n * p.in, 1)),
                 w = rounded_to(t.weights, random_normal(p.c * p.in, 2)),
                 residual = random_normal(p.n * p.c, 3);
      const auto got = run_deterministic([&](Device& d) { return project_run(d, p, a, w, residual, t); });
      const auto sum = [&](const V& x, const V& m, const V& r) {
        return plus(reference::linear(x, m, V{}, z(p.n), z(p.in), z(p.c)), r);
      };
      const V want = sum(to_double(a), with_adapters<double>(w, {p.adapter}), to_double(residual));
      const V terms =
          sum(absolute(to_double(a)), to_double(magnitude(w, {p.adapter})), absolute(to_double(residual)));
      const double rounding = t.kept == DType::kF16 ? kUnitBF16 : 0.0;
      EXPECT_TRUE(within("out", got[0], want,
                         rounding_limits(1.0, rounding, static_cast<double>(p.in + 8 + 16), terms)))
          << t.name;
      const V rstd = to_double(statistics(got[0], p.n, p.c));
      EXPECT_TRUE(
          within("rstd", got[1], rstd, rounding_limits(1.0, kUnitF32, static_cast<double>(p.c), rstd)))
          << t.name;
      check_z(got, 2, to_double(a), p.n, {p.adapter});
    }
}

TEST_P(LoraOps, ProjectBackwardIsTheGradient) {
  for (const Types& t : kTypes)
    for (const ProjectCase& p : project_cases()) {
      const auto a = rounded_to(t.kept, random_normal(p.n * p.in, 1)),
                 w = rounded_to(t.weights, random_normal(p.c * p.in, 2)),
                 residual = random_normal(p.n * p.c, 3), dout = random_normal(p.n * p.c, 4);
      const auto kept = project_run(device(), p, a, w, residual, t);
      const auto got = run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, p.c, p.in, t.weights);
        const Backward lora(m, {p.adapter}, p.n, {kept.begin() + 2, kept.end()});
        ProjectBackward b{.dout = m.input(dout, {p.n, p.c}),
                          .w = matrix.get(),
                          .da = m.output({p.n, p.in}, t.weights),
                          .scratch = {},
                          .lora = lora.parts,
                          .a = m.input(a, {p.n, p.in}, t.kept)};
        b.scratch = m.scratch(project_backward_scratch(d, b));
        project_backward(d, b);
        std::vector<std::vector<float>> result{m.read(b.da)};
        lora.read(m, result);
        return result;
      });
      check_gradients("project ", t, got, a, std::vector<float>(a.size(), 0.0f), w, {p.adapter},
                      [&](const VC& x, const VC& m) {
                        return dot(reference::linear(x, m, VC{}, z(p.n), z(p.in), z(p.c)), to_double(dout));
                      });
    }
}

// ---- what all of them promise

// More rows than a block, and one row alone: the same bits.
TEST_P(LoraOps, ARowDoesNotDependOnItsNeighbours) {
  for (const Types& t : kTypes) {
    const QkvCase p{1100, 24, 3, 1, 6, {adapter(8, 24, 18, 0, 2.0f, 21), adapter(5, 24, 6, 24, 2.0f, 23)}};
    const QkvData all = qkv_data(p, t.weights);
    const auto whole = qkv_run(device(), p, all, t);
    for (const int64_t row : {int64_t{0}, int64_t{600}, p.n - 1}) {
      QkvCase one = p;
      one.n = 1;
      QkvData a = all;
      a.x.assign(all.x.begin() + row * p.c, all.x.begin() + (row + 1) * p.c);
      a.rstd = {all.rstd[z(row)]};
      a.positions = {all.positions[z(row)]};
      const auto alone = qkv_run(device(), one, a, t);
      for (size_t i = 0; i < alone.size(); ++i) {
        const auto size = static_cast<int64_t>(alone[i].size());
        EXPECT_TRUE(bitwise_equal(
            "row", alone[i],
            std::vector<float>(whole[i].begin() + row * size, whole[i].begin() + (row + 1) * size)))
            << t.name << ", row " << row << ", output " << i;
      }
    }
  }
}

// Gradients over more rows than a block are the sum of the gradients of its halves.
TEST_P(LoraOps, GradientsOverManyRowsAreSums) {
  const Types t = kTypes[0];
  // 1301 rows of rank 6: an odd number of pairs, so that no vector of four takes the last.
  const ProjectCase p{1301, 40, 24, adapter(6, 40, 24, 0, 0.5f, 51)};
  const auto a = random_normal(p.n * p.in, 1), w = random_normal(p.c * p.in, 2),
             dout = random_normal(p.n * p.c, 4);
  const auto zs = project_run(device(), p, a, w, random_normal(p.n * p.c, 3), t)[2];
  GuardedMemory m(device());
  const auto matrix = frozen(device(), w, p.c, p.in, t.weights);
  const Backward lora(m, {p.adapter}, p.n, {zs});
  ProjectBackward b{.dout = m.input(dout, {p.n, p.c}),
                    .w = matrix.get(),
                    .da = m.output({p.n, p.in}),
                    .scratch = {},
                    .lora = lora.parts,
                    .a = m.input(a, {p.n, p.in})};
  b.scratch = m.scratch(project_backward_scratch(device(), b));
  project_backward(device(), b);
  V da(p.adapter.a.size(), 1.0), db(p.adapter.b.size(), 2.0), da_terms = da, db_terms = db;
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t r = 0; r < 6; ++r) {
      double dz = 0, dz_terms = 0;
      for (int64_t o = 0; o < p.c; ++o) {
        const double d = dout[z(i * p.c + o)], zi = zs[z(i * 6 + r)], bo = p.adapter.b[z(o * 6 + r)];
        dz += 0.5 * d * bo;
        dz_terms += std::abs(0.5 * d * bo);
        db[z(o * 6 + r)] += d * zi;
        db_terms[z(o * 6 + r)] += std::abs(d * zi);
      }
      for (int64_t j = 0; j < p.in; ++j) {
        da[z(r * p.in + j)] += dz * static_cast<double>(a[z(i * p.in + j)]);
        da_terms[z(r * p.in + j)] += dz_terms * std::abs(static_cast<double>(a[z(i * p.in + j)]));
      }
    }
  EXPECT_TRUE(within("da", m.read(lora.parts[0].da), da,
                     rounding_limits(1.0, 0.0, static_cast<double>(p.n + p.c), da_terms)));
  EXPECT_TRUE(within("db", m.read(lora.parts[0].db), db,
                     rounding_limits(1.0, 0.0, static_cast<double>(p.n), db_terms)));
}

// x with what dropout leaves out at zero and the rest divided by its share.
std::vector<float> dropped(std::vector<float> x, int64_t width, float dropout, uint64_t key) {
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) / width, column = static_cast<int64_t>(i) % width;
    x[i] =
        kept_by_dropout(key, dropout_bound(dropout), row, column) ? x[i] * (1.0f / (1.0f - dropout)) : 0.0f;
  }
  return x;
}

// The adapter reads the masked input, forward and backward, and only it does: z and da have the bits of a
// call whose input is masked beforehand, dx those of the plain gradient with the adapter's share masked. 1300
// rows: more than a block; widths with and without whole draws of four.
TEST_P(LoraOps, DropoutMasksTheAdaptersInput) {
  const Types t = kTypes[0];
  for (const auto& [n, in] : {std::pair<int64_t, int64_t>{5, 7}, {3, 30}, {33, 40}, {1300, 24}}) {
    const int64_t c = 12;
    const float dropout = 0.3f;
    const Adapter p = adapter(4, in, c, 0, 1.5f, 51);
    const auto x = random_normal(n * in, 1), w = random_normal(c * in, 2), residual = random_normal(n * c, 3),
               dout = random_normal(n * c, 4), masked = dropped(x, in, dropout, 77);
    int64_t kept = 0;
    for (size_t i = 0; i < x.size(); ++i) kept += masked[i] != 0.0f;
    // A share of 0.7 of n * in draws, within five deviations.
    const double draws = static_cast<double>(x.size());
    EXPECT_NEAR(static_cast<double>(kept), 0.7 * draws, 5 * std::sqrt(0.21 * draws));
    const auto forward = [&, n = n, in = in](const std::vector<float>& input, float share) {
      return run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, c, in, t.weights);
        Forward lora(m, {p}, n);
        lora.parts[0].dropout = share;
        lora.parts[0].key = 77;
        ProjectForward f{.a = m.input(input, {n, in}),
                         .w = matrix.get(),
                         .bias = {},
                         .residual = m.input(residual, {n, c}),
                         .out = m.output({n, c}),
                         .rstd = {},
                         .scratch = {},
                         .lora = lora.parts};
        f.scratch = m.scratch(project_forward_scratch(d, f));
        project_forward(d, f);
        std::vector<std::vector<float>> all{m.read(f.out)};
        lora.read(m, all);
        return all;
      });
    };
    const auto got = forward(x, dropout), beforehand = forward(masked, 0.0f);
    EXPECT_TRUE(bitwise_equal("z", got[1], beforehand[1]));
    const V product = reference::linear(to_double(x), to_double(w), V{}, z(n), z(in), z(c)),
            low = reference::linear(to_double(got[1]), to_double(p.b), V{}, z(n), 4, z(c));
    EXPECT_TRUE(within(
        "out", got[0], plus(plus(product, low), to_double(residual)),
        rounding_limits(
            2.0, 0.0, static_cast<double>(in + 8),
            plus(reference::linear(absolute(to_double(x)), absolute(to_double(w)), V{}, z(n), z(in), z(c)),
                 plus(absolute(to_double(residual)),
                      reference::linear(absolute(to_double(got[1])), absolute(to_double(p.b)), V{}, z(n), 4,
                                        z(c)))))));
    const auto backward = [&, n = n, in = in](const std::vector<float>& input, float share) {
      return run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, c, in, t.weights);
        Backward lora(m, {p}, n, {got[1]});
        lora.parts[0].dropout = share;
        lora.parts[0].key = 77;
        ProjectBackward b{.dout = m.input(dout, {n, c}),
                          .w = matrix.get(),
                          .da = m.output({n, in}),
                          .scratch = {},
                          .lora = lora.parts,
                          .a = m.input(input, {n, in})};
        b.scratch = m.scratch(project_backward_scratch(d, b));
        project_backward(d, b);
        std::vector<std::vector<float>> all{m.read(b.da)};
        lora.read(m, all);
        return all;
      });
    };
    const auto gradient = backward(x, dropout), plain = backward(masked, 0.0f);
    EXPECT_TRUE(bitwise_equal("da", gradient[1], plain[1]));
    EXPECT_TRUE(bitwise_equal("db", gradient[2], plain[2]));
    // dx = dout w + m / (1 - dropout) * (scale * dout B) A
    V want, terms;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < in; ++j) {
        double sum = 0, size = 0;
        for (int64_t o = 0; o < c; ++o) {
          double share = 0, share_size = 0;
          for (int64_t r = 0; r < 4; ++r) {
            const double term =
                static_cast<double>(p.b[z(o * 4 + r)]) * static_cast<double>(p.a[z(r * in + j)]);
            share += term;
            share_size += std::abs(term);
          }
          const double factor = kept_by_dropout(77, dropout_bound(dropout), i, j) ? 1.5 / (1.0 - 0.3) : 0.0;
          const double g = dout[z(i * c + o)], at = w[z(o * in + j)];
          sum += g * (at + factor * share);
          size += std::abs(g) * (std::abs(at) + factor * share_size);
        }
        want.push_back(sum);
        terms.push_back(size);
      }
    // 0.3 in f32 is off by 2^-26 of 1: less than a unit of the factor.
    EXPECT_TRUE(
        within("dx", gradient[0], want, rounding_limits(2.0, 0.0, static_cast<double>(c + 8), terms)));
  }
}

// The same behind a norm, where the input is made again: z of two parts, which draw by keys of their own.
TEST_P(LoraOps, DropoutBehindANorm) {
  const QkvCase p = qkv_cases()[0];
  for (const Types& t : kTypes) {
    const QkvData a = qkv_data(p, t.weights);
    const auto got = run_deterministic([&](Device& d) {
      GuardedMemory m(d);
      const int64_t out = (p.h + 2 * p.k) * p.d;
      const auto matrix = frozen(d, a.w, out, p.c, t.weights);
      Forward lora(m, p.adapters, p.n);
      for (size_t i = 0; i < lora.parts.size(); ++i) {
        lora.parts[i].dropout = 0.5f;
        lora.parts[i].key = 5 + i;
      }
      QkvForward f{.x = m.input(a.x, {p.n, p.c}),
                   .rstd = m.input(a.rstd, {p.n}),
                   .gain = m.input(a.gain, {p.c}),
                   .w = matrix.get(),
                   .bias = m.input(a.bias, {out}),
                   .rotary = m.input(angles_of(a.positions, a.inv_freq), {p.n, p.d}),
                   .q = m.output({p.n, p.h, p.d}, t.kept),
                   .k = m.output({p.n, p.k, p.d}, t.kept),
                   .v = m.output({p.n, p.k, p.d}, t.kept),
                   .scratch = {},
                   .lora = lora.parts};
      f.scratch = m.scratch(qkv_forward_scratch(d, f));
      qkv_forward(d, f);
      std::vector<std::vector<float>> all;
      lora.read(m, all);
      return all;
    });
    const V normed = reference::rmsnorm(to_double(a.x), to_double(a.gain), z(p.c), kEps);
    for (size_t i = 0; i < p.adapters.size(); ++i) {
      V input = normed;
      for (size_t j = 0; j < input.size(); ++j)
        input[j] *= kept_by_dropout(5 + i, dropout_bound(0.5f), static_cast<int64_t>(j) / p.c,
                                    static_cast<int64_t>(j) % p.c)
                        ? 2.0
                        : 0.0;
      check_z({got[i]}, 0, input, p.n, {p.adapters[i]});
    }
  }
}

TEST_P(LoraOps, WrongShapesThrow) {
  GuardedMemory m(device());
  const auto matrix = frozen(device(), random_normal(24 * 33, 1), 24, 33, DType::kF32);
  const auto call = [&](Shape a, Shape b, Shape zs, int64_t first) {
    const std::vector<LoraPart> parts{
        {.a = m.output(a), .b = m.output(b), .scale = 1.0f, .first = first, .z = m.output(zs)}};
    ProjectForward f{.a = m.output({5, 33}),
                     .w = matrix.get(),
                     .bias = {},
                     .residual = m.output({5, 24}),
                     .out = m.output({5, 24}),
                     .rstd = {},
                     .scratch = {},
                     .lora = parts};
    f.scratch = m.scratch(1 << 20);
    project_forward(device(), f);
  };
  EXPECT_NO_THROW(call({4, 33}, {20, 4}, {5, 4}, 4));
  EXPECT_THROW(call({4, 33}, {20, 4}, {5, 4}, 5), Error);   // outputs beyond the product's
  EXPECT_THROW(call({4, 32}, {20, 4}, {5, 4}, 0), Error);   // another input width
  EXPECT_THROW(call({4, 33}, {20, 3}, {5, 4}, 0), Error);   // two ranks
  EXPECT_THROW(call({4, 33}, {20, 4}, {5, 3}, 0), Error);   // z of another rank
  EXPECT_THROW(call({4, 33}, {20, 4}, {4, 4}, 0), Error);   // z of other rows
  EXPECT_THROW(call({4, 33}, {20, 4}, {5, 4}, -1), Error);  // before the first output
}

TEST_P(LoraOps, Counts) {
  GuardedMemory m(device());
  const auto matrix = frozen(device(), random_normal(3 * 4, 1), 3, 4, DType::kF32);
  const Tensor a = m.output({2, 4}), b = m.output({3, 2}), zs = m.output({5, 2});
  const std::vector<LoraPart> forward{{.a = a, .b = b, .scale = 1, .first = 0, .z = zs}};
  const std::vector<LoraPartBackward> backward{
      {.a = a, .b = b, .scale = 1, .first = 0, .z = zs, .da = a, .db = b}};
  const Tensor x = m.output({5, 4}), y = m.output({5, 3});
  const ProjectForward f{.a = x,
                         .w = matrix.get(),
                         .bias = {},
                         .residual = y,
                         .out = y,
                         .rstd = {},
                         .scratch = {},
                         .lora = forward};
  EXPECT_EQ(project_forward_flops(f), 2 * 5 * (12 + 8 + 6));
  EXPECT_EQ(project_forward_bytes(f), (20 + 12 + 2 * 15 + 8 + 6 + 10) * 4);
  const ProjectBackward g{.dout = y, .w = matrix.get(), .da = x, .scratch = {}, .lora = backward, .a = x};
  EXPECT_EQ(project_backward_flops(g), 2 * 5 * (12 + 2 * (8 + 6)));
  EXPECT_EQ(project_backward_bytes(g), (15 + 12 + 2 * 20 + 3 * (8 + 6) + 10) * 4);
  EXPECT_EQ(swiglu_bytes({.g = x, .u = x, .a = x}), 3 * 20 * 4);
}

}  // namespace
}  // namespace gantrain
