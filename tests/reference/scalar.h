// Scalar functions of the references, for double and for std::complex<double> (complex step): branches look
// at the real part, so the imaginary part carries the derivative of the branch that was taken.
#pragma once

#include <cmath>
#include <complex>
#include <vector>

namespace gantrain::reference {

inline double real_part(double x) { return x; }
inline double real_part(const std::complex<double>& x) { return x.real(); }

template <typename T>
T sigmoid(const T& x) {
  if (real_part(x) >= 0.0) return T(1.0) / (T(1.0) + std::exp(-x));
  const T e = std::exp(x);
  return e / (T(1.0) + e);
}

// log(1 + exp(x)); std::log1p has no complex form, and log(1 + e) with e <= 1 is exact enough in double.
template <typename T>
T softplus(const T& x) {
  if (real_part(x) > 0.0) return x + std::log(T(1.0) + std::exp(-x));
  return std::log(T(1.0) + std::exp(x));
}

template <typename T>
T square(const T& x) {
  return x * x;
}

}  // namespace gantrain::reference
