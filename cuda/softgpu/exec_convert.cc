// cvt: every pair of integer and floating-point types, rounding, saturation, packing of pairs.
#include "cuda/softgpu/exec.h"

namespace softgpu {

float e4m3_to_float(u8 v) {
  const int e = (v >> 3) & 15, m = v & 7;
  float f = (v & 0x7f) == 0x7f ? NAN
            : e == 0           ? std::ldexp(static_cast<float>(m), -9)
                               : std::ldexp(static_cast<float>(8 + m), e - 10);
  return v & 0x80 ? -f : f;
}
float e5m2_to_float(u8 v) { return half_to_float(static_cast<u16>(v << 8)); }
namespace {
u8 float_to_small(float f, int mantissa, int min_exp, float largest, u8 nan, bool relu) {
  if (f != f) return nan;
  if (relu && !(f > 0)) return 0;
  const u8 sign = std::signbit(f) ? 0x80 : 0;
  const double a = std::min(std::fabs(static_cast<double>(f)), static_cast<double>(largest));
  if (a == 0) return sign;
  int e;
  std::frexp(a, &e);
  e = std::max(e - 1, min_exp);
  const double scaled = std::nearbyint(std::ldexp(a, mantissa - e));  // in units of the last place
  const u32 units = static_cast<u32>(scaled);
  const u32 code = units >= (1u << mantissa)
                       ? (static_cast<u32>(e - min_exp + 1) << mantissa) + units - (1u << mantissa)
                       : units;
  const u32 most = mantissa == 3 ? 0x7e : 0x7b;
  return static_cast<u8>(sign | std::min(code, most));
}
}  // namespace
u8 float_to_e4m3(float f, bool relu) { return float_to_small(f, 3, -6, 448.0f, 0x7f, relu); }
u8 float_to_e5m2(float f, bool relu) { return float_to_small(f, 2, -14, 57344.0f, 0x7f, relu); }

namespace {

enum class Num : u8 { kS8, kU8, kS16, kU16, kS32, kU32, kS64, kU64, kF16, kBf16, kF32, kF64 };

template <Num N>
struct Of;
template <>
struct Of<Num::kS8> {
  using type = i8;
};
template <>
struct Of<Num::kU8> {
  using type = u8;
};
template <>
struct Of<Num::kS16> {
  using type = i16;
};
template <>
struct Of<Num::kU16> {
  using type = u16;
};
template <>
struct Of<Num::kS32> {
  using type = i32;
};
template <>
struct Of<Num::kU32> {
  using type = u32;
};
template <>
struct Of<Num::kS64> {
  using type = i64;
};
template <>
struct Of<Num::kU64> {
  using type = u64;
};
template <>
struct Of<Num::kF16> {
  using type = u16;
};
template <>
struct Of<Num::kBf16> {
  using type = u16;
};
template <>
struct Of<Num::kF32> {
  using type = float;
};
template <>
struct Of<Num::kF64> {
  using type = double;
};
constexpr bool is_float(Num n) { return n >= Num::kF16; }

template <class To>
constexpr To clamp_int(__int128 v) {
  constexpr __int128 lo = std::numeric_limits<To>::min(), hi = std::numeric_limits<To>::max();
  return static_cast<To>(v < lo ? lo : v > hi ? hi : v);
}

template <class F>
inline F round_integral(F f, u32 mode) {
  switch (mode & kRoundMask) {
    case kRoundZero:
      return std::trunc(f);
    case kRoundDown:
      return std::floor(f);
    case kRoundUp:
      return std::ceil(f);
    default:
      return std::nearbyint(f);
  }
}
template <class To, class F>
inline To float_to_int(F r) {  // r is integral; out of range saturates, NaN becomes 0
  constexpr F lo = static_cast<F>(std::numeric_limits<To>::min());
  constexpr F hi =
      static_cast<F>(std::numeric_limits<To>::max());  // rounds up to a power of two for wide types
  if (r != r) return 0;
  if (r <= lo) return std::numeric_limits<To>::min();
  if (r >= hi) return std::numeric_limits<To>::max();
  return static_cast<To>(r);
}

// One lane. aux: rounding and modifiers; imm bit 0: an integer rounding (rni..) was written.
template <Num kTo, Num kFrom>
inline typename Of<kTo>::type convert(typename Of<kFrom>::type v, u32 aux, bool integral) {
  using To = typename Of<kTo>::type;
  if constexpr (!is_float(kTo) && !is_float(kFrom)) {
    return aux & kSat ? clamp_int<To>(v) : static_cast<To>(v);
  } else if constexpr (!is_float(kTo)) {
    if constexpr (kFrom == Num::kF64) {
      return float_to_int<To>(round_integral(v, aux));
    } else {
      float f = kFrom == Num::kF16    ? half_to_float(static_cast<u16>(v))
                : kFrom == Num::kBf16 ? bf16_to_float(static_cast<u16>(v))
                                      : static_cast<float>(v);
      if ((aux & kFtz) && std::fabs(f) < 1.17549435e-38f) f = std::copysign(0.0f, f);
      // Through double, which holds every 32-bit integer and all bounds.
      return float_to_int<To>(static_cast<double>(round_integral(f, aux)));
    }
  } else if constexpr (!is_float(kFrom)) {
    if constexpr (kTo == Num::kF64) return static_cast<double>(v);
    if constexpr (kTo == Num::kF32) return static_cast<float>(v);
    if constexpr (kTo == Num::kF16) return float_to_half(to_float_odd(static_cast<double>(v)));
    if constexpr (kTo == Num::kBf16) {
      // A 64-bit integer need not fit a double: keep "inexact" in the last bit of an f32 made by truncation.
      const bool negative = v < 0;
      const u64 mag = negative ? u64{0} - static_cast<u64>(static_cast<i64>(v)) : static_cast<u64>(v);
      if (mag == 0) return 0;
      const int top = 63 - __builtin_clzll(mag);
      const int drop = std::max(0, top - 22);
      const u64 kept = (mag >> drop) | ((mag & ((u64{1} << drop) - 1)) ? 1 : 0);
      const float f = std::ldexp(static_cast<float>(kept), drop);
      return float_to_bf16_mode(negative ? -f : f, aux);
    }
  } else {
    constexpr bool kWide = kFrom == Num::kF64;
    double wide = 0;
    float f = 0;
    if constexpr (kWide) {
      wide = v;
      if constexpr (kTo == Num::kF64) {
        if (integral) wide = round_integral(wide, aux);
        return aux & kSat ? saturate(wide) : wide;
      }
      f = kTo == Num::kF32 ? static_cast<float>(wide) : to_float_odd(wide);
    } else {
      f = kFrom == Num::kF16    ? half_to_float(static_cast<u16>(v))
          : kFrom == Num::kBf16 ? bf16_to_float(static_cast<u16>(v))
                                : static_cast<float>(v);
    }
    if ((aux & kFtz) && std::fabs(f) < 1.17549435e-38f) f = std::copysign(0.0f, f);
    if (integral) f = round_integral(f, aux);
    if (aux & kSat) f = saturate(f);
    if (aux & kRelu) f = f != f ? f : f > 0 ? f : 0.0f;
    if constexpr (kTo == Num::kF64) return static_cast<double>(f);
    if constexpr (kTo == Num::kF32) return canonical(f);
    if constexpr (kTo == Num::kF16) {
      u16 h = float_to_half(f);
      if ((aux & kSatFinite) && (h & 0x7fff) == 0x7c00) h = (h & 0x8000) | 0x7bff;
      return h;
    }
    if constexpr (kTo == Num::kBf16) {
      u16 h = float_to_bf16_mode(f, aux);
      if ((aux & kSatFinite) && (h & 0x7fff) == 0x7f80) h = (h & 0x8000) | 0x7f7f;
      return h;
    }
  }
}

// The common case: registers as wide as their types.
template <Num kTo, Num kFrom>
void cvt(Warp& w, const Inst& in, Mask m) {
  using To = typename Of<kTo>::type;
  using From = typename Of<kFrom>::type;
  To* d = lanes<To>(w, in.ops[0]);
  const From* a = lanes<From>(w, in.ops[1]);
  const u32 aux = in.aux;
  const bool integral = in.imm & 1;
  const RoundingScope scope(aux & kRoundMask);
  if (aux == 0 && !integral) {
    each(m, d, [=](int i) { return convert<kTo, kFrom>(a[i], 0, false); });
  } else {
    each(m, d, [=](int i) { return convert<kTo, kFrom>(a[i], aux, integral); });
  }
}
// Registers wider than the types: read the low part, write extended by the destination's sign.
template <Num kTo, Num kFrom>
void cvt_mixed(Warp& w, const Inst& in, Mask m) {
  using To = typename Of<kTo>::type;
  using From = typename Of<kFrom>::type;
  const char* a = w.base[in.ops[1].base] + in.ops[1].off;
  char* d = w.base[in.ops[0].base] + in.ops[0].off;
  const u32 from_stride = in.ops[1].bits / 8, to_stride = in.ops[0].bits / 8;
  const RoundingScope scope(in.aux & kRoundMask);
  for_lanes(m, [&](int i) {
    From v;
    std::memcpy(&v, a + static_cast<u32>(i) * from_stride, sizeof v);
    const To r = convert<kTo, kFrom>(v, in.aux, in.imm & 1);
    if constexpr (is_float(kTo)) {
      std::memset(d + static_cast<u32>(i) * to_stride, 0, to_stride);
      std::memcpy(d + static_cast<u32>(i) * to_stride, &r, sizeof r);
    } else {
      const i64 wide = static_cast<i64>(r);
      std::memcpy(d + static_cast<u32>(i) * to_stride, &wide, to_stride);
    }
  });
}

template <Num kTo, Num kFrom>
Handler choose(bool mixed) {
  if constexpr (sizeof(typename Of<kTo>::type) == 1 || sizeof(typename Of<kFrom>::type) == 1)
    return cvt_mixed<kTo, kFrom>;
  return mixed ? static_cast<Handler>(cvt_mixed<kTo, kFrom>) : static_cast<Handler>(cvt<kTo, kFrom>);
}
template <Num kTo>
Handler choose_from(Num from, bool mixed) {
  switch (from) {
    case Num::kS8:
      return choose<kTo, Num::kS8>(mixed);
    case Num::kU8:
      return choose<kTo, Num::kU8>(mixed);
    case Num::kS16:
      return choose<kTo, Num::kS16>(mixed);
    case Num::kU16:
      return choose<kTo, Num::kU16>(mixed);
    case Num::kS32:
      return choose<kTo, Num::kS32>(mixed);
    case Num::kU32:
      return choose<kTo, Num::kU32>(mixed);
    case Num::kS64:
      return choose<kTo, Num::kS64>(mixed);
    case Num::kU64:
      return choose<kTo, Num::kU64>(mixed);
    case Num::kF16:
      return choose<kTo, Num::kF16>(mixed);
    case Num::kBf16:
      return choose<kTo, Num::kBf16>(mixed);
    case Num::kF32:
      return choose<kTo, Num::kF32>(mixed);
    default:
      return choose<kTo, Num::kF64>(mixed);
  }
}
Handler choose_both(Num to, Num from, bool mixed) {
  switch (to) {
    case Num::kS8:
      return choose_from<Num::kS8>(from, mixed);
    case Num::kU8:
      return choose_from<Num::kU8>(from, mixed);
    case Num::kS16:
      return choose_from<Num::kS16>(from, mixed);
    case Num::kU16:
      return choose_from<Num::kU16>(from, mixed);
    case Num::kS32:
      return choose_from<Num::kS32>(from, mixed);
    case Num::kU32:
      return choose_from<Num::kU32>(from, mixed);
    case Num::kS64:
      return choose_from<Num::kS64>(from, mixed);
    case Num::kU64:
      return choose_from<Num::kU64>(from, mixed);
    case Num::kF16:
      return choose_from<Num::kF16>(from, mixed);
    case Num::kBf16:
      return choose_from<Num::kBf16>(from, mixed);
    case Num::kF32:
      return choose_from<Num::kF32>(from, mixed);
    default:
      return choose_from<Num::kF64>(from, mixed);
  }
}

bool num_of(const Type& t, Num* n) {
  if (t.pair) return false;
  const bool s = t.kind == 's';
  if (t.kind == 'u' || s) {
    *n = t.bits == 8    ? (s ? Num::kS8 : Num::kU8)
         : t.bits == 16 ? (s ? Num::kS16 : Num::kU16)
         : t.bits == 32 ? (s ? Num::kS32 : Num::kU32)
                        : (s ? Num::kS64 : Num::kU64);
    return true;
  }
  if (t.kind == 'h') return *n = Num::kF16, true;
  if (t.kind == 'B') return *n = Num::kBf16, true;
  if (t.kind == 'f') return *n = t.bits == 32 ? Num::kF32 : Num::kF64, true;
  return false;
}

template <bool kBf16>
void pack_pair(Warp& w, const Inst& in, Mask m) {  // d = {hi: a, lo: b}
  u32* d = lanes<u32>(w, in.ops[0]);
  const float* a = lanes<float>(w, in.ops[1]);
  const float* b = lanes<float>(w, in.ops[2]);
  const u32 aux = in.aux;
  const RoundingScope scope(aux & kRoundMask);
  if (kBf16 && aux == 0) {
    each(m, d, [=](int i) { return (static_cast<u32>(float_to_bf16(a[i])) << 16) | float_to_bf16(b[i]); });
    return;
  }
  constexpr Num kTo = kBf16 ? Num::kBf16 : Num::kF16;
  each(m, d, [=](int i) {
    return (static_cast<u32>(convert<kTo, Num::kF32>(a[i], aux, false)) << 16) |
           convert<kTo, Num::kF32>(b[i], aux, false);
  });
}
template <bool kE5>
void pack_fp8(Warp& w, const Inst& in, Mask m) {
  u16* d = lanes<u16>(w, in.ops[0]);
  const float* a = lanes<float>(w, in.ops[1]);
  const float* b = lanes<float>(w, in.ops[2]);
  const bool relu = in.aux & kRelu;
  each(m, d, [=](int i) {
    const u8 hi = kE5 ? float_to_e5m2(a[i], relu) : float_to_e4m3(a[i], relu);
    const u8 lo = kE5 ? float_to_e5m2(b[i], relu) : float_to_e4m3(b[i], relu);
    return static_cast<u16>((hi << 8) | lo);
  });
}
template <bool kE5>
void pack_fp8_from_half(Warp& w, const Inst& in, Mask m) {
  u16* d = lanes<u16>(w, in.ops[0]);
  const u32* a = lanes<u32>(w, in.ops[1]);
  const bool relu = in.aux & kRelu;
  each(m, d, [=](int i) {
    const float x = half_to_float(static_cast<u16>(a[i] >> 16)), y = half_to_float(static_cast<u16>(a[i]));
    const u8 hi = kE5 ? float_to_e5m2(x, relu) : float_to_e4m3(x, relu),
             lo = kE5 ? float_to_e5m2(y, relu) : float_to_e4m3(y, relu);
    return static_cast<u16>((hi << 8) | lo);
  });
}
template <bool kE5>
void unpack_fp8(Warp& w, const Inst& in, Mask m) {
  u32* d = lanes<u32>(w, in.ops[0]);
  const u16* a = lanes<u16>(w, in.ops[1]);
  each(m, d, [=](int i) {
    const u8 hi = static_cast<u8>(a[i] >> 8), lo = static_cast<u8>(a[i]);
    float x = kE5 ? e5m2_to_float(hi) : e4m3_to_float(hi), y = kE5 ? e5m2_to_float(lo) : e4m3_to_float(lo);
    if (in.aux & kRelu) x = x > 0 ? x : 0, y = y > 0 ? y : 0;
    return (static_cast<u32>(float_to_half(x)) << 16) | float_to_half(y);
  });
}
void to_tf32(Warp& w, const Inst& in, Mask m) {
  float* d = lanes<float>(w, in.ops[0]);
  const float* a = lanes<float>(w, in.ops[1]);
  const bool away = in.imm;  // rna
  const u32 aux = in.aux;
  each(m, d, [=](int i) {
    float f = a[i];
    if (aux & kRelu) f = f > 0 ? f : 0.0f;
    if (away) return round_tf32(f);
    const u32 u = bit<u32>(f);
    if ((u & 0x7f800000) == 0x7f800000) return canonical(f);
    if ((aux & kRoundMask) == kRoundZero) return truncate_tf32(f);
    return bit<float>((u + 0xfff + ((u >> 13) & 1)) & ~u32{0x1fff});
  });
}
// cvt.pack.sat.convertType.s32{.b32} d, a, b{, c}
void pack_integers(Warp& w, const Inst& in, Mask m) {
  u32* d = lanes<u32>(w, in.ops[0]);
  const i32* a = lanes<i32>(w, in.ops[1]);
  const i32* b = lanes<i32>(w, in.ops[2]);
  const u32* c = in.nops > 3 ? lanes<u32>(w, in.ops[3]) : nullptr;
  const int bits = static_cast<int>(in.imm & 255);
  const bool s = in.imm & 256;
  const i64 lo = s ? -(i64{1} << (bits - 1)) : 0, hi = s ? (i64{1} << (bits - 1)) - 1 : (i64{1} << bits) - 1;
  each(m, d, [=](int i) {
    const u32 mask = (1u << bits) - 1;
    const u32 x = static_cast<u32>(std::clamp<i64>(a[i], lo, hi)) & mask,
              y = static_cast<u32>(std::clamp<i64>(b[i], lo, hi)) & mask;
    const u32 pair = (x << bits) | y;
    return bits == 16 ? pair : (c[i] << (2 * bits)) | pair;
  });
}

}  // namespace

bool decode_convert(Decoder& d) {
  if (d.name() != "cvt") return false;
  const auto& t = d.types();
  const u32 aux = float_modifiers(d);
  if (d.has("pack")) {
    if (t.size() < 2) return false;
    std::vector<Ref> refs = {d.dst(0, 32), d.src(1, 32), d.src(2, 32)};
    if (t[0].bits != 16 && d.args() < 4) return false;
    if (t[0].bits != 16) refs.push_back(d.src(3, 32));
    d.emit(pack_integers, Class::kConvert, refs).imm = t[0].bits | (t[0].kind == 's' ? 256 : 0);
    return true;
  }
  if (t.size() != 2) return false;
  if (t[0].kind == 't') {
    Inst& in = d.emit(to_tf32, Class::kConvert, {d.dst(0, 32), d.src(1, 32, 'f')});
    in.aux = aux, in.imm = d.has("rna");
    return true;
  }
  if (t[0].pair) {
    if (d.has("rs")) return false;
    const bool e5 = t[0].name == "e5m2x2";
    if (t[0].kind == 'e' && t[1].kind == 'f') {
      d.emit(e5 ? static_cast<Handler>(pack_fp8<true>) : static_cast<Handler>(pack_fp8<false>),
             Class::kConvert, {d.dst(0, 16), d.src(1, 32, 'f'), d.src(2, 32, 'f')})
          .aux = aux;
      return true;
    }
    if (t[0].kind == 'e' && t[1].name == "f16x2") {
      d.emit(e5 ? static_cast<Handler>(pack_fp8_from_half<true>)
                : static_cast<Handler>(pack_fp8_from_half<false>),
             Class::kConvert, {d.dst(0, 16), d.src(1, 32)})
          .aux = aux;
      return true;
    }
    if (t[0].name == "f16x2" && t[1].kind == 'e') {
      d.emit(t[1].name == "e5m2x2" ? static_cast<Handler>(unpack_fp8<true>)
                                   : static_cast<Handler>(unpack_fp8<false>),
             Class::kConvert, {d.dst(0, 32), d.src(1, 16)})
          .aux = aux;
      return true;
    }
    if (t[1].kind != 'f' || t[1].bits != 32) return false;
    d.emit(t[0].kind == 'B' ? static_cast<Handler>(pack_pair<true>) : static_cast<Handler>(pack_pair<false>),
           Class::kConvert, {d.dst(0, 32), d.src(1, 32, 'f'), d.src(2, 32, 'f')})
        .aux = aux;
    return true;
  }
  Num to, from;
  if (!num_of(t[0], &to) || !num_of(t[1], &from)) return false;
  const bool integral = d.has("rni") || d.has("rzi") || d.has("rmi") || d.has("rpi");
  const Ref source = d.any(d.arg(1), std::max(t[1].bits, 16), t[1].is_float() ? 'f' : 'b');
  const uint16_t to_bits = d.width(d.arg(0));
  const Ref dest = d.dst(0, to_bits ? to_bits : std::max(t[0].bits, 16));
  const bool mixed = source.bits != t[1].bits || dest.bits != t[0].bits;
  if (source.bits < t[1].bits || dest.bits < t[0].bits) d.unknown("register too narrow");
  Inst& in = d.emit(choose_both(to, from, mixed), Class::kConvert, {dest, source});
  in.aux = aux;
  in.imm = integral;
  return true;
}

}  // namespace softgpu
