// Random test data out of Philox: the same on every machine, a different stream for every (seed, stream).
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "core/rng.h"

namespace gantrain::test {

// n standard normal values times `scale`.
inline std::vector<float> random_normal(int64_t n, uint64_t seed, float scale = 1.0f) {
  std::vector<float> out(static_cast<size_t>(n));
  const Philox philox{derive_key(seed, 0x66696c6cu)};
  for (int64_t i = 0; i < n; i += 2) {
    const auto words = philox(0, static_cast<uint64_t>(i));
    const auto pair = normal_pair(words[0], words[1]);
    out[static_cast<size_t>(i)] = scale * pair[0];
    if (i + 1 < n) out[static_cast<size_t>(i + 1)] = scale * pair[1];
  }
  return out;
}

// n values from the open interval (lo, hi).
inline std::vector<float> random_uniform(int64_t n, uint64_t seed, float lo, float hi) {
  std::vector<float> out(static_cast<size_t>(n));
  const Philox philox{derive_key(seed, 0x756e6966u)};
  for (int64_t i = 0; i < n; ++i)
    out[static_cast<size_t>(i)] = lo + (hi - lo) * uniform_open(philox(0, static_cast<uint64_t>(i))[0]);
  return out;
}

// n integers from lo .. hi, both included.
inline std::vector<int32_t> random_ints(int64_t n, uint64_t seed, int32_t lo, int32_t hi) {
  std::vector<int32_t> out(static_cast<size_t>(n));
  const Philox philox{derive_key(seed, 0x696e7473u)};
  const uint64_t span = static_cast<uint64_t>(int64_t{hi} - lo + 1);
  for (int64_t i = 0; i < n; ++i)
    out[static_cast<size_t>(i)] = static_cast<int32_t>(
        lo + static_cast<int64_t>((uint64_t{philox(0, static_cast<uint64_t>(i))[0]} * span) >> 32));
  return out;
}

// The same values as the storage type holds them: truth is computed on these.
inline std::vector<float> rounded_to(DType dtype, std::vector<float> values) {
  if (dtype == DType::kBF16)
    for (float& x : values) x = static_cast<float>(bf16(x));
  if (dtype == DType::kF16)
    for (float& x : values) x = static_cast<float>(f16(x));
  return values;
}

// What core/ops/qkv.h's rotary_table gives: of each position cos, then sin of position * inv_freq.
inline std::vector<float> angles_of(const std::vector<int32_t>& positions,
                                    const std::vector<float>& inv_freq) {
  std::vector<float> out;
  for (const int32_t position : positions) {
    for (const float f : inv_freq) out.push_back(static_cast<float>(std::cos(double{f} * position)));
    for (const float f : inv_freq) out.push_back(static_cast<float>(std::sin(double{f} * position)));
  }
  return out;
}

template <typename T>
std::vector<double> to_double(const std::vector<T>& values) {
  return std::vector<double>(values.begin(), values.end());
}

}  // namespace gantrain::test
