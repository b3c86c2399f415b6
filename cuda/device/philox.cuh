// Philox4x32-10 (Salmon et al., SC 2011) and the draws made of it: the words are those of core/rng.h, bit for
// bit; normals and Gumbel draws differ by the roundings of log, sin and cos.
#pragma once

#include <cstdint>

namespace gantrain::cuda {

struct PhiloxWords {
  uint32_t word[4];
};
// Four words for one 128-bit counter (hi, lo) under a key.
__device__ inline PhiloxWords philox(uint64_t key, uint64_t hi, uint64_t lo) {
  uint32_t c0 = static_cast<uint32_t>(lo), c1 = static_cast<uint32_t>(lo >> 32);
  uint32_t c2 = static_cast<uint32_t>(hi), c3 = static_cast<uint32_t>(hi >> 32);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t low0 = 0xD2511F53u * c0, high0 = __umulhi(0xD2511F53u, c0);
    const uint32_t low1 = 0xCD9E8D57u * c2, high1 = __umulhi(0xCD9E8D57u, c2);
    c0 = high1 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// From the open interval (0, 1); every value is exact in f32.
__device__ inline float uniform_open(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}
// A standard Gumbel draw; finite because the uniform is from the open interval.
__device__ inline float gumbel(uint32_t word) { return -logf(-logf(uniform_open(word))); }
// Two standard normal draws (Box-Muller). The angle is given in half turns, which need no reduction:
// sincosf's own, for large arguments, would take a table on the stack.
__device__ inline float2 normal_pair(uint32_t a, uint32_t b) {
  const float radius = sqrtf(-2.0f * logf(uniform_open(a)));
  float sine, cosine;
  sincospif(2.0f * uniform_open(b), &sine, &cosine);
  return {radius * cosine, radius * sine};
}

}  // namespace gantrain::cuda
