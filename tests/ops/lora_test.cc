// Adapters on the products of the frozen model, held against the same products with merged weights.
#include "core/ops/lora.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <type_traits>

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

struct Adapter;
class LoraOps : public OpsTest {
 protected:
  // A backward behind a norm, entry by entry.
  template <typename Backward>
  void wide_norm_backward(int64_t (*scratch)(Device&, const Backward&), void (*op)(Device&, const Backward&),
                          int64_t n, int64_t c, int64_t out, const std::vector<Adapter>& adapters);
};
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
struct AdapterGradients {
  std::vector<LoraPartBackward> parts;
  AdapterGradients(GuardedMemory& m, const std::vector<Adapter>& adapters, int64_t n,
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

// Beside bf16 weights a device may round what adapters' products read (core/ops/lora.h); the CPU does not.
double adapter_unit(const Device& d, const Types& t) {
  return t.weights == DType::kBF16 && d.kind() != DeviceKind::kCpu ? kUnitBF16 : 0.0;
}
// The adapters alone, of a matrix of zeros.
std::vector<float> adapters_magnitude(size_t size, const std::vector<Adapter>& adapters) {
  return magnitude(std::vector<float>(size, 0.0f), adapters);
}
std::vector<double> times(double factor, std::vector<double> v) {
  for (double& x : v) x *= factor;
  return v;
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

// z of every adapter: scale * input a^T, input and a each rounded with `unit`.
void check_z(const std::vector<std::vector<float>>& got, size_t at, const V& input, int64_t n,
             const std::vector<Adapter>& adapters, double unit) {
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
    EXPECT_TRUE(within("z", got[at + i], want,
                       rounding_limits(1.0, 2 * unit, static_cast<double>(p.in + 10), terms)));
    EXPECT_TRUE(unbiased("z", got[at + i], want, unit));
  }
}

// ---- q, k, v

struct QkvCase {
  int64_t n, c, h, k, d;
  std::vector<Adapter> adapters;
  bool bias = true;
  bool handed = false;  // the stream times the gain comes rounded, as the op before hands it over
};
std::vector<QkvCase> qkv_cases() {
  return {{4, 24, 3, 1, 6, {adapter(8, 24, 18, 0, 2.0f, 21), adapter(8, 24, 6, 24, 2.0f, 23)}},
          {9, 40, 2, 2, 16, {adapter(1, 40, 32, 32, -0.5f, 25)}},
          {3, 33, 3, 1, 8, {adapter(5, 33, 24, 0, 1.0f, 27), adapter(13, 33, 8, 24, 0.25f, 29)}}};
}
// Ranks that fill no piece of any kernel, q, v and k in turn; more rows than a block sums, and one.
std::vector<QkvCase> wide_qkv_cases() {
  const auto of = [](int64_t rank, int64_t out, int64_t first, uint64_t seed) {
    return adapter(rank, 72, out, first, 0.5f, seed);
  };
  return {{67, 72, 4, 2, 16, {of(33, 64, 0, 61), of(1, 32, 96, 63), of(16, 32, 64, 65)}, false, true},
          {261, 72, 4, 2, 16, {of(8, 64, 0, 67), of(8, 32, 96, 69)}, false, false},
          {37, 72, 4, 2, 16, {of(16, 32, 64, 71)}, true, true},
          {1, 72, 4, 2, 16, {of(8, 64, 0, 73), of(40, 32, 64, 75), of(1, 32, 96, 77)}, true, false}};
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
  if (p.bias) a.bias = random_normal(out, 4);
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
// x times the gain, rounded once.
std::vector<float> handed_over(const std::vector<float>& x, const std::vector<float>& gain) {
  std::vector<float> y = x;
  for (size_t i = 0; i < y.size(); ++i) y[i] *= gain[i % gain.size()];
  return rounded_to(DType::kBF16, y);
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
               .bias = p.bias ? m.input(a.bias, {out}) : ConstTensor{},
               .rotary = m.input(angles_of(a.positions, a.inv_freq), {p.n, p.d}),
               .q = m.output({p.n, p.h, p.d}, t.kept),
               .k = m.output({p.n, p.k, p.d}, t.kept),
               .v = m.output({p.n, p.k, p.d}, t.kept),
               .scratch = {},
               .x_bf16 = p.handed && t.weights == DType::kBF16
                             ? m.input(handed_over(a.x, a.gain), {p.n, p.c}, DType::kBF16)
                             : ConstTensor{},
               .lora = lora.parts};
  f.scratch = m.scratch(qkv_forward_scratch(d, f));
  qkv_forward(d, f);
  std::vector<std::vector<float>> got{m.read(f.q), m.read(f.k), m.read(f.v)};
  lora.read(m, got);
  return got;
}

TEST_P(LoraOps, QkvForwardMatchesMergedWeights) {
  std::vector<QkvCase> cases = qkv_cases();
  for (const QkvCase& p : wide_qkv_cases()) cases.push_back(p);
  for (const Types& t : kTypes)
    for (const QkvCase& p : cases) {
      const QkvData a = qkv_data(p, t.weights);
      const auto got = run_deterministic([&](Device& d) { return qkv_run(d, p, a, t); });
      const auto want = qkv_truth<double>(p, a, to_double(a.x), with_adapters<double>(a.w, p.adapters));
      QkvData size = a;
      for (float& v : size.bias) v = std::abs(v);
      size.positions.assign(size.positions.size(), 0);
      const auto sizes = [&](const std::vector<float>& w) {
        auto y = qkv_truth<double>(p, size, absolute(to_double(a.x)), to_double(w));
        // A rotation mixes both halves of a pair.
        for (V* of : {&y.q, &y.k}) {
          const size_t half = z(p.d / 2);
          for (size_t i = 0; i < of->size(); i += 2 * half)
            for (size_t j = i; j < i + half; ++j) (*of)[j] = (*of)[j + half] = (*of)[j] + (*of)[j + half];
        }
        return y;
      };
      const auto terms = sizes(magnitude(a.w, p.adapters));
      size.bias.assign(size.bias.size(), 0.0f);
      const auto low = sizes(adapters_magnitude(a.w.size(), p.adapters));
      // Two sums one after the other, of C and of R terms; of the adapters' a, z and b are rounded besides.
      const double unit = 3 * adapter_unit(device(), t);
      const auto limits = [&](const V& y, const V& of_adapters) {
        return plus(
            rounding_limits(1.0, t.input_unit() + unit_of(t.kept), static_cast<double>(p.c + 99 + 16), y),
            times(unit, of_adapters));
      };
      EXPECT_TRUE(within("q", got[0], want.q, limits(terms.q, low.q))) << t.name;
      EXPECT_TRUE(within("k", got[1], want.k, limits(terms.k, low.k))) << t.name;
      EXPECT_TRUE(within("v", got[2], want.v, limits(terms.v, low.v))) << t.name;
      check_z(got, 3, reference::rmsnorm(to_double(a.x), to_double(a.gain), z(p.c), kEps), p.n, p.adapters,
              adapter_unit(device(), t));
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
        const AdapterGradients lora(m, p.adapters, p.n, {kept.begin() + 3, kept.end()});
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
  bool handed = false;  // as in QkvCase
};
std::vector<MlpCase> mlp_cases() {
  return {{5, 24, 31, {adapter(4, 24, 31, 0, 2.0f, 31), adapter(4, 24, 31, 31, 2.0f, 33)}},
          {3, 40, 64, {adapter(9, 40, 64, 64, 0.5f, 35)}}};
}
std::vector<MlpCase> wide_mlp_cases() {
  return {{67, 72, 104, {adapter(33, 72, 104, 0, 0.5f, 81), adapter(16, 72, 104, 104, 0.5f, 83)}, true},
          {261, 72, 40, {adapter(1, 72, 40, 40, 2.0f, 85)}},
          {1, 72, 40, {adapter(8, 72, 40, 0, 0.5f, 87), adapter(8, 72, 40, 40, 0.5f, 89)}, true}};
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
                  .x_bf16 = p.handed && t.weights == DType::kBF16
                                ? m.input(handed_over(a.x, a.gain), {p.n, p.c}, DType::kBF16)
                                : ConstTensor{},
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
  std::vector<MlpCase> cases = mlp_cases();
  for (const MlpCase& p : wide_mlp_cases()) cases.push_back(p);
  for (const Types& t : kTypes)
    for (const MlpCase& p : cases) {
      const MlpData a = mlp_data(p, t.weights);
      const auto got = run_deterministic([&](Device& d) { return mlp_run(d, p, a, t); });
      const auto want = reference::gate_up(to_double(a.x), to_double(a.gain),
                                           with_adapters<double>(a.w, p.adapters), V{}, z(p.c), z(p.f), kEps);
      const auto sizes = [&](const std::vector<float>& w) {
        return reference::gate_up(absolute(to_double(a.x)), to_double(a.gain), to_double(w), V{}, z(p.c),
                                  z(p.f), kEps);
      };
      const auto terms = sizes(magnitude(a.w, p.adapters)),
                 low = sizes(adapters_magnitude(a.w.size(), p.adapters));
      const double unit = 3 * adapter_unit(device(), t);
      const auto limits = [&](const V& y, const V& of_adapters) {
        return plus(
            rounding_limits(1.0, t.input_unit() + unit_of(t.kept), static_cast<double>(p.c + 33 + 16), y),
            times(unit, of_adapters));
      };
      EXPECT_TRUE(within("g", got[1], want.g, limits(terms.g, low.g))) << t.name;
      EXPECT_TRUE(within("u", got[2], want.u, limits(terms.u, low.u))) << t.name;
      check_z(got, 3, reference::rmsnorm(to_double(a.x), to_double(a.gain), z(p.c), kEps), p.n, p.adapters,
              adapter_unit(device(), t));
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
        const AdapterGradients lora(m, p.adapters, p.n, {kept.begin() + 3, kept.end()});
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
      const AdapterGradients one(m, {lora}, n, {saved}), other(m, {lora}, n, {saved});
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
    // Where da never leaves its kernel it is not rounded, as project_backward's is.
    const double unit = t.unit() + adapter_unit(device(), t);
    EXPECT_TRUE(within("dy", got[0], want, rounding_limits(1.0, unit, 12.0, terms))) << t.name;
    const size_t grads = (got.size() - 2) / 2;
    for (size_t i = 0; i < grads; ++i)
      EXPECT_TRUE(bitwise_equal("da, db", got[2 + i], got[2 + grads + i])) << t.name;
  }
}

// ---- o, down

struct ProjectCase {
  int64_t n, in, c;
  Adapter adapter;
  bool bias = false;
};
std::vector<float> project_bias(const ProjectCase& p) {
  return p.bias ? random_normal(p.c, 7) : std::vector<float>(z(p.c), 0.0f);
}
std::vector<ProjectCase> project_cases() {
  return {{5, 33, 24, adapter(8, 33, 24, 0, 2.0f, 41)}, {7, 64, 40, adapter(3, 64, 40, 0, 0.5f, 43)}};
}
// The second: sums over several splits of columns, of which the first and the last tiles have no adapter.
std::vector<ProjectCase> wide_project_cases() {
  return {{67, 104, 72, adapter(33, 104, 72, 0, 0.5f, 91), true},
          {300, 264, 712, adapter(9, 264, 456, 120, 0.5f, 97)},
          {261, 40, 72, adapter(16, 40, 72, 0, 0.5f, 93)},
          {1, 40, 72, adapter(1, 40, 64, 8, 0.5f, 95), true}};
}
std::vector<float> project_gain(const ProjectCase& p) { return random_uniform(p.c, 8, 0.5f, 2.0f); }
std::vector<std::vector<float>> project_run(Device& d, const ProjectCase& p, const std::vector<float>& a,
                                            const std::vector<float>& w, const std::vector<float>& residual,
                                            const Types& t) {
  GuardedMemory m(d);
  const auto matrix = frozen(d, w, p.c, p.in, t.weights);
  const Forward lora(m, {p.adapter}, p.n);
  ProjectForward f{.a = m.input(a, {p.n, p.in}, t.kept),
                   .w = matrix.get(),
                   .bias = p.bias ? m.input(project_bias(p), {p.c}) : ConstTensor{},
                   .residual = m.input(residual, {p.n, p.c}),
                   .out = m.output({p.n, p.c}),
                   .rstd = m.output({p.n}),
                   .eps = static_cast<float>(kEps),
                   .scratch = {},
                   .out_bf16 = t.weights == DType::kBF16 ? m.output({p.n, p.c}, DType::kBF16) : Tensor{},
                   .out_gain = t.weights == DType::kBF16 ? m.input(project_gain(p), {p.c}) : ConstTensor{},
                   .lora = lora.parts};
  f.scratch = m.scratch(project_forward_scratch(d, f));
  project_forward(d, f);
  std::vector<std::vector<float>> got{m.read(f.out), m.read(f.rstd)};
  if (!f.out_bf16.empty()) {
    EXPECT_TRUE(bitwise_equal("out * gain", m.read(f.out_bf16), handed_over(got[0], project_gain(p))));
  }
  lora.read(m, got);
  return got;
}

TEST_P(LoraOps, ProjectForwardMatchesMergedWeights) {
  std::vector<ProjectCase> cases = project_cases();
  for (const ProjectCase& p : wide_project_cases()) cases.push_back(p);
  for (const Types& t : kTypes)
    for (const ProjectCase& p : cases) {
      const auto a = rounded_to(t.kept, random_normal(p.n * p.in, 1)),
                 w = rounded_to(t.weights, random_normal(p.c * p.in, 2)),
                 residual = random_normal(p.n * p.c, 3);
      const auto got = run_deterministic([&](Device& d) { return project_run(d, p, a, w, residual, t); });
      const auto sum = [&](const V& x, const V& m, const V& bias, const V& r) {
        return plus(reference::linear(x, m, bias, z(p.n), z(p.in), z(p.c)), r);
      };
      const V bias = to_double(project_bias(p));
      const V want = sum(to_double(a), with_adapters<double>(w, {p.adapter}), bias, to_double(residual));
      const V terms = sum(absolute(to_double(a)), to_double(magnitude(w, {p.adapter})), absolute(bias),
                          absolute(to_double(residual)));
      const V low = sum(absolute(to_double(a)), to_double(adapters_magnitude(w.size(), {p.adapter})), V{},
                        V(want.size(), 0.0));
      const double rounding = t.kept == DType::kF16 ? kUnitBF16 : 0.0;
      EXPECT_TRUE(within("out", got[0], want,
                         plus(rounding_limits(1.0, rounding, static_cast<double>(p.in + 33 + 16), terms),
                              times(3 * adapter_unit(device(), t), low))))
          << t.name;
      if (t.kept != DType::kF16) {  // which is rounded on its way in besides
        const V base = sum(to_double(a), to_double(w), bias, to_double(residual));
        std::vector<float> part;
        V part_want;
        for (size_t i = 0; i < base.size(); ++i) {
          part.push_back(static_cast<float>(static_cast<double>(got[0][i]) - base[i]));
          part_want.push_back(want[i] - base[i]);
        }
        EXPECT_TRUE(unbiased("the adapter's part", part, part_want, adapter_unit(device(), t))) << t.name;
      }
      const V rstd = to_double(statistics(got[0], p.n, p.c));
      EXPECT_TRUE(
          within("rstd", got[1], rstd, rounding_limits(1.0, kUnitF32, static_cast<double>(p.c), rstd)))
          << t.name;
      check_z(got, 2, to_double(a), p.n, {p.adapter}, adapter_unit(device(), t));
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
        const AdapterGradients lora(m, {p.adapter}, p.n, {kept.begin() + 2, kept.end()});
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

// ---- gradients of wide products, entry by entry

// What a backward of y = x (w + scale b a)^T gives in f64, from x (n, in) and dy (n, out); and what it may be
// off by: sums in f32, and a, b, dz, z and x each rounded with `unit`.
struct Gradients {
  V dx, dx_limit;                             // dy (w + scale b a)
  std::vector<V> da, db, da_limit, db_limit;  // of each adapter, on top of 1 and 2
};
Gradients wide_gradients(const V& x, const V& dy, const std::vector<float>& w,
                         const std::vector<Adapter>& adapters, const std::vector<std::vector<float>>& zs,
                         int64_t n, double unit) {
  const size_t in = z(adapters[0].in), out = w.size() / in;
  Gradients g;
  const V merged = with_adapters<double>(w, adapters), all = to_double(magnitude(w, adapters)),
          low = to_double(adapters_magnitude(w.size(), adapters));
  const double sums = kUnitF32 * static_cast<double>(out + 120);
  for (size_t i = 0; i < z(n); ++i)
    for (size_t j = 0; j < in; ++j) {
      double sum = 0, limit = 0;
      for (size_t o = 0; o < out; ++o) {
        const double d = dy[i * out + o];
        sum += d * merged[o * in + j];
        limit += std::abs(d) * (sums * all[o * in + j] + 3 * unit * low[o * in + j]);
      }
      g.dx.push_back(sum);
      g.dx_limit.push_back(limit);
    }
  for (size_t k = 0; k < adapters.size(); ++k) {
    const Adapter& p = adapters[k];
    const size_t r = z(p.rank), outputs = z(p.out);
    V da(r * in, 1.0), db(outputs * r, 2.0), da_terms = da, db_terms = db;
    for (size_t i = 0; i < z(n); ++i)
      for (size_t q = 0; q < r; ++q) {
        double dz = 0, dz_terms = 0;
        for (size_t o = 0; o < outputs; ++o) {
          const double d = dy[i * out + z(p.first) + o], zi = zs[k][i * r + q];
          const double term = static_cast<double>(p.scale) * d * static_cast<double>(p.b[o * r + q]);
          dz += term;
          dz_terms += std::abs(term);
          db[o * r + q] += d * zi;
          db_terms[o * r + q] += std::abs(d * zi);
        }
        for (size_t j = 0; j < in; ++j) {
          da[q * in + j] += dz * x[i * in + j];
          da_terms[q * in + j] += dz_terms * std::abs(x[i * in + j]);
        }
      }
    const double rows = static_cast<double>(n) + 20;
    g.da.push_back(da);
    g.db.push_back(db);
    // Once more where two roundings multiply.
    g.da_limit.push_back(rounding_limits(1.01, 3 * unit, rows + static_cast<double>(out), da_terms));
    g.db_limit.push_back(rounding_limits(1.01, unit, rows, db_terms));
  }
  return g;
}
void check_adapters(const Gradients& g, const std::vector<std::vector<float>>& got, size_t at, double unit) {
  const auto drift = [&](const char* what, std::vector<float> sum, V want, double start) {
    for (float& v : sum) v -= static_cast<float>(start);
    for (double& v : want) v -= start;
    EXPECT_TRUE(unbiased(what, sum, want, unit));
  };
  for (size_t k = 0; k < g.da.size(); ++k) {
    drift("da", got[at + 2 * k], g.da[k], 1.0);
    drift("db", got[at + 2 * k + 1], g.db[k], 2.0);
    EXPECT_TRUE(within("da", got[at + 2 * k], g.da[k], g.da_limit[k])) << "adapter " << k;
    EXPECT_TRUE(within("db", got[at + 2 * k + 1], g.db[k], g.db_limit[k])) << "adapter " << k;
  }
}
std::vector<std::vector<float>> random_zs(const std::vector<Adapter>& adapters, int64_t n) {
  std::vector<std::vector<float>> zs;
  for (const Adapter& p : adapters)
    zs.push_back(random_normal(n * p.rank, 100 + static_cast<uint64_t>(p.first)));
  return zs;
}
// Behind a norm: dx += rstd (d - xhat mean(d xhat)) with d = gain * g.dx, and its limit.
void check_norm(const Gradients& g, const std::vector<float>& got, const std::vector<float>& x,
                const std::vector<float>& gain, const std::vector<float>& rstd, const std::vector<float>& dx0,
                const std::string& what) {
  const size_t n = rstd.size(), c = gain.size();
  V want, limits;
  for (size_t i = 0; i < n; ++i) {
    const double r = rstd[i];
    double dot = 0, off = 0;
    for (size_t j = 0; j < c; ++j) {
      const double xhat = x[i * c + j] * r, gj = gain[j];
      dot += gj * g.dx[i * c + j] * xhat;
      off += gj * (g.dx_limit[i * c + j] + 12 * kUnitF32 * std::abs(g.dx[i * c + j])) * std::abs(xhat);
    }
    const double mean = 1 / static_cast<double>(c);
    for (size_t j = 0; j < c; ++j) {
      const size_t at = i * c + j;
      const double xhat = x[at] * r, gj = gain[j];
      want.push_back(dx0[at] + r * (gj * g.dx[at] - xhat * mean * dot));
      limits.push_back(r * (gj * g.dx_limit[at] + std::abs(xhat) * mean * off) +
                       12 * kUnitF32 *
                           (std::abs(static_cast<double>(dx0[at])) + r * std::abs(gj * g.dx[at]) +
                            r * std::abs(xhat * mean * dot)));
    }
  }
  EXPECT_TRUE(within("dx", got, want, limits)) << what;
}
// Of each row, <dy, y> for the y of forward's product without bias, which the op before hands over.
std::vector<float> row_dots(const V& x, const V& dx, int64_t n) {
  std::vector<float> dots;
  const size_t c = x.size() / z(n);
  for (size_t i = 0; i < z(n); ++i) {
    double sum = 0;
    for (size_t j = i * c; j < (i + 1) * c; ++j) sum += x[j] * dx[j];
    dots.push_back(static_cast<float>(sum));
  }
  return dots;
}

// With and without what the op before may hand over.
template <typename Backward>
void LoraOps::wide_norm_backward(int64_t (*scratch)(Device&, const Backward&),
                                 void (*op)(Device&, const Backward&), int64_t n, int64_t c, int64_t out,
                                 const std::vector<Adapter>& adapters) {
  for (const Types& t : {kTypes[0], kTypes[1]}) {
    const auto x = random_normal(n * c, 1, 2.0f), gain = random_uniform(c, 3, 0.5f, 2.0f),
               rstd = statistics(x, n, c), dx0 = random_normal(n * c, 12),
               w = rounded_to(t.weights, random_normal(out * c, 2, 1.0f / std::sqrt(static_cast<float>(c)))),
               dy = rounded_to(t.weights, random_normal(n * out, 11));
    const auto zs = random_zs(adapters, n);
    V normed = to_double(x);
    for (size_t i = 0; i < normed.size(); ++i)
      normed[i] *= static_cast<double>(rstd[i / z(c)]) * static_cast<double>(gain[i % z(c)]);
    const Gradients want =
        wide_gradients(normed, to_double(dy), w, adapters, zs, n, adapter_unit(device(), t));
    for (const bool handed : {true, false}) {
      const auto got = run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, out, c, t.weights);
        const AdapterGradients lora(m, adapters, n, zs);
        const bool rounds = t.weights == DType::kBF16;
        Backward b{.x = m.input(x, {n, c}),
                   .rstd = m.input(rstd, {n}),
                   .gain = m.input(gain, {c}),
                   .w = matrix.get(),
                   .dy = m.input(dy, {n, out}, t.weights),
                   .dx = m.accumulator(dx0, {n, c}),
                   .scratch = {},
                   .dot = handed ? m.input(row_dots(normed, want.dx, n),
                                           std::is_same_v<Backward, QkvBackward> ? Shape{n, 1} : Shape{n})
                                 : ConstTensor{},
                   .dx_bf16 = handed && rounds ? m.output({n, c}, DType::kBF16) : Tensor{},
                   .lora = lora.parts};
        b.scratch = m.scratch(scratch(d, b));
        op(d, b);
        std::vector<std::vector<float>> result{m.read(b.dx)};
        if (!b.dx_bf16.empty()) {
          EXPECT_TRUE(bitwise_equal("dx in bf16", m.read(b.dx_bf16), rounded_to(DType::kBF16, result[0])));
        }
        lora.read(m, result);
        return result;
      });
      check_norm(want, got[0], x, gain, rstd, dx0, fmt::format("{}, handed over {}", t.name, handed));
      check_adapters(want, got, 1, adapter_unit(device(), t));
    }
  }
}
TEST_P(LoraOps, WideQkvBackwardIsTheGradient) {
  for (const QkvCase& p : wide_qkv_cases())
    wide_norm_backward<QkvBackward>(qkv_backward_scratch, qkv_backward, p.n, p.c, (p.h + 2 * p.k) * p.d,
                                    p.adapters);
}
TEST_P(LoraOps, WideGateUpBackwardIsTheGradient) {
  for (const MlpCase& p : wide_mlp_cases())
    wide_norm_backward<GateUpBackward>(gate_up_backward_scratch, gate_up_backward, p.n, p.c, 2 * p.f,
                                       p.adapters);
}

TEST_P(LoraOps, WideProjectAndDownBackwardAreTheGradient) {
  for (const Types& t : kTypes) {
    std::vector<ProjectCase> cases = wide_project_cases();
    // More rows than 32 blocks take at once.
    if (t.weights == DType::kBF16) cases.push_back({8449, 16, 40, adapter(8, 16, 40, 0, 0.5f, 99)});
    for (const ProjectCase& p : cases) {
      const auto a = rounded_to(t.kept, random_normal(p.n * p.in, 1)),
                 w = rounded_to(t.weights, random_normal(p.c * p.in, 2, 0.1f)),
                 dout = rounded_to(t.weights, random_normal(p.n * p.c, 4)),
                 g = rounded_to(t.kept, random_normal(p.n * p.in, 5)),
                 u = rounded_to(t.kept, random_normal(p.n * p.in, 6));
      const auto zs = random_zs({p.adapter}, p.n);
      const auto got = run_deterministic([&](Device& d) {
        GuardedMemory m(d);
        const auto matrix = frozen(d, w, p.c, p.in, t.weights);
        const AdapterGradients one(m, {p.adapter}, p.n, zs), other(m, {p.adapter}, p.n, zs);
        const ConstTensor out = m.input(dout, {p.n, p.c}),
                          handed = p.bias && t.weights == DType::kBF16
                                       ? m.input(dout, {p.n, p.c}, DType::kBF16)
                                       : ConstTensor{};
        ProjectBackward b{.dout = out,
                          .w = matrix.get(),
                          .da = m.output({p.n, p.in}, t.weights),
                          .scratch = {},
                          .dout_bf16 = handed,
                          .lora = one.parts,
                          .a = m.input(a, {p.n, p.in}, t.kept)};
        b.scratch = m.scratch(project_backward_scratch(d, b));
        project_backward(d, b);
        DownBackward down{.dout = out,
                          .w = matrix.get(),
                          .g = m.input(g, {p.n, p.in}, t.kept),
                          .u = m.input(u, {p.n, p.in}, t.kept),
                          .dy = m.output({p.n, 2 * p.in}, t.weights),
                          .scratch = {},
                          .dout_bf16 = handed,
                          .dot = m.output({p.n}),
                          .lora = other.parts,
                          .a = m.input(a, {p.n, p.in}, t.weights)};
        down.scratch = m.scratch(down_backward_scratch(d, down));
        down_backward(d, down);
        std::vector<std::vector<float>> result{m.read(b.da), m.read(down.dy), m.read(down.dot)};
        one.read(m, result);
        other.read(m, result);
        return result;
      });
      // Forward's input is rounded to the weights' type on its way into a product; the down projection's is.
      const double unit = adapter_unit(device(), t);
      const auto inputs = [&](const std::vector<float>& of) {
        return wide_gradients(to_double(of), to_double(dout), w, {p.adapter}, zs, p.n, unit);
      };
      const Gradients want = inputs(a), behind = inputs(rounded_to(t.weights, a));
      V limits = want.dx_limit;
      for (size_t i = 0; i < limits.size(); ++i)
        limits[i] = 1.01 * limits[i] + t.unit() * std::abs(want.dx[i]);
      EXPECT_TRUE(within("da", got[0], want.dx, limits)) << t.name;
      check_adapters(want, got, 3, unit);
      check_adapters(behind, got, 5, unit);
      const V dy = reference::swiglu_gradient(to_double(g), to_double(u), want.dx, z(p.in));
      V dy_limits, dots(z(p.n), 0.0), dot_limits(z(p.n), 0.0);
      for (size_t i = 0; i < dy.size(); ++i) {
        const size_t row = i / z(2 * p.in), column = i % z(2 * p.in), at = row * z(p.in) + column % z(p.in);
        const double ga = g[at], ua = u[at], kept = column < z(p.in) ? ga : ua;
        const double slope = (std::abs(ua) + 1) * (1 + std::abs(ga));
        // The CPU rounds da to its type first; a few units of the sigmoid and its derivative.
        const double off =
            slope * (want.dx_limit[at] + (t.input_unit() + 12 * kUnitF32) * std::abs(want.dx[at]));
        dy_limits.push_back(off + t.unit() * (std::abs(dy[i]) + off));
        dots[row] += dy[i] * kept;
        dot_limits[row] +=
            (dy_limits.back() + static_cast<double>(p.in) * kUnitF32 * std::abs(dy[i])) * std::abs(kept);
      }
      EXPECT_TRUE(within("dy", got[1], dy, dy_limits)) << t.name;
      EXPECT_TRUE(within("dot", got[2], dots, dot_limits)) << t.name;
    }
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
  const AdapterGradients lora(m, {p.adapter}, p.n, {zs});
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
        AdapterGradients lora(m, {p}, n, {got[1]});
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
      check_z({got[i]}, 0, input, p.n, {p.adapters[i]}, 0.0);  // f32 with dropout, on every device
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
  const ProjectBackward plain{.dout = y, .w = matrix.get(), .da = x, .scratch = {}, .a = x};
  EXPECT_EQ(project_backward_bytes(plain), (15 + 12 + 20) * 4);  // forward's input is for adapters alone
  EXPECT_EQ(swiglu_bytes({.g = x, .u = x, .a = x}), 3 * 20 * 4);
}

}  // namespace
}  // namespace gantrain
