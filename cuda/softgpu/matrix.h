// Elements of matrix instructions, for mma.sync and wgmma.
#pragma once

#include "cuda/softgpu/exec.h"

namespace softgpu {

enum class Element : u8 { kF16, kBf16, kTf32, kE4m3, kE5m2, kS8, kU8, kS4, kU4 };
constexpr int element_bits(Element e) {
  return e <= Element::kBf16 ? 16 : e == Element::kTf32 ? 32 : e <= Element::kU8 ? 8 : 4;
}
constexpr int element_bytes(Element e) { return element_bits(e) / 8; }  // not of 4 bits
constexpr bool is_integer(Element e) { return e >= Element::kS8; }

// The values of kBytes bytes of elements, as float or i32.
template <Element E, int kBytes, class T>
inline void widen(const void* from, T* out) {
  constexpr int n = kBytes * 8 / element_bits(E);
  if constexpr (E == Element::kF16) {
    const u16* h = static_cast<const u16*>(from);
    for (int i = 0; i < n; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(h + i))));
  } else if constexpr (E == Element::kBf16) {
    const u16* h = static_cast<const u16*>(from);
    for (int i = 0; i < n; ++i) out[i] = bf16_to_float(h[i]);
  } else if constexpr (E == Element::kTf32) {
    const u32* f = static_cast<const u32*>(from);
    for (int i = 0; i < n; ++i) out[i] = truncate_tf32(bit<float>(f[i]));
  } else {
    const u8* b = static_cast<const u8*>(from);
    for (int i = 0; i < n; ++i) {
      if constexpr (E == Element::kS4) out[i] = static_cast<i8>(b[i / 2] << (i % 2 ? 0 : 4)) >> 4;
      if constexpr (E == Element::kU4) out[i] = b[i / 2] >> (i % 2 * 4) & 15;
      if constexpr (E == Element::kE4m3) out[i] = e4m3_to_float(b[i]);
      if constexpr (E == Element::kE5m2) out[i] = e5m2_to_float(b[i]);
      if constexpr (E == Element::kS8) out[i] = static_cast<i8>(b[i]);
      if constexpr (E == Element::kU8) out[i] = b[i];
    }
  }
}
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline i32 multiply_add(i32 a, i32 b, i32 c) {
  return static_cast<i32>(static_cast<u32>(c) + static_cast<u32>(a) * static_cast<u32>(b));
}

inline i32 saturating_add(i32 a, i32 b) {
  i32 sum;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return a < 0 ? INT32_MIN : INT32_MAX;
}

}  // namespace softgpu
