// Derivatives by complex step (Squire & Trapp, SIAM Review 1998):  f'(x) = Im f(x + ih) / h, with no
// difference taken, so h = 1e-30 costs no digit and there is no step size to tune. `f` is a scalar template
// of tests/reference, called with std::complex<double>.
#pragma once

#include <complex>
#include <cstddef>
#include <vector>

namespace gantrain::test {

using Complex = std::complex<double>;
inline constexpr double kComplexStep = 1e-30;

inline std::vector<Complex> to_complex(const std::vector<double>& x) { return {x.begin(), x.end()}; }

// Every coordinate of the gradient of f(std::vector<Complex>) -> Complex at `x`: one evaluation each.
template <typename F>
std::vector<double> complex_step_gradient(const std::vector<double>& x, const F& f) {
  std::vector<Complex> at = to_complex(x);
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    at[i] = Complex(x[i], kComplexStep);
    gradient[i] = Complex(f(static_cast<const std::vector<Complex>&>(at))).imag() / kComplexStep;
    at[i] = x[i];
  }
  return gradient;
}

// The derivative along `direction`: one evaluation, for large shapes.
template <typename F>
double complex_step_along(const std::vector<double>& x, const std::vector<double>& direction, const F& f) {
  std::vector<Complex> at(x.size());
  for (size_t i = 0; i < x.size(); ++i) at[i] = Complex(x[i], kComplexStep * direction[i]);
  return Complex(f(static_cast<const std::vector<Complex>&>(at))).imag() / kComplexStep;
}

// sum_i a_i * b_i: turns an output and its gradient into the scalar whose gradient a backward computes.
template <typename T>
T dot(const std::vector<T>& a, const std::vector<double>& b) {
  T sum{};
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace gantrain::test
