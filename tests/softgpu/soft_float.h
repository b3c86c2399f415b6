// A reference for floating-point arithmetic that uses no floating-point hardware: values are integers times
// powers of two, sums and products are exact (or carry a sticky bit), and one function rounds to any binary
// format in any mode.
#pragma once

#include <cstdint>

namespace soft {

using u128 = unsigned __int128;

struct Format {
  int mantissa;  // stored bits
  int exponent;  // stored bits
  int bias() const { return (1 << (exponent - 1)) - 1; }
  uint64_t infinity() const { return ((uint64_t{1} << exponent) - 1) << mantissa; }
  uint64_t sign() const { return uint64_t{1} << (mantissa + exponent); }
};
constexpr Format kF16{10, 5}, kBf16{7, 8}, kF32{23, 8}, kF64{52, 11};

enum class Mode { kNearest, kZero, kDown, kUp };

struct Value {
  enum Kind { kFinite, kInfinite, kNan } kind = kFinite;
  bool negative = false;
  u128 m = 0;  // value = m * 2^e
  int e = 0;
};

inline Value decode(uint64_t bits, Format f) {
  Value v;
  v.negative = bits & f.sign();
  const int exp = static_cast<int>((bits >> f.mantissa) & ((1u << f.exponent) - 1));
  const uint64_t man = bits & ((uint64_t{1} << f.mantissa) - 1);
  if (exp == (1 << f.exponent) - 1) {
    v.kind = man ? Value::kNan : Value::kInfinite;
    return v;
  }
  v.m = exp ? man | (uint64_t{1} << f.mantissa) : man;
  v.e = (exp ? exp : 1) - f.bias() - f.mantissa;
  return v;
}

inline int top_bit(u128 m) {  // -1 for 0
  int n = -1;
  while (m) ++n, m >>= 1;
  return n;
}

// Rounds to a format; a value that rounding moves past the largest becomes infinite (or the largest, by
// mode).
inline uint64_t encode(const Value& v, Format f, Mode mode = Mode::kNearest) {
  const uint64_t s = v.negative ? f.sign() : 0;
  if (v.kind == Value::kNan) return (f.infinity() | ((uint64_t{1} << f.mantissa) - 1));
  if (v.kind == Value::kInfinite) return s | f.infinity();
  if (v.m == 0) return s;
  const int min_e = 1 - f.bias() - f.mantissa;  // of a subnormal's last place
  int e = v.e + top_bit(v.m) - f.mantissa;      // of the result's last place
  if (e < min_e) e = min_e;
  const int drop = e - v.e;
  u128 kept = v.m, rest = 0, half = 0;
  if (drop > 127) {
    kept = 0, rest = 1, half = 2;
  } else if (drop > 0) {
    kept = v.m >> drop, rest = v.m & ((u128{1} << drop) - 1), half = u128{1} << (drop - 1);
  } else {
    kept = v.m << -drop;
  }
  bool up = false;
  if (mode == Mode::kNearest) up = rest > half || (rest == half && rest && (kept & 1));
  if (mode == Mode::kUp) up = rest && !v.negative;
  if (mode == Mode::kDown) up = rest && v.negative;
  if (up) ++kept;
  if (kept >> (f.mantissa + 1)) kept >>= 1, ++e;
  const bool normal = (kept >> f.mantissa) != 0;
  const int exp = normal ? e - min_e + 1 : 0;
  if (exp >= (1 << f.exponent) - 1) {
    const bool to_infinity =
        mode == Mode::kNearest || (mode == Mode::kUp && !v.negative) || (mode == Mode::kDown && v.negative);
    return s | (to_infinity ? f.infinity() : f.infinity() - 1);
  }
  return s | (static_cast<uint64_t>(exp) << f.mantissa) |
         static_cast<uint64_t>(kept & ((u128{1} << f.mantissa) - 1));
}

inline Value nan() {
  Value v;
  v.kind = Value::kNan;
  return v;
}

inline Value mul(Value a, Value b) {
  if (a.kind == Value::kNan || b.kind == Value::kNan) return nan();
  const bool negative = a.negative != b.negative;
  if (a.kind == Value::kInfinite || b.kind == Value::kInfinite) {
    if ((a.kind == Value::kFinite && a.m == 0) || (b.kind == Value::kFinite && b.m == 0)) return nan();
    Value v;
    v.kind = Value::kInfinite, v.negative = negative;
    return v;
  }
  Value v;
  v.negative = negative, v.m = a.m * b.m, v.e = a.e + b.e;
  return v;
}

// The sum, exact or with a sticky last bit far below what any format keeps. A zero sum of unlike signs is -0
// only when rounding down.
inline Value add(Value a, Value b, Mode mode = Mode::kNearest) {
  if (a.kind == Value::kNan || b.kind == Value::kNan) return nan();
  if (a.kind == Value::kInfinite || b.kind == Value::kInfinite) {
    if (a.kind == b.kind && a.negative != b.negative) return nan();
    return a.kind == Value::kInfinite ? a : b;
  }
  if (a.m == 0 && b.m == 0) {
    Value v;
    v.negative = a.negative == b.negative ? a.negative : mode == Mode::kDown;
    return v;
  }
  if (a.m == 0) return b;
  if (b.m == 0) return a;
  if (a.e + top_bit(a.m) < b.e + top_bit(b.m)) {
    const Value t = a;
    a = b, b = t;
  }
  const int shift = 124 - top_bit(a.m);
  a.m <<= shift, a.e -= shift;
  const int right = a.e - b.e;
  if (right > 0) {
    const u128 lost = right > 127 ? b.m : b.m & ((u128{1} << right) - 1);
    b.m = right > 127 ? 0 : b.m >> right;
    b.m |= lost ? 1 : 0;
  } else {
    b.m <<= -right;
  }
  Value v;
  v.e = a.e;
  if (a.negative == b.negative) {
    v.negative = a.negative, v.m = a.m + b.m;
  } else if (a.m >= b.m) {
    v.negative = a.m == b.m ? mode == Mode::kDown : a.negative, v.m = a.m - b.m;
  } else {
    v.negative = b.negative, v.m = b.m - a.m;
  }
  return v;
}

inline Value negate(Value v) {
  v.negative = !v.negative;
  return v;
}
inline Value from_integer(bool negative, uint64_t magnitude) {
  Value v;
  v.negative = negative && magnitude, v.m = magnitude;
  return v;
}

}  // namespace soft
