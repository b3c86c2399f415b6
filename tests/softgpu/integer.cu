// Integer instructions against the host's integers.
#include <algorithm>

#include "tests/softgpu/cases.h"

#define INT2(NAME, OP, T, C, HOST)                                                              \
  DEFINE(NAME, T, "=" C, T, C, T, C, T, C, OP " %0, %1, %2; // %3", OPERANDS_##T, OPERANDS_##T, \
         std::vector<T>{0}, ([](T a, T b, T) -> T { return static_cast<T>(HOST); }), equal_bits<T>)
#define INT3(NAME, OP, T, C, HOST)                                                                          \
  DEFINE(NAME, T, "=" C, T, C, T, C, T, C, OP " %0, %1, %2, %3;", OPERANDS_##T, OPERANDS_##T, OPERANDS_##T, \
         ([](T a, T b, T c) -> T { return static_cast<T>(HOST); }), equal_bits<T>)
#define INT1(NAME, OP, D, CD, T, C, HOST)                                                 \
  DEFINE(NAME, D, "=" CD, T, C, u32, "r", u32, "r", OP " %0, %1; // %2 %3", OPERANDS_##T, \
         std::vector<u32>{0}, std::vector<u32>{0},                                        \
         ([](T a, u32, u32) -> D { return static_cast<D>(HOST); }), equal_bits<D>)
#define SHIFT(NAME, OP, T, C, HOST)                                                                     \
  DEFINE(NAME, T, "=" C, T, C, u32, "r", u32, "r", OP " %0, %1, %2; // %3", OPERANDS_##T, OPERANDS_u32, \
         std::vector<u32>{0}, ([](T a, u32 b, u32) -> T { return static_cast<T>(HOST); }), equal_bits<T>)
#define WIDE(NAME, OP, D, CD, T, C, HOST)                                                         \
  DEFINE(NAME, D, "=" CD, T, C, T, C, D, CD, OP " %0, %1, %2; // %3", OPERANDS_##T, OPERANDS_##T, \
         std::vector<D>{0}, ([](T a, T b, D) -> D { return static_cast<D>(HOST); }), equal_bits<D>)
#define WIDEMAD(NAME, OP, D, CD, T, C, HOST)                                                    \
  DEFINE(NAME, D, "=" CD, T, C, T, C, D, CD, OP " %0, %1, %2, %3;", OPERANDS_##T, OPERANDS_##T, \
         OPERANDS_##D, ([](T a, T b, D c) -> D { return static_cast<D>(HOST); }), equal_bits<D>)

template <class T>
T hi(T a, T b) {
  using W = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>((static_cast<W>(a) * static_cast<W>(b)) >> (8 * sizeof(T)));
}
template <class T>
T quotient(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<u64>(a));
  return a / b;
}
template <class T>
T rest(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return a % b;
}
i32 sat(i64 v) {
  return v > 2147483647 ? 2147483647 : v < -2147483648ll ? -2147483647 - 1 : static_cast<i32>(v);
}

#define EACH_TYPE(X, NAME, OP, HOST)    \
  X(NAME##_16, OP "16", u16, "h", HOST) \
  X(NAME##_32, OP "32", u32, "r", HOST) X(NAME##_64, OP "64", u64, "l", HOST)
#define EACH_SIGNED(X, NAME, OP, HOST)   \
  X(NAME##_s16, OP "16", i16, "h", HOST) \
  X(NAME##_s32, OP "32", i32, "r", HOST) X(NAME##_s64, OP "64", i64, "l", HOST)

EACH_TYPE(INT2, add, "add.u", a + b)
EACH_TYPE(INT2, sub, "sub.u", a - b)
EACH_TYPE(INT2, mul_lo, "mul.lo.u", u64(a) * b)
EACH_TYPE(INT2, mul_hi, "mul.hi.u", hi(a, b))
EACH_SIGNED(INT2, mul_hi, "mul.hi.s", hi(a, b))
EACH_TYPE(INT3, mad_lo, "mad.lo.u", u64(a) * b + c)
EACH_SIGNED(INT3, mad_hi, "mad.hi.s", u64(hi(a, b)) + u64(c))
EACH_TYPE(INT3, mad_hi, "mad.hi.u", u64(hi(a, b)) + u64(c))
EACH_TYPE(INT2, div, "div.u", quotient(a, b))
EACH_SIGNED(INT2, div, "div.s", quotient(a, b))
EACH_TYPE(INT2, rem, "rem.u", rest(a, b))
EACH_SIGNED(INT2, rem, "rem.s", rest(a, b))
EACH_TYPE(INT2, min_, "min.u", a < b ? a : b)
EACH_SIGNED(INT2, min_, "min.s", a < b ? a : b)
EACH_TYPE(INT2, max_, "max.u", a > b ? a : b)
EACH_SIGNED(INT2, max_, "max.s", a > b ? a : b)
EACH_TYPE(INT2, and_, "and.b", a& b)
EACH_TYPE(INT2, or_, "or.b", a | b)
EACH_TYPE(INT2, xor_, "xor.b", a ^ b)
EACH_TYPE(INT3, sad, "sad.u", u64(c) + (a > b ? u64(a) - u64(b) : u64(b) - u64(a)))
EACH_SIGNED(INT3, sad, "sad.s", u64(c) + (a > b ? u64(a) - u64(b) : u64(b) - u64(a)))
EACH_TYPE(SHIFT, shl, "shl.b", b >= 8 * sizeof(a) ? 0 : u64(a) << b)
EACH_TYPE(SHIFT, shr, "shr.u", b >= 8 * sizeof(a) ? 0 : a >> b)
EACH_SIGNED(SHIFT, shr, "shr.s", a >> (b >= 8 * sizeof(a) ? 8 * sizeof(a) - 1 : b))
WIDE(mul_wide_u16, "mul.wide.u16", u32, "r", u16, "h", u32(a) * b)
WIDE(mul_wide_s16, "mul.wide.s16", u32, "r", i16, "h", i32(a) * b)
WIDE(mul_wide_u32, "mul.wide.u32", u64, "l", u32, "r", u64(a) * b)
WIDE(mul_wide_s32, "mul.wide.s32", u64, "l", i32, "r", i64(a) * b)
WIDEMAD(mad_wide_u16, "mad.wide.u16", u32, "r", u16, "h", u32(a) * b + c)
WIDEMAD(mad_wide_s16, "mad.wide.s16", u32, "r", i16, "h", u32(i32(a) * b) + c)
WIDEMAD(mad_wide_u32, "mad.wide.u32", u64, "l", u32, "r", u64(a) * b + c)
WIDEMAD(mad_wide_s32, "mad.wide.s32", u64, "l", i32, "r", u64(i64(a) * b) + c)
INT2(add_sat, "add.sat.s32", i32, "r", sat(i64(a) + b))
INT2(sub_sat, "sub.sat.s32", i32, "r", sat(i64(a) - b))
INT2(mul24_lo, "mul24.lo.u32", u32, "r", (a & 0xffffff) * (b & 0xffffff))
INT2(mul24_hi, "mul24.hi.u32", u32, "r", (u64(a & 0xffffff) * (b & 0xffffff)) >> 16)
INT2(mul24_lo_s, "mul24.lo.s32", i32, "r", u32(i32(u32(a) << 8) >> 8) * u32(i32(u32(b) << 8) >> 8))
INT3(mad24_lo, "mad24.lo.u32", u32, "r", (a & 0xffffff) * (b & 0xffffff) + c)
INT1(neg_32, "neg.s32", u32, "r", u32, "r", 0 - a)
INT1(neg_64, "neg.s64", u64, "l", u64, "l", 0 - a)
INT1(abs_16, "abs.s16", u16, "h", i16, "h", a < 0 ? -a : a)
INT1(abs_32, "abs.s32", u32, "r", i32, "r", a < 0 ? 0 - u32(a) : u32(a))
INT1(abs_64, "abs.s64", u64, "l", i64, "l", a < 0 ? 0 - u64(a) : u64(a))
INT1(not_32, "not.b32", u32, "r", u32, "r", ~a)
INT1(cnot_32, "cnot.b32", u32, "r", u32, "r", a == 0)
INT1(popc_32, "popc.b32", u32, "r", u32, "r", __builtin_popcount(a))
INT1(popc_64, "popc.b64", u32, "r", u64, "l", __builtin_popcountll(a))
u32 leading_zeros(u64 a, int bits) {
  u32 n = 0;
  for (int i = bits - 1; i >= 0 && !((a >> i) & 1); --i) ++n;
  return n;
}
INT1(clz_32, "clz.b32", u32, "r", u32, "r", leading_zeros(a, 32))
INT1(clz_64, "clz.b64", u32, "r", u64, "l", leading_zeros(a, 64))
u32 find_top(u64 a, int bits, bool is_signed, bool shift) {
  const bool negative = is_signed && ((a >> (bits - 1)) & 1);
  for (int i = bits - 1; i >= 0; --i)
    if (((a >> i) & 1) != negative) return static_cast<u32>(shift ? bits - 1 - i : i);
  return 0xffffffff;
}
INT1(bfind_u32, "bfind.u32", u32, "r", u32, "r", find_top(a, 32, false, false))
INT1(bfind_s32, "bfind.s32", u32, "r", u32, "r", find_top(a, 32, true, false))
INT1(bfind_shift_u32, "bfind.shiftamt.u32", u32, "r", u32, "r", find_top(a, 32, false, true))
INT1(bfind_s64, "bfind.s64", u32, "r", u64, "l", find_top(a, 64, true, false))
u64 reverse(u64 a, int bits) {
  u64 r = 0;
  for (int i = 0; i < bits; ++i) r |= ((a >> i) & 1) << (bits - 1 - i);
  return r;
}
INT1(brev_32, "brev.b32", u32, "r", u32, "r", reverse(a, 32))
INT1(brev_64, "brev.b64", u64, "l", u64, "l", reverse(a, 64))
// bfe as the PTX ISA writes it: the sign bit is at min(pos + len - 1, msb).
u64 extract(u64 a, u32 pos, u32 len, int bits, bool is_signed) {
  pos &= 255, len &= 255;
  const u32 msb = static_cast<u32>(bits - 1);
  const u64 sign = !is_signed || len == 0 ? 0 : (a >> std::min(pos + len - 1, msb)) & 1;
  u64 d = 0;
  for (u32 i = 0; i <= msb; ++i) d |= (i < len && pos + i <= msb ? (a >> (pos + i)) & 1 : sign) << i;
  return d;
}
DEFINE(bfe_u32, u32, "=r", u32, "r", u32, "r", u32, "r", "bfe.u32 %0, %1, %2, %3;", OPERANDS_u32,
       OPERANDS_u32, OPERANDS_u32, ([](u32 a, u32 b, u32 c) -> u32 { return extract(a, b, c, 32, false); }),
       equal_bits<u32>)
DEFINE(bfe_s32, u32, "=r", u32, "r", u32, "r", u32, "r", "bfe.s32 %0, %1, %2, %3;", OPERANDS_u32,
       OPERANDS_u32, OPERANDS_u32, ([](u32 a, u32 b, u32 c) -> u32 { return extract(a, b, c, 32, true); }),
       equal_bits<u32>)
DEFINE(bfe_u64, u64, "=l", u64, "l", u32, "r", u32, "r", "bfe.u64 %0, %1, %2, %3;", OPERANDS_u64,
       OPERANDS_u32, OPERANDS_u32, ([](u64 a, u32 b, u32 c) -> u64 { return extract(a, b, c, 64, false); }),
       equal_bits<u64>)
DEFINE(bfe_s64, u64, "=l", u64, "l", u32, "r", u32, "r", "bfe.s64 %0, %1, %2, %3;", OPERANDS_u64,
       OPERANDS_u32, OPERANDS_u32, ([](u64 a, u32 b, u32 c) -> u64 { return extract(a, b, c, 64, true); }),
       equal_bits<u64>)
u32 insert(u32 a, u32 b, u32 pos, u32 len) {
  pos &= 255, len &= 255;
  for (u32 i = 0; i < len && pos + i < 32; ++i) b = (b & ~(1u << (pos + i))) | (((a >> i) & 1) << (pos + i));
  return b;
}
DEFINE(bfi_b32, u32, "=r", u32, "r", u32, "r", u32, "r",
       "{ .reg .u32 p; and.b32 p, %3, 255; .reg .u32 q; shr.u32 q, %3, 8; bfi.b32 %0, %1, %2, p, q; }",
       OPERANDS_u32, OPERANDS_u32, OPERANDS_u32,
       ([](u32 a, u32 b, u32 c) -> u32 { return insert(a, b, c & 255, c >> 8); }), equal_bits<u32>)
u32 prmt(u32 a, u32 b, u32 c) {
  const u64 all = a | u64(b) << 32;
  u32 r = 0;
  for (int k = 0; k < 4; ++k) {
    const u32 s = c >> (4 * k);
    u8 v = static_cast<u8>(all >> (8 * (s & 7)));
    if (s & 8) v = v & 0x80 ? 0xff : 0;
    r |= u32(v) << (8 * k);
  }
  return r;
}
INT3(prmt_b32, "prmt.b32", u32, "r", prmt(a, b, c))
// The byte each mode takes for k = 0..3, from the table of the PTX ISA.
u32 prmt_table(u32 a, u32 b, u32 c, const char* rows) {
  u32 r = 0;
  const u64 all = a | u64(b) << 32;
  for (int k = 0; k < 4; ++k)
    r |= static_cast<u32>((all >> (8 * (rows[(c & 3) * 4 + 3 - k] - '0'))) & 255) << (8 * k);
  return r;
}
INT3(prmt_f4e, "prmt.b32.f4e", u32, "r", prmt_table(a, b, c, "3210432154326543"))
INT3(prmt_b4e, "prmt.b32.b4e", u32, "r", prmt_table(a, b, c, "5670670170120123"))
INT3(prmt_rc8, "prmt.b32.rc8", u32, "r", prmt_table(a, b, c, "0000111122223333"))
INT3(prmt_ecl, "prmt.b32.ecl", u32, "r", prmt_table(a, b, c, "3210321132223333"))
INT3(prmt_ecr, "prmt.b32.ecr", u32, "r", prmt_table(a, b, c, "0000111022103210"))
INT3(prmt_rc16, "prmt.b32.rc16", u32, "r", prmt_table(a, b, c, "1010323210103232"))
INT3(lop3_e8, "{ lop3.b32 %0, %1, %2, %3, 0xe8; } //", u32, "r", (a & b) | (a & c) | (b & c))
u32 table3(u32 a, u32 b, u32 c, u32 t) {
  u32 r = 0;
  for (int i = 0; i < 32; ++i)
    r |= ((t >> (((a >> i) & 1) * 4 + ((b >> i) & 1) * 2 + ((c >> i) & 1))) & 1) << i;
  return r;
}
INT3(lop3_5b, "{ lop3.b32 %0, %1, %2, %3, 0x5b; } //", u32, "r", table3(a, b, c, 0x5b))
INT3(lop3_1d, "{ lop3.b32 %0, %1, %2, %3, 0x1d; } //", u32, "r", table3(a, b, c, 0x1d))
INT3(shf_l_clamp, "shf.l.clamp.b32", u32, "r", u64(c) >= 32 ? a : c == 0 ? b : (b << c) | (a >> (32 - c)))
INT3(shf_r_clamp, "shf.r.clamp.b32", u32, "r", u64(c) >= 32 ? b : c == 0 ? a : (a >> c) | (b << (32 - c)))
INT3(shf_l_wrap, "shf.l.wrap.b32", u32, "r", (c & 31) == 0 ? b : (b << (c & 31)) | (a >> (32 - (c & 31))))
INT3(shf_r_wrap, "shf.r.wrap.b32", u32, "r", (c & 31) == 0 ? a : (a >> (c & 31)) | (b << (32 - (c & 31))))
template <class A, class B>
u32 dot4(u32 a, u32 b, u32 c) {
  for (int k = 0; k < 4; ++k) c += u32(i32(A(a >> 8 * k)) * i32(B(b >> 8 * k)));
  return c;
}
INT3(dp4a_uu, "dp4a.u32.u32", u32, "r", (dot4<u8, u8>(a, b, c)))
INT3(dp4a_ss, "dp4a.s32.s32", u32, "r", (dot4<i8, i8>(a, b, c)))
INT3(dp4a_us, "dp4a.u32.s32", u32, "r", (dot4<u8, i8>(a, b, c)))
template <class A, class B>
u32 dot2(u32 a, u32 b, u32 c, int from) {
  for (int k = 0; k < 2; ++k) c += u32(i32(A(a >> 16 * k)) * i32(B(b >> 8 * (k + from))));
  return c;
}
INT3(dp2a_lo, "dp2a.lo.s32.s32", u32, "r", (dot2<i16, i8>(a, b, c, 0)))
INT3(dp2a_hi, "dp2a.hi.u32.u32", u32, "r", (dot2<u16, u8>(a, b, c, 2)))
INT2(bmsk_clamp, "bmsk.clamp.b32", u32, "r", a >= 32 ? 0 : u32((b >= 32 ? 0xffffffffu : (1u << b) - 1) << a))
INT2(bmsk_wrap, "bmsk.wrap.b32", u32, "r", ((1u << (b & 31)) - 1) << (a & 31))
INT2(szext_clamp_s, "szext.clamp.s32", i32, "r",
     u32(b) >= 32 ? a
     : b == 0     ? 0
                  : i32(u32(a) << (32 - b)) >> (32 - b))
INT2(szext_wrap_u, "szext.wrap.u32", u32, "r", (b & 31) == 0 ? 0 : a & ((1u << (b & 31)) - 1))
u32 nth(u32 mask, u32 base, i32 offset) {
  base &= 31;
  if (offset == 0) return (mask >> base) & 1 ? base : 0xffffffff;
  int at = static_cast<int>(base), left = offset < 0 ? -offset : offset;
  for (; at >= 0 && at<32; at += offset> 0 ? 1 : -1)
    if (((mask >> at) & 1) && --left == 0) return static_cast<u32>(at);
  return 0xffffffff;
}
std::vector<u32> small_values() {
  std::vector<u32> v;
  for (u32 i = 0; i < 32; ++i) v.push_back(i);
  return v;
}
std::vector<u32> offset_values() {
  std::vector<u32> v;
  for (int i = -9; i < 10; ++i) v.push_back(static_cast<u32>(i));
  return v;
}
DEFINE(fns_b32, u32, "=r", u32, "r", u32, "r", u32, "r", "fns.b32 %0, %1, %2, %3;", OPERANDS_u32,
       small_values(), offset_values(),
       ([](u32 a, u32 b, u32 c) -> u32 { return nth(a, b, static_cast<i32>(c)); }), equal_bits<u32>)
// Carry chains: 64-bit sums and products out of 32-bit parts.
DEFINE(add_carry, u64, "=l", u64, "l", u64, "l", u64, "l",
       "{ .reg .u32 a,b,c,d,e,f; mov.b64 {a,b}, %1; mov.b64 {c,d}, %2; add.cc.u32 e, a, c; addc.u32 f, b, d; "
       "mov.b64 %0, {e,f}; } // %3",
       OPERANDS_u64, OPERANDS_u64, std::vector<u64>{0}, ([](u64 a, u64 b, u64) -> u64 { return a + b; }),
       equal_bits<u64>)
DEFINE(sub_carry, u64, "=l", u64, "l", u64, "l", u64, "l",
       "{ .reg .u32 a,b,c,d,e,f; mov.b64 {a,b}, %1; mov.b64 {c,d}, %2; sub.cc.u32 e, a, c; subc.u32 f, b, d; "
       "mov.b64 %0, {e,f}; } // %3",
       OPERANDS_u64, OPERANDS_u64, std::vector<u64>{0}, ([](u64 a, u64 b, u64) -> u64 { return a - b; }),
       equal_bits<u64>)
DEFINE(
    mad_carry, u64, "=l", u64, "l", u64, "l", u64, "l",
    "{ .reg .u32 a,b,c,d,e,f,g,h; mov.b64 {a,b}, %1; mov.b64 {c,d}, %2; mov.b64 {g,h}, %3; mad.lo.cc.u32 e, "
    "a, c, g; madc.hi.u32 f, a, c, h; mad.lo.u32 f, a, d, f; mad.lo.u32 f, b, c, f; mov.b64 %0, {e,f}; }",
    OPERANDS_u64, OPERANDS_u64, OPERANDS_u64, ([](u64 a, u64 b, u64 c) -> u64 { return a * b + c; }),
    equal_bits<u64>)
INT3(setp_and_selp,
     "{ .reg .pred p,q; setp.lt.u32 p, %1, %2; setp.ge.and.s32 q, %2, %3, p; selp.b32 %0, %1, %3, q; } //",
     u32, "r", (a < b && i32(b) >= i32(c)) ? a : c)
INT3(setp_or_not,
     "{ .reg .pred p,q; setp.eq.u32 p, %1, %2; setp.hi.or.u32 q, %2, %3, !p; selp.b32 %0, %1, %3, q; } //",
     u32, "r", (b > c || !(a == b)) ? a : c)
INT3(setp_pair,
     "{ .reg .pred p,q; setp.ls.u32 p|q, %1, %2; @p add.u32 %0, %1, %3; @q sub.u32 %0, %1, %3; } //", u32,
     "r", a <= b ? a + c : a - c)
INT2(set_u32, "set.gt.u32.s32", i32, "r", a > b ? -1 : 0)
INT3(slct_s32, "slct.b32.s32", u32, "r", i32(c) >= 0 ? a : b)

int main() { return run_all("integer"); }
