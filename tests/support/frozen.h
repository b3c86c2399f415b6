// What the tests of the frozen model's ops share: matrices, and the pairs of types they run in.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "tests/support/compare.h"
#include "tests/support/fill.h"

namespace gantrain::test {

constexpr double unit_of(DType t) {
  return t == DType::kF32 ? kUnitF32 : t == DType::kBF16 ? kUnitBF16 : kUnitF16;
}

// T, the type of the weights and of gradients, and S, what is kept between forward and backward
// (core/ops/qkv.h).
struct Types {
  const char* name;
  DType weights, kept;
  double unit() const { return unit_of(weights); }
  // What rounding an input of a product costs: nothing in f32.
  double input_unit() const { return weights == DType::kF32 ? 0.0 : kUnitBF16; }
};
inline constexpr Types kTypes[] = {{"f32", DType::kF32, DType::kF32},
                                   {"bf16", DType::kBF16, DType::kBF16},
                                   {"bf16, kept in f16", DType::kBF16, DType::kF16}};

// A frozen matrix of these values, row-major.
inline std::unique_ptr<const FrozenMatrix> frozen(Device& device, const std::vector<float>& values,
                                                  int64_t rows, int64_t cols, DType dtype) {
  MatrixSource source;
  source.rows = rows;
  source.cols = cols;
  source.read = [&values, cols](int64_t begin, int64_t n, float* out) {
    std::copy_n(values.begin() + begin * cols, n * cols, out);
  };
  return device.freeze(source, dtype);
}

inline std::vector<double> absolute(std::vector<double> x) {
  for (double& v : x) v = std::abs(v);
  return x;
}
inline double largest(const std::vector<double>& x) {
  double most = 0;
  for (const double v : x) most = std::max(most, std::abs(v));
  return most;
}
inline std::vector<double> plus(std::vector<double> a, const std::vector<double>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}
inline size_t z(int64_t n) { return static_cast<size_t>(n); }

// A gradient that passed several products: err <= share * the largest entry of the gradient.
// f32: sums of some hundred terms; bf16: a few roundings of 2^-8 that add up at random.
inline double gradient_limit(const Types& t, const std::vector<double>& want) {
  return (t.weights == DType::kF32 ? 4e-6 : 1.6e-2) * largest(want);
}

// What dx += RMSNorm backward of (dy w * gain) may be off by, inputs being exact (tests/reference/frozen.h,
// norm_product_gradient). The product sums `out` terms in f32 and a few roundings follow. The mean in it may
// be taken from dy and a y that was kept with the relative error `unit` (0: it is not): then dx_j is off by
// rstd |xhat_j| / C * unit * sum |dy y| besides.
inline std::vector<double> norm_gradient_limits(const std::vector<float>& x, const std::vector<float>& rstd,
                                                const std::vector<float>& gain, const std::vector<float>& w,
                                                const std::vector<float>& dy, const std::vector<float>& y,
                                                double unit, const std::vector<float>& dx0) {
  const size_t n = rstd.size(), c = x.size() / n, out = w.size() / c;
  std::vector<double> limits;
  for (size_t i = 0; i < n; ++i) {
    double kept = 0, all = 0;
    std::vector<double> terms(c);
    const auto at = [i](const std::vector<float>& v, size_t width, size_t j) {
      return std::abs(static_cast<double>(v[i * width + j]));
    };
    for (size_t o = 0; o < out; ++o) {
      kept += at(dy, out, o) * at(y, out, o);
      for (size_t j = 0; j < c; ++j) terms[j] += at(dy, out, o) * std::abs(static_cast<double>(w[o * c + j]));
    }
    const double r = rstd[i], mean = 1 / static_cast<double>(c);
    for (size_t j = 0; j < c; ++j) {
      terms[j] *= gain.empty() ? 1 : std::abs(static_cast<double>(gain[j]));
      all += terms[j] * at(x, c, j) * r;
    }
    for (size_t j = 0; j < c; ++j) {
      const double xhat = at(x, c, j) * r;
      // f32: the product's sum, the dot's over c (or out) values, ten roundings for what follows.
      limits.push_back(r * kUnitF32 * static_cast<double>(out + c + 10) * (terms[j] + xhat * mean * all) +
                       r * xhat * mean * unit * kept + kUnitF32 * at(dx0, c, j));
    }
  }
  return limits;
}

}  // namespace gantrain::test
