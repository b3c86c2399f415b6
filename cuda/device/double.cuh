// The few functions in f64 that kernels need, without branches, calls or tables: nothing on the stack.
// Instructions in f64 are slow where they are many; these are for a handful of values a row.
#pragma once

#include <cstdint>

namespace gantrain::cuda {

// 1 / x for normal x of ordinary size (its reciprocal is normal in f32 too), to 2^-52: the f32 reciprocal and
// two steps of Newton's, each of which squares the error.
__device__ inline double reciprocal(double x) {
  float start;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(start) : "f"(static_cast<float>(x)));
  double y = static_cast<double>(start);
#pragma unroll
  for (int i = 0; i < 2; ++i) y = fma(y, fma(-x, y, 1.0), y);
  return y;
}

// log(x) for positive x that f32 holds as well, to a few units of 2^-52 (absolute where the result is small).
// x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1)) as a series in f = (m - 1) /
// (m + 1), |f| <= 0.1716: the first term left out, 2 f^21 / 21, is below 1e-17. NaN for what is not finite.
__device__ inline double log_of(double x) {
  const int high = __double2hiint(x), shift = (high - 0x3fe6a09e) >> 20;
  const double m = __hiloint2double(high - shift * (1 << 20), __double2loint(x));
  const double f = (m - 1.0) * reciprocal(m + 1.0), s = f * f;
  double p = 2.0 / 19.0;
#pragma unroll
  for (int k = 17; k >= 1; k -= 2) p = fma(p, s, 2.0 / k);
  // The exponent of a NaN is gone by now: x times 0 brings it back.
  return fma(x, 0.0, fma(static_cast<double>(shift), 0.69314718055994530942, p * f));
}

struct SineCosine {
  double sine, cosine;
};
// Of an angle below 2^31: reduced to [-pi / 4, pi / 4] by the nearest multiple of pi / 2, which is subtracted
// in two parts (the first exactly: below 2^31 multiples the difference has no bit under the last of pi / 2);
// then the Taylor series, whose first terms left out are below 1e-16.
__device__ inline SineCosine sine_cosine(double angle) {
  const double turns = rint(angle * 0.63661977236758134308);
  double x = fma(-turns, 1.57079632679489655800, angle);
  x = fma(-turns, 6.12323399573676603587e-17, x);
  const double s = x * x;
  double sine = -1.0 / 1307674368000.0;  // -1 / 15!
  sine = fma(sine, s, 1.0 / 6227020800.0);
  sine = fma(sine, s, -1.0 / 39916800.0);
  sine = fma(sine, s, 1.0 / 362880.0);
  sine = fma(sine, s, -1.0 / 5040.0);
  sine = fma(sine, s, 1.0 / 120.0);
  sine = fma(sine, s, -1.0 / 6.0);
  sine = fma(sine * s, x, x);
  double cosine = 1.0 / 20922789888000.0;  // 1 / 16!
  cosine = fma(cosine, s, -1.0 / 87178291200.0);
  cosine = fma(cosine, s, 1.0 / 479001600.0);
  cosine = fma(cosine, s, -1.0 / 3628800.0);
  cosine = fma(cosine, s, 1.0 / 40320.0);
  cosine = fma(cosine, s, -1.0 / 720.0);
  cosine = fma(cosine, s, 1.0 / 24.0);
  cosine = fma(cosine, s, -0.5);
  cosine = fma(cosine, s, 1.0);
  // Quarter turns: 1 exchanges the two, 2 negates the sine, 1 and 2 the cosine.
  const auto quarter = static_cast<int64_t>(turns);
  const double a = quarter & 1 ? cosine : sine, b = quarter & 1 ? sine : cosine;
  return {quarter & 2 ? -a : a, (quarter + 1) & 2 ? -b : b};
}

}  // namespace gantrain::cuda
