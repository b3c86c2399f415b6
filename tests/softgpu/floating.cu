// Floating-point instructions and conversions against the reference of soft_float.h, which uses no floating
// point.
#include <cmath>

#include "tests/softgpu/cases.h"
#include "tests/softgpu/soft_float.h"

using soft::Mode;

u32 flush(u32 a) { return (a & 0x7f800000) ? a : a & 0x80000000; }
template <class T>
constexpr soft::Format format() {
  return sizeof(T) == 8 ? soft::kF64 : soft::kF32;
}
template <class T>
T add(T a, T b, Mode m) {
  return static_cast<T>(
      soft::encode(soft::add(soft::decode(a, format<T>()), soft::decode(b, format<T>()), m), format<T>(), m));
}
template <class T>
T sub(T a, T b, Mode m) {
  return static_cast<T>(
      soft::encode(soft::add(soft::decode(a, format<T>()), soft::negate(soft::decode(b, format<T>())), m),
                   format<T>(), m));
}
template <class T>
T mul(T a, T b, Mode m) {
  return static_cast<T>(
      soft::encode(soft::mul(soft::decode(a, format<T>()), soft::decode(b, format<T>())), format<T>(), m));
}
u64 fma_bits(u64 a, u64 b, u64 c, soft::Format f, Mode m) {
  return soft::encode(soft::add(soft::mul(soft::decode(a, f), soft::decode(b, f)), soft::decode(c, f), m), f,
                      m);
}
u32 saturate(u32 a) {
  if ((a & 0x7fffffff) > 0x7f800000 || (a & 0x80000000)) return 0;
  return a > 0x3f800000 ? 0x3f800000 : a;
}

#define F32_2(NAME, ASM, HOST, SAME)                                                                       \
  DEFINE(NAME, u32, "=r", u32, "r", u32, "r", u32, "r",                                                    \
         "{ .reg .f32 a,b,r; mov.b32 a, %1; mov.b32 b, %2; " ASM " r, a, b; mov.b32 %0, r; } // %3",       \
         f32_values(), f32_values(), std::vector<u32>{0}, ([](u32 a, u32 b, u32) -> u32 { return HOST; }), \
         SAME)
#define F32_3(NAME, ASM, HOST, SAME)                                              \
  DEFINE(NAME, u32, "=r", u32, "r", u32, "r", u32, "r",                           \
         "{ .reg .f32 a,b,c,r; mov.b32 a, %1; mov.b32 b, %2; mov.b32 c, %3; " ASM \
         " r, a, b, c; mov.b32 %0, r; }",                                         \
         f32_values(), f32_values(), f32_values(), ([](u32 a, u32 b, u32 c) -> u32 { return HOST; }), SAME)
#define F32_1(NAME, ASM, HOST, SAME)                                                              \
  DEFINE(NAME, u32, "=r", u32, "r", u32, "r", u32, "r",                                           \
         "{ .reg .f32 a,r; mov.b32 a, %1; " ASM " r, a; mov.b32 %0, r; } // %2 %3", f32_values(), \
         f32_values(), std::vector<u32>{0}, ([](u32 a, u32, u32) -> u32 { return HOST; }), SAME)
#define F64_2(NAME, ASM, HOST)                                                                             \
  DEFINE(NAME, u64, "=l", u64, "l", u64, "l", u64, "l",                                                    \
         "{ .reg .f64 a,b,r; mov.b64 a, %1; mov.b64 b, %2; " ASM " r, a, b; mov.b64 %0, r; } // %3",       \
         f64_values(), f64_values(), std::vector<u64>{0}, ([](u64 a, u64 b, u64) -> u64 { return HOST; }), \
         equal_f64)
#define F64_3(NAME, ASM, HOST)                                                                        \
  DEFINE(NAME, u64, "=l", u64, "l", u64, "l", u64, "l",                                               \
         "{ .reg .f64 a,b,c,r; mov.b64 a, %1; mov.b64 b, %2; mov.b64 c, %3; " ASM                     \
         " r, a, b, c; mov.b64 %0, r; }",                                                             \
         f64_values(), f64_values(), f64_values(), ([](u64 a, u64 b, u64 c) -> u64 { return HOST; }), \
         equal_f64)
#define MODES(X) X(rn, Mode::kNearest) X(rz, Mode::kZero) X(rm, Mode::kDown) X(rp, Mode::kUp)
#define ARITHMETIC(M, MODE)                                                             \
  F32_2(add_##M, "add." #M ".f32", (add<u32>(a, b, MODE)), equal_f32)                   \
  F32_2(sub_##M, "sub." #M ".f32", (sub<u32>(a, b, MODE)), equal_f32)                   \
  F32_2(mul_##M, "mul." #M ".f32", (mul<u32>(a, b, MODE)), equal_f32)                   \
  F32_3(fma_##M, "fma." #M ".f32", (u32)fma_bits(a, b, c, soft::kF32, MODE), equal_f32) \
  F64_2(add64_##M, "add." #M ".f64", (add<u64>(a, b, MODE)))                            \
  F64_2(sub64_##M, "sub." #M ".f64", (sub<u64>(a, b, MODE)))                            \
  F64_2(mul64_##M, "mul." #M ".f64", (mul<u64>(a, b, MODE)))                            \
  F64_3(fma64_##M, "fma." #M ".f64", fma_bits(a, b, c, soft::kF64, MODE))
MODES(ARITHMETIC)

F32_2(add_ftz, "add.ftz.f32", flush(add(flush(a), flush(b), Mode::kNearest)), equal_f32)
F32_2(mul_sat, "mul.sat.f32", saturate(mul(a, b, Mode::kNearest)), equal_f32)
F32_3(fma_sat, "fma.rn.sat.f32", saturate((u32)fma_bits(a, b, c, soft::kF32, Mode::kNearest)), equal_f32)
// IEEE division and square root of the host are correctly rounded.
F32_2(div_rn, "div.rn.f32", bits_as<u32>(bits_as<float>(a) / bits_as<float>(b)), equal_f32)
F32_1(sqrt_rn, "sqrt.rn.f32", bits_as<u32>(std::sqrt(bits_as<float>(a))), equal_f32)
F32_1(rcp_rn, "rcp.rn.f32", bits_as<u32>(1.0f / bits_as<float>(a)), equal_f32)
F64_2(div64_rn, "div.rn.f64", bits_as<u64>(bits_as<double>(a) / bits_as<double>(b)))
DEFINE(sqrt64_rn, u64, "=l", u64, "l", u64, "l", u64, "l",
       "{ .reg .f64 a,r; mov.b64 a, %1; sqrt.rn.f64 r, a; mov.b64 %0, r; } // %2 %3", f64_values(),
       f64_values(), std::vector<u64>{0},
       ([](u64 a, u64, u64) -> u64 { return bits_as<u64>(std::sqrt(bits_as<double>(a))); }), equal_f64)

template <class T>
T pick(T a, T b, bool largest, bool nan_mode, soft::Format f) {
  const soft::Value x = soft::decode(a, f), y = soft::decode(b, f);
  const bool nx = x.kind == soft::Value::kNan, ny = y.kind == soft::Value::kNan;
  if ((nx || ny) && (nan_mode || (nx && ny))) return static_cast<T>(soft::encode(soft::nan(), f));
  if (nx) return b;
  if (ny) return a;
  const auto order = [&](T v) {
    return v & f.sign() ? -static_cast<i64>(v & (f.sign() - 1)) - 1 : static_cast<i64>(v);
  };  // -0 < +0
  return (order(a) < order(b)) == largest ? b : a;
}
F32_2(min_f32, "min.f32", pick(a, b, false, false, soft::kF32), equal_f32)
F32_2(max_f32, "max.f32", pick(a, b, true, false, soft::kF32), equal_f32)
F32_2(max_nan_f32, "max.NaN.f32", pick(a, b, true, true, soft::kF32), equal_f32)
F64_2(min_f64, "min.f64", pick(a, b, false, false, soft::kF64))
F32_2(copysign_f32, "copysign.f32", (a & 0x80000000) | (b & 0x7fffffff), equal_f32)
F32_1(neg_f32, "neg.f32", a ^ 0x80000000, equal_f32)
F32_1(abs_f32, "abs.f32", a & 0x7fffffff, equal_f32)

// Approximate functions: within the error the PTX ISA allows them (ours are far better).
template <class F>
u32 approx(u32 a, F f) {
  return bits_as<u32>(static_cast<float>(f(static_cast<double>(bits_as<float>(a)))));
}
#define NEAR(n) [](u32 a, u32 b) { return near_f32(a, b, n); }
F32_1(ex2, "ex2.approx.f32", approx(a, [](double x) { return std::exp2(x); }), NEAR(2))
F32_1(lg2, "lg2.approx.f32", approx(a, [](double x) { return x < 0 ? NAN : std::log2(x); }), NEAR(2))
F32_1(rsqrt, "rsqrt.approx.f32", approx(a, [](double x) { return 1 / std::sqrt(x); }), NEAR(2))
F32_1(rcp_approx, "rcp.approx.f32", approx(a, [](double x) { return 1 / x; }), NEAR(1))
F32_1(sqrt_approx, "sqrt.approx.f32", approx(a, [](double x) { return std::sqrt(x); }), NEAR(1))
F32_1(tanh_approx, "tanh.approx.f32", approx(a, [](double x) { return std::tanh(x); }), NEAR(2))
F32_1(sin_approx, "sin.approx.f32", approx(a, [](double x) { return std::sin(x); }), NEAR(2))
F32_1(cos_approx, "cos.approx.f32", approx(a, [](double x) { return std::cos(x); }), NEAR(2))
F32_2(div_full, "div.full.f32", bits_as<u32>(bits_as<float>(a) / bits_as<float>(b)), NEAR(2))

// 16-bit floats, alone and in pairs.
u16 half2_op(u16 a, u16 b, u16 c, char op, soft::Format f) {
  const soft::Value x = soft::decode(a, f), y = soft::decode(b, f), z = soft::decode(c, f);
  switch (op) {
    case '+':
      return static_cast<u16>(soft::encode(soft::add(x, y), f));
    case '-':
      return static_cast<u16>(soft::encode(soft::add(x, soft::negate(y)), f));
    case '*':
      return static_cast<u16>(soft::encode(soft::mul(x, y), f));
    case 'f':
      return static_cast<u16>(soft::encode(soft::add(soft::mul(x, y), z), f));
    case 'r': {  // fma.relu
      const u16 v = static_cast<u16>(soft::encode(soft::add(soft::mul(x, y), z), f));
      return (v & 0x7fff) > f.infinity() ? v : v & 0x8000 ? 0 : v;
    }
    case '<':
      return pick(a, b, false, false, f);
    default:
      return pick(a, b, true, false, f);
  }
}
#define HALF(NAME, ASM, OP, VALUES, FORMAT, SAME)                                                           \
  DEFINE(NAME, u16, "=h", u16, "h", u16, "h", u16, "h", "{ .reg .b16 z; mov.b16 z, %3; " ASM "; }", VALUES, \
         VALUES, VALUES, ([](u16 a, u16 b, u16 c) -> u16 { return half2_op(a, b, c, OP, FORMAT); }), SAME)
#define HALVES(T, VALUES, FORMAT, SAME)                                              \
  HALF(add_##T, "add.rn." #T " %0, %1, %2", '+', VALUES, FORMAT, SAME)               \
  HALF(sub_##T, "sub.rn." #T " %0, %1, %2", '-', VALUES, FORMAT, SAME)               \
  HALF(mul_##T, "mul.rn." #T " %0, %1, %2", '*', VALUES, FORMAT, SAME)               \
  HALF(fma_##T, "fma.rn." #T " %0, %1, %2, %3", 'f', VALUES, FORMAT, SAME)           \
  HALF(fma_relu_##T, "fma.rn.relu." #T " %0, %1, %2, %3", 'r', VALUES, FORMAT, SAME) \
  HALF(min_##T, "min." #T " %0, %1, %2", '<', VALUES, FORMAT, SAME)                  \
  HALF(max_##T, "max." #T " %0, %1, %2", '>', VALUES, FORMAT, SAME)
HALVES(f16, f16_values(), soft::kF16, equal_f16)
HALVES(bf16, bf16_values(), soft::kBf16, equal_bf16)
template <class T>
std::vector<u32> pairs(const std::vector<T>& v) {
  std::vector<u32> out;
  for (size_t i = 0; i < v.size(); ++i) out.push_back(v[i] | u32(v[(i * 5 + 3) % v.size()]) << 16);
  return out;
}
u32 both(u32 a, u32 b, u32 c, char op, soft::Format f) {
  return half2_op(u16(a), u16(b), u16(c), op, f) |
         u32(half2_op(u16(a >> 16), u16(b >> 16), u16(c >> 16), op, f)) << 16;
}
#define PAIR(NAME, ASM, OP, VALUES, FORMAT, SAME)                                                   \
  DEFINE(NAME, u32, "=r", u32, "r", u32, "r", u32, "r", "{ .reg .b32 z; mov.b32 z, %3; " ASM "; }", \
         pairs(VALUES), pairs(VALUES), pairs(VALUES),                                               \
         ([](u32 a, u32 b, u32 c) -> u32 { return both(a, b, c, OP, FORMAT); }),                    \
         ([](u32 a, u32 b) { return SAME(u16(a), u16(b)) && SAME(u16(a >> 16), u16(b >> 16)); }))
PAIR(add_f16x2, "add.rn.f16x2 %0, %1, %2", '+', f16_values(), soft::kF16, equal_f16)
PAIR(mul_bf16x2, "mul.rn.bf16x2 %0, %1, %2", '*', bf16_values(), soft::kBf16, equal_bf16)
PAIR(fma_f16x2, "fma.rn.f16x2 %0, %1, %2, %3", 'f', f16_values(), soft::kF16, equal_f16)
PAIR(fma_bf16x2, "fma.rn.bf16x2 %0, %1, %2, %3", 'f', bf16_values(), soft::kBf16, equal_bf16)
PAIR(max_bf16x2, "max.bf16x2 %0, %1, %2", '>', bf16_values(), soft::kBf16, equal_bf16)

// Conversions between floats: every pair, every mode.
template <class T>
u64 reformat(T a, soft::Format from, soft::Format to, Mode m) {
  return soft::encode(soft::decode(a, from), to, m);
}
#define NARROW(NAME, ASM, D, CD, RD, A, CA, RA, VALUES, FROM, TO, MODE, SAME)                          \
  DEFINE(NAME, D, "=" CD, A, CA, A, CA, A, CA,                                                         \
         "{ .reg " RA " a; .reg " RD " r; mov" RA " a, %1; " ASM " r, a; mov" RD " %0, r; } // %2 %3", \
         VALUES, std::vector<A>{0}, std::vector<A>{0},                                                 \
         ([](A a, A, A) -> D { return static_cast<D>(reformat(a, FROM, TO, MODE)); }), SAME)
#define NARROWING(M, MODE)                                                                                   \
  NARROW(f32_to_f16_##M, "cvt." #M ".f16.f32", u16, "h", ".b16", u32, "r", ".b32", f32_values(), soft::kF32, \
         soft::kF16, MODE, equal_f16)                                                                        \
  NARROW(f64_to_f32_##M, "cvt." #M ".f32.f64", u32, "r", ".b32", u64, "l", ".b64", f64_values(), soft::kF64, \
         soft::kF32, MODE, equal_f32)                                                                        \
  NARROW(f64_to_f16_##M, "cvt." #M ".f16.f64", u16, "h", ".b16", u64, "l", ".b64", f64_values(), soft::kF64, \
         soft::kF16, MODE, equal_f16)
MODES(NARROWING)
NARROW(f32_to_bf16_rn, "cvt.rn.bf16.f32", u16, "h", ".b16", u32, "r", ".b32", f32_values(), soft::kF32,
       soft::kBf16, Mode::kNearest, equal_bf16)
NARROW(f32_to_bf16_rz, "cvt.rz.bf16.f32", u16, "h", ".b16", u32, "r", ".b32", f32_values(), soft::kF32,
       soft::kBf16, Mode::kZero, equal_bf16)
NARROW(f16_to_f32, "cvt.f32.f16", u32, "r", ".b32", u16, "h", ".b16", f16_values(), soft::kF16, soft::kF32,
       Mode::kNearest, equal_f32)
NARROW(f16_to_f64, "cvt.f64.f16", u64, "l", ".b64", u16, "h", ".b16", f16_values(), soft::kF16, soft::kF64,
       Mode::kNearest, equal_f64)
NARROW(bf16_to_f32, "cvt.f32.bf16", u32, "r", ".b32", u16, "h", ".b16", bf16_values(), soft::kBf16,
       soft::kF32, Mode::kNearest, equal_f32)
NARROW(f32_to_f64, "cvt.f64.f32", u64, "l", ".b64", u32, "r", ".b32", f32_values(), soft::kF32, soft::kF64,
       Mode::kNearest, equal_f64)
DEFINE(f32_to_f16x2, u32, "=r", u32, "r", u32, "r", u32, "r",
       "{ .reg .f32 a,b; mov.b32 a, %1; mov.b32 b, %2; cvt.rn.f16x2.f32 %0, a, b; } // %3", f32_values(),
       f32_values(), std::vector<u32>{0}, ([](u32 a, u32 b, u32) -> u32 {
         return static_cast<u32>(reformat(a, soft::kF32, soft::kF16, Mode::kNearest) << 16 |
                                 reformat(b, soft::kF32, soft::kF16, Mode::kNearest));
       }),
       ([](u32 a, u32 b) { return equal_f16(u16(a), u16(b)) && equal_f16(u16(a >> 16), u16(b >> 16)); }))
DEFINE(f32_to_bf16x2, u32, "=r", u32, "r", u32, "r", u32, "r",
       "{ .reg .f32 a,b; mov.b32 a, %1; mov.b32 b, %2; cvt.rn.bf16x2.f32 %0, a, b; } // %3", f32_values(),
       f32_values(), std::vector<u32>{0}, ([](u32 a, u32 b, u32) -> u32 {
         return static_cast<u32>(reformat(a, soft::kF32, soft::kBf16, Mode::kNearest) << 16 |
                                 reformat(b, soft::kF32, soft::kBf16, Mode::kNearest));
       }),
       ([](u32 a, u32 b) { return equal_bf16(u16(a), u16(b)) && equal_bf16(u16(a >> 16), u16(b >> 16)); }))
// tf32: ten bits, ties away from zero.
u32 tf32(u32 a) {
  return (a & 0x7f800000) == 0x7f800000 ? ((a & 0x7fffff) ? 0x7fffffff : a) : (a + 0x1000) & 0xffffe000;
}
DEFINE(cvt_rna_tf32, u32, "=r", u32, "r", u32, "r", u32, "r",
       "{ .reg .f32 a; mov.b32 a, %1; cvt.rna.tf32.f32 %0, a; } // %2 %3", f32_values(), std::vector<u32>{0},
       std::vector<u32>{0}, ([](u32 a, u32, u32) -> u32 { return tf32(a); }), equal_f32)

// Floats to integers: rounded to an integer, out of range to the nearest bound, NaN to 0.
i64 to_integer(u64 bits, soft::Format f, Mode m, bool is_signed, int width) {
  const soft::Value v = soft::decode(bits, f);
  if (v.kind == soft::Value::kNan) return 0;
  const unsigned __int128 one = 1;
  unsigned __int128 magnitude;
  if (v.kind == soft::Value::kInfinite || (v.m && v.e + soft::top_bit(v.m) > 70)) {
    magnitude = one << 70;
  } else if (v.e >= 0) {
    magnitude = v.m << v.e;
  } else if (v.e < -120) {
    magnitude = v.m && ((m == Mode::kUp && !v.negative) || (m == Mode::kDown && v.negative));
  } else {
    magnitude = v.m >> -v.e;
    const unsigned __int128 rest = v.m & ((one << -v.e) - 1), half = one << (-v.e - 1);
    magnitude += m == Mode::kNearest
                     ? rest > half || (rest == half && (magnitude & 1))
                     : rest && ((m == Mode::kUp && !v.negative) || (m == Mode::kDown && v.negative));
  }
  if (is_signed) {
    const unsigned __int128 most = one << (width - 1);
    if (v.negative)
      return magnitude >= most ? static_cast<i64>(0 - static_cast<u64>(most)) : -static_cast<i64>(magnitude);
    return static_cast<i64>(magnitude >= most ? most - 1 : magnitude);
  }
  if (v.negative) return 0;
  return static_cast<i64>(static_cast<u64>(magnitude >= (one << width) ? (one << width) - 1 : magnitude));
}
#define TO_INT(NAME, ASM, D, CD, A, CA, RA, VALUES, FROM, MODE, SIGNED, WIDTH)                      \
  DEFINE(NAME, D, "=" CD, A, CA, A, CA, A, CA,                                                      \
         "{ .reg " RA " a; mov" RA " a, %1; " ASM " %0, a; } // %2 %3", VALUES, std::vector<A>{0},  \
         std::vector<A>{0},                                                                         \
         ([](A a, A, A) -> D { return static_cast<D>(to_integer(a, FROM, MODE, SIGNED, WIDTH)); }), \
         equal_bits<D>)
#define TO_INTS(M, MODE)                                                                                    \
  TO_INT(f32_to_s32_##M, "cvt." #M "i.s32.f32", u32, "r", u32, "r", ".b32", f32_values(), soft::kF32, MODE, \
         true, 32)                                                                                          \
  TO_INT(f32_to_u32_##M, "cvt." #M "i.u32.f32", u32, "r", u32, "r", ".b32", f32_values(), soft::kF32, MODE, \
         false, 32)                                                                                         \
  TO_INT(f32_to_s64_##M, "cvt." #M "i.s64.f32", u64, "l", u32, "r", ".b32", f32_values(), soft::kF32, MODE, \
         true, 64)                                                                                          \
  TO_INT(f64_to_u64_##M, "cvt." #M "i.u64.f64", u64, "l", u64, "l", ".b64", f64_values(), soft::kF64, MODE, \
         false, 64)                                                                                         \
  TO_INT(f64_to_s32_##M, "cvt." #M "i.s32.f64", u32, "r", u64, "l", ".b64", f64_values(), soft::kF64, MODE, \
         true, 32)                                                                                          \
  TO_INT(f16_to_s16_##M, "cvt." #M "i.s16.f16", u16, "h", u16, "h", ".b16", f16_values(), soft::kF16, MODE, \
         true, 16)
MODES(TO_INTS)

// Integers to floats.
#define FROM_INT(NAME, ASM, D, CD, RD, A, CA, TO, MODE, SIGNED, SAME)                             \
  DEFINE(NAME, D, "=" CD, A, CA, A, CA, A, CA,                                                    \
         "{ .reg " RD " r; " ASM " r, %1; mov" RD " %0, r; } // %2 %3", integer_values<A>(),      \
         std::vector<A>{0}, std::vector<A>{0}, ([](A a, A, A) -> D {                              \
           const bool n = SIGNED && a < 0;                                                        \
           return static_cast<D>(                                                                 \
               soft::encode(soft::from_integer(n, n ? u64(0) - u64(i64(a)) : u64(a)), TO, MODE)); \
         }),                                                                                      \
         SAME)
#define FROM_INTS(M, MODE)                                                                            \
  FROM_INT(s32_to_f32_##M, "cvt." #M ".f32.s32", u32, "r", ".b32", i32, "r", soft::kF32, MODE, true,  \
           equal_f32)                                                                                 \
  FROM_INT(u32_to_f32_##M, "cvt." #M ".f32.u32", u32, "r", ".b32", u32, "r", soft::kF32, MODE, false, \
           equal_f32)                                                                                 \
  FROM_INT(s64_to_f32_##M, "cvt." #M ".f32.s64", u32, "r", ".b32", i64, "l", soft::kF32, MODE, true,  \
           equal_f32)                                                                                 \
  FROM_INT(u64_to_f64_##M, "cvt." #M ".f64.u64", u64, "l", ".b64", u64, "l", soft::kF64, MODE, false, \
           equal_f64)
MODES(FROM_INTS)
FROM_INT(s32_to_f64, "cvt.rn.f64.s32", u64, "l", ".b64", i32, "r", soft::kF64, Mode::kNearest, true,
         equal_f64)
FROM_INT(u16_to_f16, "cvt.rn.f16.u16", u16, "h", ".b16", u16, "h", soft::kF16, Mode::kNearest, false,
         equal_f16)
FROM_INT(s32_to_f16, "cvt.rn.f16.s32", u16, "h", ".b16", i32, "r", soft::kF16, Mode::kNearest, true,
         equal_f16)

// Integers to integers.
#define INT_INT(NAME, ASM, D, CD, A, CA, HOST)                                                        \
  DEFINE(NAME, D, "=" CD, A, CA, A, CA, A, CA, ASM " %0, %1; // %2 %3", integer_values<A>(),          \
         std::vector<A>{0}, std::vector<A>{0}, ([](A a, A, A) -> D { return static_cast<D>(HOST); }), \
         equal_bits<D>)
INT_INT(u32_to_u64, "cvt.u64.u32", u64, "l", u32, "r", a)
INT_INT(s32_to_s64, "cvt.s64.s32", i64, "l", i32, "r", a)
INT_INT(u64_to_u32, "cvt.u32.u64", u32, "r", u64, "l", a)
INT_INT(s8_to_s32, "cvt.s32.s8", i32, "r", i32, "r", i8(a))
INT_INT(u8_to_u32, "cvt.u32.u8", u32, "r", u32, "r", u8(a))
INT_INT(s16_to_s32, "cvt.s32.s16", i32, "r", i16, "h", a)
INT_INT(s32_to_s8_sat, "cvt.sat.s8.s32", i32, "r", i32, "r", a<-128 ? -128 : a> 127 ? 127 : a)
INT_INT(s32_to_u8_sat, "cvt.sat.u8.s32", u32, "r", i32, "r", a<0 ? 0 : a> 255 ? 255 : a)
INT_INT(s64_to_u32_sat, "cvt.sat.u32.s64", u32, "r", i64, "l", a<0 ? 0 : a> 0xffffffffll ? 0xffffffff : a)

// Comparisons: ordered and unordered.
bool unordered(u32 a, u32 b) { return (a & 0x7fffffff) > 0x7f800000 || (b & 0x7fffffff) > 0x7f800000; }
int order(u32 a, u32 b) {
  const auto k = [](u32 v) {
    return v & 0x80000000 ? -static_cast<i64>(v & 0x7fffffff) : static_cast<i64>(v);
  };
  return k(a) < k(b) ? -1 : k(a) > k(b);
}
#define COMPARE(OP, HOST)                                                                 \
  DEFINE(setp_##OP, u32, "=r", u32, "r", u32, "r", u32, "r",                              \
         "{ .reg .f32 a,b; .reg .pred p; mov.b32 a, %1; mov.b32 b, %2; setp." #OP         \
         ".f32 p, a, b; selp.u32 %0, 1, 0, p; } // %3",                                   \
         f32_values(), f32_values(), std::vector<u32>{0}, ([](u32 a, u32 b, u32) -> u32 { \
           const bool u = unordered(a, b);                                                \
           const int o = order(a, b);                                                     \
           (void)u;                                                                       \
           (void)o;                                                                       \
           return HOST;                                                                   \
         }),                                                                              \
         equal_bits<u32>)
COMPARE(eq, !u && o == 0);
COMPARE(ne, !u && o != 0);
COMPARE(lt, !u && o < 0);
COMPARE(le, !u && o <= 0);
COMPARE(gt, !u && o > 0);
COMPARE(ge, !u && o >= 0);
COMPARE(equ, u || o == 0);
COMPARE(neu, u || o != 0);
COMPARE(ltu, u || o < 0);
COMPARE(leu, u || o <= 0);
COMPARE(gtu, u || o > 0);
COMPARE(geu, u || o >= 0);
COMPARE(num, !u);
COMPARE(nan, u);

int main() { return run_all("floating"); }
