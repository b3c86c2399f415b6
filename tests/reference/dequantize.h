// Value i of a packed block, one at a time, from the formats' description: a block is its bytes, a value a
// formula of its place.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace gantrain::reference {

inline double half_value(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -size : size;
}
inline int signed_byte(uint8_t b) { return b < 128 ? b : b - 256; }
inline int nibble(const uint8_t* p, size_t byte, bool high) { return high ? p[byte] / 16 : p[byte] % 16; }

// d q
inline double q8_0_value(const uint8_t* b, size_t i) { return half_value(b) * signed_byte(b[2 + i]); }
// d (q - 8); value i and i + 16 share a byte.
inline double q4_0_value(const uint8_t* b, size_t i) {
  return half_value(b) * (nibble(b + 2, i % 16, i >= 16) - 8);
}
// d q + m
inline double q4_1_value(const uint8_t* b, size_t i) {
  return half_value(b) * nibble(b + 4, i % 16, i >= 16) + half_value(b + 2);
}
// d s[g] q - dmin m[g], g = i / 32. The 96 bits behind d and dmin: bytes 0 to 3 end in s[0..3], bytes 4 to 7
// in m[0..3], six bits each; bytes 8 to 11 hold the low four bits of s[4..7] and, above them, of m[4..7],
// whose upper two bits lead bytes 0 to 3 and 4 to 7.
inline double q4_k_value(const uint8_t* b, size_t i) {
  const uint8_t* packed = b + 4;
  const size_t g = i / 32, k = g % 4;
  int scale = packed[k] % 64, minimum = packed[4 + k] % 64;
  if (g >= 4) {
    scale = packed[8 + k] % 16 + packed[k] / 64 * 16;
    minimum = packed[8 + k] / 16 + packed[4 + k] / 64 * 16;
  }
  const int q = nibble(b + 16, i / 64 * 32 + i % 32, i % 64 >= 32);
  return half_value(b) * scale * q - half_value(b + 2) * minimum;
}
// d s[i / 16] (q - 32): four bits in b[0..127], two in b[128..191], s in b[192..207], d at the end.
inline double q6_k_value(const uint8_t* b, size_t i) {
  const size_t half = i / 128, place = i % 128;
  const int low = nibble(b, half * 64 + place % 64, place >= 64);
  int high = b[128 + half * 32 + place % 32];
  for (size_t g = 0; g < place / 32; ++g) high /= 4;
  return half_value(b + 208) * signed_byte(b[192 + i / 16]) * (low + high % 4 * 16 - 32);
}

// The value of NF4's four bits, which stand in the upper half of a byte for even i.
inline double nf4_value(const uint8_t* b, size_t i) {
  constexpr double kValues[] = {-1.0,
                                -0.6961928009986877,
                                -0.5250730514526367,
                                -0.39491748809814453,
                                -0.28444138169288635,
                                -0.18477343022823334,
                                -0.09105003625154495,
                                0.0,
                                0.07958029955625534,
                                0.16093020141124725,
                                0.24611230194568634,
                                0.33791524171829224,
                                0.44070982933044434,
                                0.5626170039176941,
                                0.7229568362236023,
                                1.0};
  return kValues[nibble(b, i / 2, i % 2 == 0)];
}
// The value of a scale's code, rounded to f32: 127 is zero, 255 one. The n-th above zero, n = 1 .. 127 from
// below, is the middle of one of 2^e equal parts of [10^(e - 7), 10^(e - 6)], e the place of n's highest bit
// and n's other bits the part's number; those below zero are the same with their sign.
inline double dynamic_value(int code) {
  if (code == 127) return 0;
  if (code == 255) return 1;
  const int n = code > 127 ? code - 127 : 127 - code;
  int e = 0;
  while (n >> (e + 1)) ++e;
  const double parts = std::ldexp(1.0, e),
               size = std::pow(10.0, e - 6) * (0.1 + 0.9 * (n - parts + 0.5) / parts);
  return static_cast<double>(static_cast<float>(code > 127 ? size : -size));
}

}  // namespace gantrain::reference
