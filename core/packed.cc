#include "core/packed.h"

#include <cstring>

#include "core/dtype.h"

namespace gantrain {
namespace {

float half(const uint8_t* p) {
  f16 h;
  std::memcpy(&h.bits, p, 2);
  return static_cast<float>(h);
}
float value(int x) { return static_cast<float>(x); }

void unpack_q8_0(const uint8_t* p, float* out) {
  const float d = half(p);
  for (int i = 0; i < 32; ++i) out[i] = d * value(static_cast<int8_t>(p[2 + i]));
}
void unpack_q4_0(const uint8_t* p, float* out) {
  const float d = half(p);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * value((p[2 + i] & 15) - 8);
    out[i + 16] = d * value((p[2 + i] >> 4) - 8);
  }
}
void unpack_q4_1(const uint8_t* p, float* out) {
  const float d = half(p), m = half(p + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * value(p[4 + i] & 15) + m;
    out[i + 16] = d * value(p[4 + i] >> 4) + m;
  }
}
// d, dmin, 12 bytes with eight 6-bit scales and eight 6-bit minima, 128 bytes of nibbles: a group of 32
// values has a scale and a minimum; two groups share 32 bytes, the first in the low nibbles.
void unpack_q4_k(const uint8_t* p, float* out) {
  const float d = half(p), least = half(p + 2);
  const uint8_t *s = p + 4, *q = p + 16;
  for (int g = 0; g < 8; ++g) {
    // The first four have their own six bits; the others four bits each here and two on top of the first
    // four's.
    const int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
    const int minimum = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | (s[g] >> 6) << 4;
    const float step = d * value(scale), offset = least * value(minimum);
    for (int i = 0; i < 32; ++i) {
      const int byte = q[g / 2 * 32 + i];
      out[g * 32 + i] = step * value(g % 2 ? byte >> 4 : byte & 15) - offset;
    }
  }
}
// 128 bytes of low nibbles, 64 bytes of two more bits each, 16 signed scales, d: a group of 16 values has a
// scale. In each half of 128 values, value 32 g + i has its nibble in byte 32 (g mod 2) + i, low for g < 2,
// and bits 2g, 2g + 1 of byte i of the upper bits.
void unpack_q6_k(const uint8_t* p, float* out) {
  const uint8_t *low = p, *high = p + 128;
  const auto* scales = reinterpret_cast<const int8_t*>(p + 192);
  const float d = half(p + 208);
  for (int h = 0; h < 2; ++h)
    for (int g = 0; g < 4; ++g)
      for (int i = 0; i < 32; ++i) {
        const int byte = low[h * 64 + g % 2 * 32 + i], nibble = g < 2 ? byte & 15 : byte >> 4;
        const int top = high[h * 32 + i] >> 2 * g & 3;
        out[h * 128 + g * 32 + i] =
            d * value(scales[h * 8 + g * 2 + i / 16]) * value((nibble | top << 4) - 32);
      }
}

}  // namespace

void unpack_blocks(PackedType type, const void* blocks, int64_t count, float* out) {
  const PackedBlock block = packed_block(type);
  const auto* p = static_cast<const uint8_t*>(blocks);
  const auto each = [&](auto unpack) {
    for (int64_t b = 0; b < count; ++b) unpack(p + b * block.bytes, out + b * block.values);
  };
  switch (type) {
    case PackedType::kQ8_0:
      return each(unpack_q8_0);
    case PackedType::kQ4_0:
      return each(unpack_q4_0);
    case PackedType::kQ4_1:
      return each(unpack_q4_1);
    case PackedType::kQ4_K:
      return each(unpack_q4_k);
    case PackedType::kQ6_K:
      return each(unpack_q6_k);
  }
}

}  // namespace gantrain
