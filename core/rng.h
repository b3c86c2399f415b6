// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3"
// (SC 2011). A draw is a pure function of (key, counter): no state, so a sequence's samples never depend on
// its neighbours, on the number of threads or on the backend.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace gantrain {

struct Philox {
  uint64_t key = 0;

  // Four independent 32-bit words for one 128-bit counter (hi, lo).
  std::array<uint32_t, 4> operator()(uint64_t hi, uint64_t lo) const {
    uint32_t c0 = static_cast<uint32_t>(lo), c1 = static_cast<uint32_t>(lo >> 32);
    uint32_t c2 = static_cast<uint32_t>(hi), c3 = static_cast<uint32_t>(hi >> 32);
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
      const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0,
                     n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<uint32_t>(p1);
      c3 = static_cast<uint32_t>(p0);
      c0 = n0;
      c2 = n2;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
  }
};

// A uniform draw from the OPEN interval (0, 1): 23 bits and a half, every value exact in f32, never 0 or 1.
inline float uniform_open(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }

// Two standard normal draws from two words (Box-Muller).
inline std::array<float, 2> normal_pair(uint32_t a, uint32_t b) {
  const float radius = std::sqrt(-2.0f * std::log(uniform_open(a)));
  const float angle = 6.28318530717958647692f * uniform_open(b);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

// A standard Gumbel draw; finite because the uniform is from the open interval.
inline float gumbel(uint32_t word) { return -std::log(-std::log(uniform_open(word))); }

// A key for one purpose out of a run's seed: mixes (seed, purpose, index) with splitmix64 finalisers.
inline uint64_t derive_key(uint64_t seed, uint64_t purpose, uint64_t index = 0) {
  auto mix = [](uint64_t z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  };
  return mix(mix(mix(seed) ^ purpose) ^ index);
}

}  // namespace gantrain
