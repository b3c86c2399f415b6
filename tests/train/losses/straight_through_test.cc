// The mathematics behind C2 on toys in double: what the engine's seed of a straight-through Gumbel sample is
// the derivative of, and how far credit travels with each extra sweep backward.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/compare.h"
#include "tests/support/complex_step.h"
#include "tests/support/fill.h"

namespace gantrain::test {
namespace {

using V = std::vector<double>;
using VC = std::vector<Complex>;
constexpr size_t kWords = 5, kWidth = 3;

template <typename T>
std::vector<T> softmax(const std::vector<T>& l, const V& noise, double tau) {
  std::vector<T> s(l.size());
  T sum(0.0);
  for (size_t j = 0; j < l.size(); ++j) sum += s[j] = std::exp((l[j] + noise[j]) / tau);
  for (T& x : s) x /= sum;
  return s;
}

V gumbel_row(uint64_t seed) {
  V g;
  for (uint64_t j = 0; j < kWords; ++j) g.push_back(static_cast<double>(gumbel(Philox{seed}(0, j)[0])));
  return g;
}

// e = E[y] + (s - sg s) E: `held` is sg s, a constant with the value of s.
template <typename T>
std::vector<T> straight_through(const std::vector<T>& s, const V& held, size_t y, const V& embedding) {
  std::vector<T> e(kWidth);
  for (size_t c = 0; c < kWidth; ++c) {
    e[c] = T(embedding[y * kWidth + c]);
    for (size_t j = 0; j < kWords; ++j) e[c] += (s[j] - held[j]) * embedding[j * kWidth + c];
  }
  return e;
}

// Any smooth loss of one embedding.
template <typename T>
T loss_of(const std::vector<T>& e) {
  return std::sin(e[0] * e[1]) + e[2] * e[2] * e[0] + std::exp(0.3 * e[1]);
}

TEST(StraightThrough, ForwardIsTheOneHotAndBackwardIsTheSeed) {
  const V logits = to_double(random_normal(kWords, 1)), noise = gumbel_row(2);
  const V embedding = to_double(random_normal(kWords * kWidth, 3));
  V shifted(kWords);
  for (size_t j = 0; j < kWords; ++j) shifted[j] = logits[j] + noise[j];
  const size_t y = static_cast<size_t>(std::max_element(shifted.begin(), shifted.end()) - shifted.begin());
  for (const double tau : {1.0, 0.5}) {
    const V s = softmax(logits, noise, tau);
    const V e = straight_through(s, s, y, embedding);
    for (size_t c = 0; c < kWidth; ++c) EXPECT_EQ(e[c], embedding[y * kWidth + c]);
    const V g_e = complex_step_gradient(e, [](const VC& v) { return loss_of(v); });
    double inner = 0.0;
    V u(kWords, 0.0), seed(kWords);
    for (size_t j = 0; j < kWords; ++j) {
      for (size_t c = 0; c < kWidth; ++c) u[j] += embedding[j * kWidth + c] * g_e[c];
      inner += s[j] * u[j];
    }
    for (size_t j = 0; j < kWords; ++j) seed[j] = s[j] * (u[j] - inner) / tau;
    const V exact = complex_step_gradient(logits, [&](const VC& l) {
      return loss_of(straight_through(softmax(l, noise, tau), s, y, embedding));
    });
    EXPECT_TRUE(within("seed", seed, exact, 1e-13));
  }
}

// A recurrent toy: l_t = W tanh(theta + sum over s < t of A_{t-s} e_s), y_t sampled with fixed noise, e_t its
// straight-through embedding, L a function of all e. With the context attached, theta's gradient needs credit
// to travel from e_t back through l_t to e_{t-1} and so on. Each sweep is one ordinary backward with all
// seeds at once:
//   g^(0) = dL/de;  g^(k+1) = dL/de + (dl/de)^T seed(g^(k)).   l_t sees earlier e only, so T - 1 sweeps are
//   exact.
constexpr size_t kLength = 4;
struct Toy {
  V embedding = to_double(random_normal(kWords * kWidth, 5)),
    w = to_double(random_normal(kWords * kWidth, 6)),
    a = to_double(random_normal(kLength * kWidth * kWidth, 7, 0.7f));
  std::vector<V> noise = {gumbel_row(10), gumbel_row(11), gumbel_row(12), gumbel_row(13)};
  double tau = 0.8;
  std::vector<size_t> y = std::vector<size_t>(kLength);
  std::vector<V> held = std::vector<V>(kLength);

  template <typename T>
  std::vector<T> logits(const std::vector<T>& theta, const std::vector<std::vector<T>>& e, size_t t) const {
    std::vector<T> h(theta), l(kWords, T(0.0));
    for (size_t s = 0; s < t; ++s)
      for (size_t i = 0; i < kWidth; ++i)
        for (size_t j = 0; j < kWidth; ++j) h[i] += a[((t - s) * kWidth + i) * kWidth + j] * e[s][j];
    for (size_t k = 0; k < kWords; ++k)
      for (size_t i = 0; i < kWidth; ++i) l[k] += w[k * kWidth + i] * std::tanh(h[i]);
    return l;
  }
  template <typename T>
  static T loss(const std::vector<std::vector<T>>& e) {
    T sum(0.0);
    for (size_t t = 0; t < e.size(); ++t) sum += static_cast<double>(t + 1) * loss_of(e[t]);
    for (size_t t = 0; t + 1 < e.size(); ++t) sum += e[t][0] * e[t + 1][1];
    return sum;
  }
  void roll_out(const V& theta) {
    std::vector<V> e;
    for (size_t t = 0; t < kLength; ++t) {
      V l = logits(theta, e, t);
      held[t] = softmax(l, noise[t], tau);
      for (size_t j = 0; j < kWords; ++j) l[j] += noise[t][j];
      y[t] = static_cast<size_t>(std::max_element(l.begin(), l.end()) - l.begin());
      e.push_back(V(embedding.begin() + static_cast<long>(y[t] * kWidth),
                    embedding.begin() + static_cast<long>((y[t] + 1) * kWidth)));
    }
  }
  // Everything attached: what sequential back-propagation differentiates.
  Complex attached(const VC& theta) const {
    std::vector<VC> e;
    for (size_t t = 0; t < kLength; ++t)
      e.push_back(straight_through(softmax(logits(theta, e, t), noise[t], tau), held[t], y[t], embedding));
    return loss(e);
  }
  V sampled() const {  // (T, width)
    V e;
    for (size_t t = 0; t < kLength; ++t)
      e.insert(e.end(), embedding.begin() + static_cast<long>(y[t] * kWidth),
               embedding.begin() + static_cast<long>((y[t] + 1) * kWidth));
    return e;
  }
};

std::vector<VC> rows(const VC& flat) {
  std::vector<VC> out;
  for (size_t t = 0; t < kLength; ++t)
    out.push_back(
        VC(flat.begin() + static_cast<long>(t * kWidth), flat.begin() + static_cast<long>((t + 1) * kWidth)));
  return out;
}

TEST(CreditSweeps, LengthMinusOneEqualsSequentialBackPropagation) {
  const V theta = to_double(random_normal(kWidth, 8));
  Toy toy;
  toy.roll_out(theta);
  const V exact = complex_step_gradient(theta, [&](const VC& v) { return toy.attached(v); });
  const V e = toy.sampled();
  const V direct = complex_step_gradient(e, [&](const VC& v) { return Toy::loss(rows(v)); });
  const auto seeds = [&](const V& g) {  // (T, V): the engine's formula at every position
    V out;
    for (size_t t = 0; t < kLength; ++t) {
      V u(kWords, 0.0);
      double inner = 0.0;
      for (size_t j = 0; j < kWords; ++j) {
        for (size_t c = 0; c < kWidth; ++c) u[j] += toy.embedding[j * kWidth + c] * g[t * kWidth + c];
        inner += toy.held[t][j] * u[j];
      }
      for (size_t j = 0; j < kWords; ++j) out.push_back(toy.held[t][j] * (u[j] - inner) / toy.tau);
    }
    return out;
  };
  // One backward of all positions' logits with these seeds: sum of seed * l, as a function of theta and of e.
  const auto seeded = [&](const VC& th, const VC& flat, const V& seed) {
    Complex sum(0.0);
    for (size_t t = 0; t < kLength; ++t) {
      const VC l = toy.logits(th, rows(flat), t);
      for (size_t j = 0; j < kWords; ++j) sum += l[j] * seed[t * kWords + j];
    }
    return sum;
  };
  V g = direct;
  double first_error = 0.0;
  for (size_t sweep = 0; sweep < kLength; ++sweep) {
    const V seed = seeds(g);
    const V estimate =
        complex_step_gradient(theta, [&](const VC& v) { return seeded(v, to_complex(e), seed); });
    double error = 0.0;
    for (size_t i = 0; i < estimate.size(); ++i) error = std::max(error, std::abs(estimate[i] - exact[i]));
    if (sweep == 0) first_error = error;
    if (sweep == kLength - 1) {
      EXPECT_TRUE(within("theta after T - 1 sweeps", estimate, exact, 1e-12));
    }
    const V carried =
        complex_step_gradient(e, [&](const VC& v) { return seeded(to_complex(theta), v, seed); });
    for (size_t i = 0; i < g.size(); ++i) g[i] = direct[i] + carried[i];
  }
  EXPECT_GT(first_error, 1e-3) << "the toy carries no credit: it would prove nothing";
}

}  // namespace
}  // namespace gantrain::test
