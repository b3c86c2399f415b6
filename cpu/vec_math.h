// Elementary functions written without branches so that the compiler turns loops over them into vector code.
// Relative error below 2 units in the last place of f32 on the ranges named.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace gantrain {

// exp(x); 0 below -87.3, clamped above 88.
inline float fast_exp(float x) {
  const float clamped = x < -87.3f ? -87.3f : (x > 88.0f ? 88.0f : x);
  // 1.5 * 2^23 pushes the fraction out: the sum's low bits are the nearest integer.
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  float p = 1.9875691500e-4f;  // minimax on [-ln2/2, ln2/2], as in Cephes expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const uint32_t scale = (std::bit_cast<uint32_t>(shifted) + 127u) << 23;
  const float y = p * std::bit_cast<float>(scale);
  return x < -87.3f ? 0.0f : y;
}

// log(x) for normal positive x.
inline float fast_log(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  // The exponent that puts the mantissa into [sqrt(1/2), sqrt(2)).
  const int32_t e = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float m = std::bit_cast<float>(bits - (static_cast<uint32_t>(e) << 23));
  const float f = m - 1.0f, n = static_cast<float>(e);
  float p = 7.0376836292e-2f;  // Cephes logf
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float f2 = f * f;
  float y = p * f * f2;
  y += n * -2.12194440e-4f;
  y -= 0.5f * f2;
  return (f + y) + n * 0.693359375f;
}

// tanh(x): Cephes tanhf's polynomial below 0.625, else from exp.
inline float fast_tanh(float x) {
  const float z = x * x, size = std::abs(x);
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x, far = std::copysign(1.0f - 2.0f / (fast_exp(2.0f * size) + 1.0f), x);
  return size < 0.625f ? near : far;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// out[i] = the Gumbel draw of token i under (key, counter), i < count: see core/ops/head.h. The one function
// that both sampling and the head's loss call, so their draws agree bit for bit.
void gumbel_noise(uint64_t key, uint64_t counter, int64_t count, float* out);

float row_max(const float* x, int64_t count);
// out[i] = exp((x[i] - shift) * scale), returns the sum; in-place is fine.
double exp_sum(const float* x, int64_t count, float shift, float scale, float* out);
// The same without keeping the values.
double exp_sum(const float* x, int64_t count, float shift, float scale);
int32_t row_argmax(const float* x, int64_t count);  // lowest index of the largest value

}  // namespace gantrain
