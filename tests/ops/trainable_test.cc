#include "core/ops/trainable.h"

#include <cmath>

#include "core/buffer.h"
#include "tests/reference/trainable.h"
#include "tests/support/complex_step.h"
#include "tests/support/devices.h"
#include "tests/support/fill.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;

class TrainableOps : public OpsTest {};
GT_ALL_DEVICES(TrainableOps);

V absolute(V x) {
  for (double& v : x) v = std::abs(v);
  return x;
}
// |a| + |b| element by element: the terms of a sum that starts from what was there.
V plus(V a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += std::abs(static_cast<double>(b[i]));
  return a;
}
V added(V a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += static_cast<double>(b[i]);
  return a;
}
size_t z(int64_t n) { return static_cast<size_t>(n); }
V transposed(const V& x, size_t rows, size_t columns) {
  V y(x.size());
  for (size_t r = 0; r < rows; ++r)
    for (size_t c = 0; c < columns; ++c) y[c * rows + r] = x[r * columns + c];
  return y;
}

struct LinearShape {
  int64_t n, in, out;
};
constexpr LinearShape kLinearShapes[] = {{1, 1, 1},     {1, 7, 31},   {7, 31, 33},    {31, 32, 1},
                                         {33, 33, 257}, {64, 16, 64}, {257, 65, 129}, {130, 576, 256}};

TEST_P(TrainableOps, LinearForwardMatchesTruth) {
  for (const auto& [n, in, out] : kLinearShapes) {
    const auto x = random_normal(n * in, 1), w = random_normal(out * in, 2), b = random_normal(out, 3);
    for (const bool bias : {true, false}) {
      const auto got = run_deterministic([&, n = n, in = in, out = out](Device& d) {
        GuardedMemory m(d);
        const Tensor y = m.output({n, out});
        linear_forward(d, {.x = m.input(x, {n, in}),
                           .w = m.input(w, {out, in}),
                           .b = bias ? m.input(b, {out}) : ConstTensor{},
                           .y = y});
        return std::vector<std::vector<float>>{m.read(y)};
      });
      const V bd = bias ? to_double(b) : V{};
      const V want = reference::linear(to_double(x), to_double(w), bd, z(n), z(in), z(out));
      const V terms = reference::linear(absolute(to_double(x)), absolute(to_double(w)), absolute(bd), z(n),
                                        z(in), z(out));
      EXPECT_TRUE(within("y", got[0], want, rounding_limits(1.0, kUnitF32, double(in + 1), terms)));
    }
  }
}

// The references of the backward are products again; that those are the gradients is checked by complex step
// on small shapes below.
TEST_P(TrainableOps, LinearBackwardMatchesTruthAndAccumulates) {
  for (const auto& [n, in, out] : kLinearShapes) {
    const auto x = random_normal(n * in, 1), w = random_normal(out * in, 2), dy = random_normal(n * out, 4);
    const auto dx0 = random_normal(n * in, 5), dw0 = random_normal(out * in, 6), db0 = random_normal(out, 7);
    const auto got = run_deterministic([&, n = n, in = in, out = out](Device& d) {
      GuardedMemory m(d);
      const Tensor dx = m.accumulator(dx0, {n, in}), dw = m.accumulator(dw0, {out, in}),
                   db = m.accumulator(db0, {out});
      linear_backward(d, {.x = m.input(x, {n, in}),
                          .w = m.input(w, {out, in}),
                          .dy = m.input(dy, {n, out}),
                          .dx = dx,
                          .dw = dw,
                          .db = db});
      return std::vector<std::vector<float>>{m.read(dx), m.read(dw), m.read(db)};
    });
    const V xt = transposed(to_double(x), z(n), z(in)), wt = transposed(to_double(w), z(out), z(in)),
            dyt = transposed(to_double(dy), z(n), z(out)), ones(z(n), 1.0);
    const auto product = [](const V& a, const V& b, int64_t r, int64_t k, int64_t c) {
      return reference::linear(a, b, V{}, z(r), z(k), z(c));
    };
    const auto check = [&](const char* what, const std::vector<float>& g, const std::vector<float>& start,
                           const V& a, const V& b, int64_t r, int64_t k, int64_t c) {
      const V want = added(product(a, b, r, k, c), start);
      const V terms = plus(product(absolute(a), absolute(b), r, k, c), start);
      EXPECT_TRUE(within(what, g, want, rounding_limits(1.0, kUnitF32, double(k + 1), terms)));
    };
    check("dx", got[0], dx0, to_double(dy), wt, n, out, in);
    check("dw", got[1], dw0, dyt, xt, out, n, in);
    check("db", got[2], db0, dyt, ones, out, n, 1);
  }
}

TEST_P(TrainableOps, LinearBackwardIsTheGradient) {
  const int64_t n = 3, in = 5, out = 4;
  const auto x = random_normal(n * in, 1), w = random_normal(out * in, 2), b = random_normal(out, 3),
             dy = random_normal(n * out, 4);
  GuardedMemory m(device());
  const Tensor dx = m.accumulator(std::vector<float>(z(n * in)), {n, in}),
               dw = m.accumulator(std::vector<float>(z(out * in)), {out, in}),
               db = m.accumulator(std::vector<float>(z(out)), {out});
  linear_backward(device(), {.x = m.input(x, {n, in}),
                             .w = m.input(w, {out, in}),
                             .dy = m.input(dy, {n, out}),
                             .dx = dx,
                             .dw = dw,
                             .db = db});
  const V xd = to_double(x), wd = to_double(w), bd = to_double(b), dyd = to_double(dy);
  using VC = std::vector<Complex>;
  const auto y = [&](const VC& xx, const VC& ww, const VC& bb) {
    return dot(reference::linear(xx, ww, bb, z(n), z(in), z(out)), dyd);
  };
  const VC xc = to_complex(xd), wc = to_complex(wd), bc = to_complex(bd);
  // Sums of at most 5 products of normal values: a few units in the last place of numbers below 20.
  const double limit = 20.0 * 6 * kUnitF32;
  EXPECT_TRUE(
      within("dx", m.read(dx), complex_step_gradient(xd, [&](const VC& v) { return y(v, wc, bc); }), limit));
  EXPECT_TRUE(
      within("dw", m.read(dw), complex_step_gradient(wd, [&](const VC& v) { return y(xc, v, bc); }), limit));
  EXPECT_TRUE(
      within("db", m.read(db), complex_step_gradient(bd, [&](const VC& v) { return y(xc, wc, v); }), limit));
}

TEST_P(TrainableOps, LinearBackwardLeavesOutWhatIsNotWanted) {
  const int64_t n = 5, in = 9, out = 3;
  const auto x = random_normal(n * in, 1), w = random_normal(out * in, 2), dy = random_normal(n * out, 4);
  GuardedMemory m(device());
  const Tensor dw = m.accumulator(std::vector<float>(z(out * in)), {out, in});
  linear_backward(device(), {.x = m.input(x, {n, in}),
                             .w = m.input(w, {out, in}),
                             .dy = m.input(dy, {n, out}),
                             .dx = {},
                             .dw = dw,
                             .db = {}});
  const V want = reference::linear(transposed(to_double(dy), z(n), z(out)),
                                   transposed(to_double(x), z(n), z(in)), V{}, z(out), z(n), z(in));
  EXPECT_TRUE(within("dw", m.read(dw), want, 20.0 * 6 * kUnitF32));
}

TEST_P(TrainableOps, ActivationsMatchTruthInValueAndSlope) {
  const std::pair<Activation, reference::Curve> kinds[] = {{Activation::kSilu, reference::Curve::kSilu},
                                                           {Activation::kGelu, reference::Curve::kGelu},
                                                           {Activation::kTanh, reference::Curve::kTanh}};
  for (const auto& [kind, curve] : kinds) {
    const int64_t n = 20001;
    auto x = random_normal(n, 1, 3.0f);
    x[0] = 0.0f, x[1] = 90.0f, x[2] = -90.0f, x[3] = 700.0f, x[4] = -700.0f;  // where exp overflows in f32
    x.back() = 0.3f;  // the odd one behind all vectors, where tanh is a polynomial
    const auto dy = random_normal(n, 2), dx0 = random_normal(n, 3);
    const auto got = run_deterministic([&, kind = kind](Device& d) {
      GuardedMemory m(d);
      const Tensor y = m.output({n}), dx = m.accumulator(dx0, {n});
      const ConstTensor in = m.input(x, {n});
      activation_forward(d, {.x = in, .kind = kind, .y = y});
      activation_backward(d, {.x = in, .kind = kind, .dy = m.input(dy, {n}), .dx = dx});
      return std::vector<std::vector<float>>{m.read(y), m.read(dx)};
    });
    V y, dx, y_limit, dx_limit;
    for (size_t i = 0; i < x.size(); ++i) {
      const double at = double(x[i]);
      y.push_back(reference::activation(curve, at));
      // Beyond 30 both halves are saturated, and complex exp would overflow where the real one does not
      // matter.
      const double inner = std::min(std::max(at, -30.0), 30.0);
      const double slope = reference::activation(curve, Complex(inner, kComplexStep)).imag() / kComplexStep;
      dx.push_back(double(dx0[i]) + double(dy[i]) * slope);
      // About ten roundings, the largest intermediate being |x| (times dy).
      y_limit.push_back(10.0 * kUnitF32 * (std::abs(at) + 1.0));
      dx_limit.push_back(
          10.0 * kUnitF32 *
          (std::abs(double(dx0[i])) + std::abs(double(dy[i])) * (1.0 + at * at * (inner == at))));
    }
    EXPECT_TRUE(within("y", got[0], y, y_limit));
    EXPECT_TRUE(within("dx", got[1], dx, dx_limit));
  }
}

TEST_P(TrainableOps, BroadcastAddAndItsBackward) {
  for (const auto& [batch, rows, width] :
       {std::array<int64_t, 3>{1, 1, 1}, {3, 5, 7}, {31, 20, 33}, {2, 257, 64}}) {
    const auto a = random_normal(rows * width, 1), c = random_normal(batch * width, 2),
               dy = random_normal(batch * rows * width, 3), da0 = random_normal(rows * width, 4),
               dc0 = random_normal(batch * width, 5);
    const auto got = run_deterministic([&, batch = batch, rows = rows, width = width](Device& d) {
      GuardedMemory m(d);
      const Tensor y = m.output({batch, rows, width}), da = m.accumulator(da0, {rows, width}),
                   dc = m.accumulator(dc0, {batch, width});
      broadcast_add_forward(d, {.a = m.input(a, {rows, width}), .c = m.input(c, {batch, width}), .y = y});
      broadcast_add_backward(d, {.dy = m.input(dy, {batch, rows, width}), .da = da, .dc = dc});
      return std::vector<std::vector<float>>{m.read(y), m.read(da), m.read(dc)};
    });
    const V y = reference::broadcast_add(to_double(a), to_double(c), z(batch), z(rows), z(width));
    EXPECT_TRUE(within("y", got[0], y, rounding_limits(1.0, kUnitF32, 0, absolute(y))));
    V da = to_double(da0), dc = to_double(dc0), da_terms = absolute(da), dc_terms = absolute(dc);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t p = 0; p < rows; ++p)
        for (int64_t j = 0; j < width; ++j) {
          const double g = double(dy[z((b * rows + p) * width + j)]);
          da[z(p * width + j)] += g, da_terms[z(p * width + j)] += std::abs(g);
          dc[z(b * width + j)] += g, dc_terms[z(b * width + j)] += std::abs(g);
        }
    EXPECT_TRUE(within("da", got[1], da, rounding_limits(1.0, 0, double(batch), da_terms)));
    EXPECT_TRUE(within("dc", got[2], dc, rounding_limits(1.0, 0, double(rows), dc_terms)));
  }
}

TEST_P(TrainableOps, ScaledAddBackwardIsTheGradient) {
  const int64_t batch = 3, rows = 4, width = 5;
  const auto base = random_normal(rows * width, 1), x = random_normal(batch * rows * width, 2),
             s = random_normal(1, 3), dy = random_normal(batch * rows * width, 4);
  const auto dbase0 = random_normal(rows * width, 5), dx0 = random_normal(batch * rows * width, 6),
             ds0 = random_normal(1, 7);
  const auto got = run_deterministic([&](Device& d) {
    GuardedMemory m(d);
    const ConstTensor xs = m.input(x, {batch, rows, width}), ss = m.input(s, {1});
    const Tensor y = m.output({batch, rows, width}), dbase = m.accumulator(dbase0, {rows, width}),
                 dx = m.accumulator(dx0, {batch, rows, width}), ds = m.accumulator(ds0, {1});
    scaled_add_forward(d, {.base = m.input(base, {rows, width}), .x = xs, .s = ss, .y = y});
    scaled_add_backward(
        d, {.x = xs, .s = ss, .dy = m.input(dy, {batch, rows, width}), .dbase = dbase, .dx = dx, .ds = ds});
    return std::vector<std::vector<float>>{m.read(y), m.read(dbase), m.read(dx), m.read(ds)};
  });
  const V bd = to_double(base), xd = to_double(x), sd = to_double(s), dyd = to_double(dy);
  using VC = std::vector<Complex>;
  const auto f = [&](const VC& b, const VC& xx, const VC& ss) {
    return dot(reference::scaled_add(b, xx, ss[0], z(batch)), dyd);
  };
  const VC bc = to_complex(bd), xc = to_complex(xd), sc = to_complex(sd);
  // Values stay below 10; dbase sums 3 terms, ds 60 of them (in double, rounded once).
  EXPECT_TRUE(within("y", got[0], reference::scaled_add(bd, xd, sd[0], z(batch)), 20 * kUnitF32));
  EXPECT_TRUE(within("dbase", got[1],
                     added(complex_step_gradient(bd, [&](const VC& v) { return f(v, xc, sc); }), dbase0),
                     40 * kUnitF32));
  EXPECT_TRUE(within("dx", got[2],
                     added(complex_step_gradient(xd, [&](const VC& v) { return f(bc, v, sc); }), dx0),
                     20 * kUnitF32));
  EXPECT_TRUE(within("ds", got[3],
                     added(complex_step_gradient(sd, [&](const VC& v) { return f(bc, xc, v); }), ds0),
                     60 * kUnitF32));
}

TEST_P(TrainableOps, GatherAndScatterAreTransposes) {
  for (const int64_t width : {70, 72}) {
    const int64_t n = 9, count = 31;
    auto rows = random_ints(count, 1, 0, static_cast<int32_t>(n - 1));
    rows[0] = 0, rows[1] = 0, rows[2] = static_cast<int32_t>(n - 1);  // repeats and both ends
    const auto x = random_normal(n * width, 2), dy = random_normal(count * width, 3),
               dx0 = random_normal(n * width, 4);
    const auto got = run_deterministic([&](Device& d) {
      GuardedMemory m(d);
      const ConstTensor r = m.input(rows, {count});
      const Tensor y = m.output({count, width}), dx = m.accumulator(dx0, {n, width});
      gather_rows(d, {.x = m.input(x, {n, width}), .rows = r, .y = y});
      scatter_add_rows(d, {.dy = m.input(dy, {count, width}), .rows = r, .dx = dx});
      return std::vector<std::vector<float>>{m.read(y), m.read(dx)};
    });
    EXPECT_TRUE(within("y", got[0], reference::gather_rows(to_double(x), rows, z(width)), 0.0));
    V dx = to_double(dx0), terms = absolute(dx);
    for (size_t r = 0; r < rows.size(); ++r)
      for (size_t j = 0; j < z(width); ++j) {
        dx[z(rows[r]) * z(width) + j] += double(dy[r * z(width) + j]);
        terms[z(rows[r]) * z(width) + j] += std::abs(double(dy[r * z(width) + j]));
      }
    EXPECT_TRUE(within("dx", got[1], dx, rounding_limits(1.0, 0, double(count), terms)));
  }
}

// Rows of two-byte values are moved as they are: no bit pattern is another one's equal.
TEST_P(TrainableOps, GatherMovesEveryPattern) {
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const int64_t width : {6, 8}) {
      const int64_t n = 65536 / 8;
      std::vector<uint16_t> x(z(n * width)), y(z(n * width));
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i);
      std::vector<int32_t> rows(z(n));
      for (size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<int32_t>(rows.size() - 1 - r);
      OwnedTensor from(device(), dtype, {n, width}), to(device(), dtype, {n, width}),
          r(device(), DType::kI32, {n});
      device().copy_in(from, x.data());
      device().copy_in(r, rows.data());
      gather_rows(device(), {.x = from, .rows = r, .y = to});
      device().copy_out(y.data(), to);
      for (size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(y[i], x[z(rows[i / z(width)]) * z(width) + i % z(width)]) << i;
    }
  if (!host_sees_values()) return;
  OwnedTensor odd(device(), DType::kBF16, {2, 3}), r(device(), DType::kI32, {2});
  EXPECT_THROW(gather_rows(device(), {.x = odd, .rows = r, .y = odd}),
               Error);  // six bytes are no whole words
}

TEST_P(TrainableOps, RowsOutOfRangeThrow) {
  if (!host_sees_values()) return;
  GuardedMemory m(device());
  const ConstTensor x = m.input(random_normal(12, 1), {4, 3});
  for (const int32_t bad : {-1, 4}) {
    const ConstTensor rows = m.input(std::vector<int32_t>{0, bad}, {2});
    const Tensor y = m.output({2, 3}), dx = m.output({4, 3});
    EXPECT_THROW(gather_rows(device(), {.x = x, .rows = rows, .y = y}), Error);
    EXPECT_THROW(
        scatter_add_rows(device(), {.dy = m.input(random_normal(6, 2), {2, 3}), .rows = rows, .dx = dx}),
        Error);
  }
}

TEST_P(TrainableOps, AxpyMatchesTruth) {
  const int64_t n = 20003;
  const auto x = random_normal(n, 1), y0 = random_normal(n, 2);
  const auto got = run_deterministic([&](Device& d) {
    GuardedMemory m(d);
    const Tensor y = m.accumulator(y0, {n});
    axpy(d, {.x = m.input(x, {n}), .a = -0.37f, .y = y});
    return std::vector<std::vector<float>>{m.read(y)};
  });
  V want = to_double(y0), terms = absolute(want);
  for (size_t i = 0; i < want.size(); ++i) {
    want[i] += double(-0.37f) * double(x[i]);
    terms[i] += std::abs(0.37 * double(x[i]));
  }
  EXPECT_TRUE(within("y", got[0], want, rounding_limits(1.0, kUnitF32, 1, terms)));
}

// The draws are the contract's: any backend, any cut into threads, gives the same noise.
TEST_P(TrainableOps, AddNoiseDrawsWhatTheContractSays) {
  for (const int64_t n : {int64_t{1}, int64_t{7}, int64_t{20003}}) {
    const auto x = random_normal(n, 1);
    const float sigma = 0.25f;
    const uint64_t key = 0x1234567890abcdefull, counter = (uint64_t{1} << 40) + 3;
    const auto got = run_deterministic([&](Device& d) {
      GuardedMemory m(d);
      const Tensor y = m.output({n});
      add_noise(d, {.x = m.input(x, {n}), .sigma = sigma, .key = key, .counter = counter, .y = y});
      return std::vector<std::vector<float>>{m.read(y)};
    });
    V want = to_double(x);
    double mean = 0.0, square = 0.0;
    for (size_t i = 0; i < want.size(); ++i) {
      const auto words = Philox{key}(counter, i / 4);
      const size_t pair = i % 4 / 2 * 2;
      const double u = (double(words[pair] >> 9) + 0.5) / 8388608.0,
                   v = (double(words[pair + 1] >> 9) + 0.5) / 8388608.0;
      const double radius = std::sqrt(-2.0 * std::log(u)), angle = 2.0 * 3.14159265358979323846 * v;
      const double normal = radius * (i % 2 ? std::sin(angle) : std::cos(angle));
      want[i] += double(sigma) * normal;
      mean += normal / double(n), square += normal * normal / double(n);
    }
    // A radius is below 6; the angle, below 6.3, carries half a unit of 2 pi times its size.
    EXPECT_TRUE(within("y", got[0], want, (6.0 * 8.0 * double(sigma) + 8.0) * 2.0 * kUnitF32));
    if (n > 10000) {
      EXPECT_NEAR(mean, 0.0, 5.0 / std::sqrt(double(n)));
      EXPECT_NEAR(square, 1.0, 5.0 * std::sqrt(2.0 / double(n)));
    }
  }
}

// A part of something larger has the noise that it has in the whole.
TEST_P(TrainableOps, AddNoiseOfAPartIsThatOfTheWhole) {
  constexpr int64_t n = 9001;
  const auto x = random_normal(n, 1);
  const auto noisy = [&](int64_t first, int64_t count) {
    const std::vector<float> part(x.begin() + first, x.begin() + first + count);
    return run_deterministic([&](Device& d) {
      GuardedMemory m(d);
      const Tensor y = m.output({count});
      add_noise(d,
                {.x = m.input(part, {count}), .sigma = 0.5f, .key = 7, .counter = 3, .first = first, .y = y});
      return std::vector<std::vector<float>>{m.read(y)};
    })[0];
  };
  const std::vector<float> whole = noisy(0, n);
  for (const int64_t first : {int64_t{4}, int64_t{1000}, int64_t{8996}}) {
    const int64_t count = std::min<int64_t>(n - first, 4001);
    EXPECT_EQ(noisy(first, count), std::vector<float>(whole.begin() + first, whole.begin() + first + count));
  }
  GuardedMemory m(device());
  const ConstTensor six = m.input(random_normal(6, 1), {6});
  EXPECT_THROW(
      add_noise(device(), {.x = six, .sigma = 1, .key = 1, .counter = 0, .first = 2, .y = m.output({6})}),
      Error);
}

TEST_P(TrainableOps, BrokenContractsThrow) {
  GuardedMemory m(device());
  const ConstTensor x = m.input(random_normal(6, 1), {2, 3}), w = m.input(random_normal(12, 2), {4, 3});
  const Tensor y = m.output({2, 4});
  EXPECT_NO_THROW(linear_forward(device(), {.x = x, .w = w, .b = {}, .y = y}));
  EXPECT_THROW(linear_forward(device(), {.x = x, .w = w, .b = {}, .y = y.view({4, 2})}), Error);
  EXPECT_THROW(linear_forward(device(), {.x = x, .w = w, .b = {}, .y = {}}), Error);
  EXPECT_THROW(linear_forward(device(), {.x = x.view({3, 2}), .w = w, .b = {}, .y = y}), Error);
  EXPECT_THROW(linear_forward(device(), {.x = x, .w = w, .b = m.input(random_normal(3, 3), {3}), .y = y}),
               Error);
  const ConstTensor half = m.input(random_normal(6, 1), {2, 3}, DType::kBF16);
  EXPECT_THROW(linear_forward(device(), {.x = half, .w = w, .b = {}, .y = y}), Error);
  const auto other = device().kind() == DeviceKind::kCpu ? DeviceKind::kCuda : DeviceKind::kCpu;
  const ConstTensor elsewhere(x.raw(), DType::kF32, {2, 3}, other);
  EXPECT_THROW(linear_forward(device(), {.x = elsewhere, .w = w, .b = {}, .y = y}), Error);
  EXPECT_THROW(axpy(device(), {.x = x, .a = 1.0f, .y = y}), Error);
  EXPECT_THROW(broadcast_add_forward(device(), {.a = x, .c = x, .y = m.output({2, 4, 3})}), Error);
}

}  // namespace
}  // namespace gantrain
