// 16-bit floats, tf32, and the bits of numbers; for the machine and for the stand-ins of libraries.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace softgpu {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i8 = int8_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;

template <class To, class From>
inline To bit(From f) {
  static_assert(sizeof(To) == sizeof(From));
  To t;
  std::memcpy(&t, &f, sizeof t);
  return t;
}

inline float canonical(float f) { return f != f ? bit<float>(u32{0x7fffffff}) : f; }

inline float half_to_float(u16 h) { return _cvtsh_ss(h); }
// By the rounding mode of MXCSR.
inline u16 float_to_half(float f) {
  if (f != f) return 0x7fff;
  return static_cast<u16>(_cvtss_sh(f, _MM_FROUND_CUR_DIRECTION));
}
inline float bf16_to_float(u16 b) { return bit<float>(static_cast<u32>(b) << 16); }
inline u16 float_to_bf16(float f) {  // to nearest even
  const u32 u = bit<u32>(f);
  const u16 r = static_cast<u16>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  return (u & 0x7fffffff) > 0x7f800000 ? u16{0x7fff} : r;
}
inline float round_tf32(float f) {  // to 10 bits, ties away from zero (cvt.rna)
  const u32 u = bit<u32>(f);
  if ((u & 0x7f800000) == 0x7f800000) return canonical(f);
  return bit<float>((u + 0x1000) & ~u32{0x1fff});
}

}  // namespace softgpu
