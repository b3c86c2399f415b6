#include "core/packed.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/dtype.h"

// Compiled without joining products and sums (core/CMakeLists.txt): each is rounded by itself, as on a GPU.
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

void write_half(uint8_t* p, float value) {
  const f16 h(value);
  std::memcpy(p, &h.bits, 2);
}
float inverse(float d) { return d == 0.0f ? 0.0f : 1.0f / d; }

void pack_q8_0(const float* x, uint8_t* p) {
  float most = 0.0f;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::abs(x[i]));
  const float d = most / 127.0f, scale = inverse(d);
  write_half(p, d);
  for (int i = 0; i < 32; ++i) p[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(std::round(x[i] * scale)));
}
uint8_t to_nibble(float x) { return static_cast<uint8_t>(std::clamp(static_cast<int>(x), 0, 15)); }
void pack_q4_0(const float* x, uint8_t* p) {
  float extreme = 0.0f;  // with its sign: it becomes -8
  for (int i = 0; i < 32; ++i)
    if (std::abs(x[i]) > std::abs(extreme)) extreme = x[i];
  const float d = extreme / -8.0f, scale = inverse(d);
  write_half(p, d);
  const auto q = [&](int i) { return to_nibble(x[i] * scale + 8.5f); };
  for (int i = 0; i < 16; ++i) p[2 + i] = static_cast<uint8_t>(q(i) | q(i + 16) << 4);
}
void pack_q4_1(const float* x, uint8_t* p) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float least = *low, d = (*high - least) / 15.0f, scale = inverse(d);
  write_half(p, d);
  write_half(p + 2, least);
  const auto q = [&](int i) { return to_nibble((x[i] - least) * scale + 0.5f); };
  for (int i = 0; i < 16; ++i) p[4 + i] = static_cast<uint8_t>(q(i) | q(i + 16) << 4);
}

// Values by number, sixteen at a time.
typedef float Table16 __attribute__((vector_size(64)));
typedef int32_t Index16 __attribute__((vector_size(64)));

// 64 values of a block whose 16 possible values are these.
void expand_nibbles(const uint8_t* p, const Table16& table, float* out) {
  constexpr Index16 kShifts = {4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24};
  for (int i = 0; i < 4; ++i) {
    int32_t a, b;  // bytes 8i .. 8i + 7; little-endian, as everything here
    std::memcpy(&a, p + 8 * i, 4);
    std::memcpy(&b, p + 8 * i + 4, 4);
    const Index16 words = {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b};
    const Index16 q = (words >> kShifts) & 15;
    Table16 v;
#if defined(__clang__)
    for (int j = 0; j < 16; ++j) v[j] = table[q[j]];
#else
    v = __builtin_shuffle(table, q);
#endif
    std::memcpy(out + 16 * i, &v, sizeof v);
  }
}

std::array<float, 256> make_values() {
  std::array<float, 256> steps{};
  size_t n = 0;
  double decade = 1e-6;
  for (int i = 0; i < 7; ++i, decade *= 10) {
    // [0.1, 1] in 2^i equal parts: their centres.
    const int parts = 1 << i;
    for (int j = 0; j < parts; ++j) {
      const auto centre = static_cast<float>(decade * (0.1 + 0.9 * (j + 0.5) / parts));
      steps[n++] = centre;
      steps[n++] = -centre;
    }
  }
  steps[n++] = 0.0f;
  steps[n++] = 1.0f;
  std::sort(steps.begin(), steps.end());
  return steps;
}

// The number of the value of an ascending table that is nearest to x; of two the upper one.
template <size_t kCount>
size_t nearest(const float* table, float x) {
  const auto above = static_cast<size_t>(std::lower_bound(table, table + kCount, x) - table);
  if (above == 0) return 0;
  if (above == kCount) return kCount - 1;
  const double low = table[above - 1], high = table[above];
  return static_cast<double>(x) > (low + high) / 2 ? above : above - 1;
}

}  // namespace

const float* nf4_scale_values() {
  static const std::array<float, 256> values = make_values();
  return values.data();
}

float nf4_scale(const Nf4Scales& s, int64_t block) {
  return s.values[s.codes[block]] * s.steps[(s.first + block) / kNf4Group] + s.mean;
}

void unpack_nf4(const void* blocks, const Nf4Scales& scales, int64_t count, float* out) {
  const auto* p = static_cast<const uint8_t*>(blocks);
  Table16 values;
  std::memcpy(&values, kNf4Values, sizeof values);
  for (int64_t b = 0; b < count; ++b) expand_nibbles(p + b * 32, values * nf4_scale(scales, b), out + b * 64);
}

Nf4Quantised quantise_nf4_scales(const std::vector<float>& scales) {
  Nf4Quantised q;
  double sum = 0;
  for (const float s : scales) sum += static_cast<double>(s);
  q.mean = scales.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(scales.size()));
  const size_t group = kNf4Group;
  for (size_t begin = 0; begin < scales.size(); begin += group) {
    const size_t end = std::min(scales.size(), begin + group);
    float most = 0.0f;
    for (size_t i = begin; i < end; ++i) most = std::max(most, std::abs(scales[i] - q.mean));
    q.steps.push_back(most);
    const float inverse_most = inverse(most);
    for (size_t i = begin; i < end; ++i)
      q.codes.push_back(
          static_cast<uint8_t>(nearest<256>(nf4_scale_values(), (scales[i] - q.mean) * inverse_most)));
  }
  return q;
}

void pack_nf4(const float* values, int64_t count, void* blocks, float* scales) {
  auto* p = static_cast<uint8_t*>(blocks);
  for (int64_t b = 0; b < count; ++b, values += 64, p += 32) {
    float most = 0.0f;
    for (int i = 0; i < 64; ++i) most = std::max(most, std::abs(values[i]));
    scales[b] = most;
    const float scale = inverse(most);
    const auto q = [&](int i) { return static_cast<int>(nearest<16>(kNf4Values, values[i] * scale)); };
    for (int i = 0; i < 32; ++i) p[i] = static_cast<uint8_t>(q(2 * i) << 4 | q(2 * i + 1));
  }
}

void pack_blocks(PackedType type, const float* values, int64_t count, void* blocks) {
  const PackedBlock block = packed_block(type);
  const auto each = [&](auto pack) {
    for (int64_t b = 0; b < count; ++b)
      pack(values + b * block.values, static_cast<uint8_t*>(blocks) + b * block.bytes);
  };
  switch (type) {
    case PackedType::kQ8_0:
      return each(pack_q8_0);
    case PackedType::kQ4_0:
      return each(pack_q4_0);
    case PackedType::kQ4_1:
      return each(pack_q4_1);
    default:
      GT_CHECK(false, "values are not packed as {} block by block", block.name);
  }
}

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
    case PackedType::kNf4:
      GT_CHECK(false, "NF4 blocks have their scales beside them: unpack_nf4");
  }
}

}  // namespace gantrain
