// The ops of the trainable networks, one line of mathematics each; row-major vectors, shapes as arguments.
#pragma once

#include <cstddef>
#include <vector>

#include "tests/reference/scalar.h"

namespace gantrain::reference {

// y (N, O) = x (N, I) w^T (O, I) + b (O) or none
template <typename T>
std::vector<T> linear(const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& b, size_t n,
                      size_t in, size_t out) {
  std::vector<T> y(n * out);
  for (size_t r = 0; r < n; ++r)
    for (size_t o = 0; o < out; ++o) {
      T sum = b.empty() ? T(0.0) : b[o];
      for (size_t i = 0; i < in; ++i) sum += x[r * in + i] * w[o * in + i];
      y[r * out + o] = sum;
    }
  return y;
}

enum class Curve { kSilu, kGelu, kTanh };
template <typename T>
T activation(Curve kind, const T& x) {
  if (kind == Curve::kSilu) return x * sigmoid(x);
  if (kind == Curve::kTanh) return std::tanh(x);
  const double scale = std::sqrt(2.0 / 3.14159265358979323846);
  return 0.5 * x * (T(1.0) + std::tanh(scale * (x + 0.044715 * x * x * x)));
}
template <typename T>
std::vector<T> activation(Curve kind, const std::vector<T>& x) {
  std::vector<T> y;
  for (const T& v : x) y.push_back(activation(kind, v));
  return y;
}

// y[b, p] = a[p] + c[b]
template <typename T>
std::vector<T> broadcast_add(const std::vector<T>& a, const std::vector<T>& c, size_t batch, size_t rows,
                             size_t width) {
  std::vector<T> y(batch * rows * width);
  for (size_t b = 0; b < batch; ++b)
    for (size_t p = 0; p < rows; ++p)
      for (size_t j = 0; j < width; ++j) y[(b * rows + p) * width + j] = a[p * width + j] + c[b * width + j];
  return y;
}

// y[b, p] = base[p] + s * x[b, p]
template <typename T>
std::vector<T> scaled_add(const std::vector<T>& base, const std::vector<T>& x, const T& s, size_t batch) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = base[i % (x.size() / batch)] + s * x[i];
  return y;
}

// y[r] = x[rows[r]]
template <typename T, typename Index>
std::vector<T> gather_rows(const std::vector<T>& x, const std::vector<Index>& rows, size_t width) {
  std::vector<T> y;
  for (const Index r : rows)
    for (size_t j = 0; j < width; ++j) y.push_back(x[static_cast<size_t>(r) * width + j]);
  return y;
}

}  // namespace gantrain::reference
