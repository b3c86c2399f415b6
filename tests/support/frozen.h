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

}  // namespace gantrain::test
