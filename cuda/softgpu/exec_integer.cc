// Integer arithmetic, logic, shifts and bit fields.
#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

template <class T>
struct Wide;
template <>
struct Wide<u16> {
  using type = u32;
};
template <>
struct Wide<i16> {
  using type = i32;
};
template <>
struct Wide<u32> {
  using type = u64;
};
template <>
struct Wide<i32> {
  using type = i64;
};
template <>
struct Wide<u64> {
  using type = unsigned __int128;
};
template <>
struct Wide<i64> {
  using type = __int128;
};
template <class T>
using wide_t = typename Wide<T>::type;

template <class T>
constexpr T mul_hi(T a, T b) {
  return static_cast<T>((static_cast<wide_t<T>>(a) * b) >> (sizeof(T) * 8));
}
template <class T>
constexpr T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<u64>(a));
  return static_cast<T>(a / b);
}
template <class T>
constexpr T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}
template <class T>
constexpr T saturating(i64 v) {
  return static_cast<T>(v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : v);
}
template <class T>
constexpr T clamped_shl(T a, u32 n) {
  return n >= sizeof(T) * 8 ? 0 : static_cast<T>(static_cast<u64>(a) << n);
}
template <class T>
constexpr T clamped_shr(T a, u32 n) {
  const u32 most = sizeof(T) * 8;
  if (std::is_signed_v<T>) return static_cast<T>(a >> (n >= most ? most - 1 : n));
  return n >= most ? 0 : static_cast<T>(a >> n);
}

// a*b+c and sums with carry: a product of 32 or 64 bits plus c plus the carry, low or high half.
constexpr u32 kReadsCarry = 1, kWritesCarry = 2, kSubtracts = 4, kHigh = 8, kSigned = 16;
template <class T>
void add_carry(Warp& w, const Inst& in, Mask m) {
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const T* b = lanes<T>(w, in.ops[2]);
  const u32 kind = in.aux;
  Mask carry = w.carry;
  for_lanes(m, [&](int i) {
    const unsigned c = (kind & kReadsCarry) ? (w.carry >> i) & 1 : 0;
    bool out;
    if (kind & kSubtracts) {
      const wide_t<T> r = static_cast<wide_t<T>>(a[i]) - b[i] - c;
      out = (r >> (sizeof(T) * 8)) != 0;
      d[i] = static_cast<T>(r);
    } else {
      const wide_t<T> r = static_cast<wide_t<T>>(a[i]) + b[i] + c;
      out = (r >> (sizeof(T) * 8)) != 0;
      d[i] = static_cast<T>(r);
    }
    carry = (carry & ~(1u << i)) | (static_cast<Mask>(out) << i);
  });
  if (kind & kWritesCarry) w.carry = carry;
}
template <class T>
void mad_carry(Warp& w, const Inst& in, Mask m) {
  using S = std::make_signed_t<T>;
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const T* b = lanes<T>(w, in.ops[2]);
  const T* c = lanes<T>(w, in.ops[3]);
  const u32 kind = in.aux;
  Mask carry = w.carry;
  for_lanes(m, [&](int i) {
    const T product = !(kind & kHigh) ? static_cast<T>(a[i] * b[i])
                      : (kind & kSigned)
                          ? static_cast<T>(mul_hi<S>(static_cast<S>(a[i]), static_cast<S>(b[i])))
                          : mul_hi<T>(a[i], b[i]);
    const unsigned cin = (kind & kReadsCarry) ? (w.carry >> i) & 1 : 0;
    const wide_t<T> r = static_cast<wide_t<T>>(product) + c[i] + cin;
    d[i] = static_cast<T>(r);
    carry = (carry & ~(1u << i)) | (static_cast<Mask>((r >> (sizeof(T) * 8)) != 0) << i);
  });
  if (kind & kWritesCarry) w.carry = carry;
}

template <class T>
constexpr T bit_field_extract(T a, u32 pos, u32 len) {
  using U = std::make_unsigned_t<T>;
  constexpr u32 most = sizeof(T) * 8;
  pos &= 255, len &= 255;
  if (len == 0) return 0;
  U field = pos >= most ? 0 : static_cast<U>(a) >> pos;
  if (len < most) field &= (U{1} << len) - 1;
  if (std::is_signed_v<T>) {
    const u32 top = std::min(pos + len - 1, most - 1);
    const bool sign = (static_cast<U>(a) >> top) & 1;
    const u32 kept = pos >= most ? 0 : std::min(len, most - pos);
    if (sign) field = kept >= most ? field : field | (~U{0} << kept);
  }
  return static_cast<T>(field);
}
template <class T>
constexpr T bit_field_insert(T a, T b, u32 pos, u32 len) {
  constexpr u32 most = sizeof(T) * 8;
  pos &= 255, len &= 255;
  if (len == 0 || pos >= most) return b;
  const T mask = (len >= most ? ~T{0} : (T{1} << len) - 1) << pos;
  return (b & ~mask) | ((a << pos) & mask);
}
template <class T>
void bfi(Warp& w, const Inst& in, Mask m) {
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const T* b = lanes<T>(w, in.ops[2]);
  const u32* p = lanes<u32>(w, in.ops[3]);
  const u32* l = lanes<u32>(w, in.ops[4]);
  each(m, d, [=](int i) { return bit_field_insert<T>(a[i], b[i], p[i], l[i]); });
}
template <class T>
constexpr u32 find_leading(T a, bool shift_amount) {
  using U = std::make_unsigned_t<T>;
  const U u = std::is_signed_v<T> && a < 0 ? ~static_cast<U>(a) : static_cast<U>(a);
  if (u == 0) return 0xffffffff;
  const u32 at = 63 - static_cast<u32>(__builtin_clzll(u));
  return shift_amount ? sizeof(T) * 8 - 1 - at : at;
}
constexpr u32 reverse32(u32 v) {
  u32 r = 0;
  for (int i = 0; i < 32; ++i) r |= ((v >> i) & 1) << (31 - i);
  return r;
}
constexpr u64 reverse64(u64 v) {
  return (static_cast<u64>(reverse32(static_cast<u32>(v))) << 32) | reverse32(static_cast<u32>(v >> 32));
}

constexpr u32 permute(u32 a, u32 b, u32 sel) {
  const u64 bytes = a | (static_cast<u64>(b) << 32);
  u32 r = 0;
  for (int k = 0; k < 4; ++k) {
    const u32 s = (sel >> (4 * k)) & 15;
    u32 byte = static_cast<u32>(bytes >> (8 * (s & 7))) & 255;
    if (s & 8) byte = (byte & 128) ? 255 : 0;
    r |= byte << (8 * k);
  }
  return r;
}
// prmt with a mode: the two low bits of c choose.
constexpr u32 permute_mode(u32 a, u32 b, u32 c, int mode) {
  c &= 3;
  u32 sel = 0;
  for (u32 k = 0; k < 4; ++k) {
    u32 s = 0;
    switch (mode) {
      case 0:
        s = c + k;
        break;  // f4e
      case 1:
        s = (c + 8 - k) & 7;
        break;  // b4e
      case 2:
        s = c;
        break;  // rc8
      case 3:
        s = std::max(k, c);
        break;  // ecl
      case 4:
        s = std::min(k, c);
        break;  // ecr
      default:
        s = (c & 1) * 2 + (k & 1);
        break;  // rc16
    }
    sel |= s << (4 * k);
  }
  return permute(a, b, sel);
}
template <int kMode>
void prmt_mode(Warp& w, const Inst& in, Mask m) {
  ternary<u32, u32, u32, u32, [](u32 a, u32 b, u32 c) { return permute_mode(a, b, c, kMode); }>(w, in, m);
}
void lop3(Warp& w, const Inst& in, Mask m) {
  u32* d = lanes<u32>(w, in.ops[0]);
  const u32* a = lanes<u32>(w, in.ops[1]);
  const u32* b = lanes<u32>(w, in.ops[2]);
  const u32* c = lanes<u32>(w, in.ops[3]);
  u32 t[8];
  for (int k = 0; k < 8; ++k) t[k] = (in.aux >> k) & 1 ? ~0u : 0u;
  each(m, d, [=](int i) {
    const u32 x = a[i], y = b[i], z = c[i];
    return (t[0] & ~x & ~y & ~z) | (t[1] & ~x & ~y & z) | (t[2] & ~x & y & ~z) | (t[3] & ~x & y & z) |
           (t[4] & x & ~y & ~z) | (t[5] & x & ~y & z) | (t[6] & x & y & ~z) | (t[7] & x & y & z);
  });
}
template <bool kLeft, bool kWrap>
constexpr u32 funnel(u32 a, u32 b, u32 c) {
  const u32 n = kWrap ? c & 31 : std::min(c, 32u);
  const u64 v = a | (static_cast<u64>(b) << 32);
  return kLeft ? static_cast<u32>((v << n) >> 32) : static_cast<u32>(v >> n);
}
template <class A, class B>
constexpr i32 dot4(u32 a, u32 b, u32 c) {
  i32 r = static_cast<i32>(c);
  for (int k = 0; k < 4; ++k)
    r += static_cast<i32>(static_cast<A>(a >> (8 * k))) * static_cast<i32>(static_cast<B>(b >> (8 * k)));
  return r;
}
template <class A, class B, int kFrom>
constexpr i32 dot2(u32 a, u32 b, u32 c) {
  i32 r = static_cast<i32>(c);
  for (int k = 0; k < 2; ++k)
    r += static_cast<i32>(static_cast<A>(a >> (16 * k))) *
         static_cast<i32>(static_cast<B>(b >> (8 * (k + kFrom))));
  return r;
}
constexpr u32 find_nth(u32 mask, u32 base, i32 offset) {
  if (offset == 0) return (mask >> (base & 31)) & 1 ? base & 31 : ~0u;
  const int step = offset > 0 ? 1 : -1;
  int left = offset > 0 ? offset : -offset;
  for (int at = static_cast<int>(base & 31); at >= 0 && at < 32; at += step)
    if ((mask >> at) & 1 && --left == 0) return static_cast<u32>(at);
  return ~0u;
}

#define T_ADD(T) (binary<T, T, T, [](T a, T b) { return static_cast<T>(a + b); }>)
#define T_SUB(T) (binary<T, T, T, [](T a, T b) { return static_cast<T>(a - b); }>)
#define T_MUL(T) (binary<T, T, T, [](T a, T b) { return static_cast<T>(static_cast<u64>(a) * b); }>)
#define T_MUL32(T) \
  (binary<T, T, T, [](T a, T b) { return static_cast<T>(static_cast<u32>(a) * static_cast<u32>(b)); }>)
#define T_MULHI(T) (binary<T, T, T, [](T a, T b) { return mul_hi<T>(a, b); }>)
#define T_MAD(T) \
  (ternary<T, T, T, T, [](T a, T b, T c) { return static_cast<T>(static_cast<u64>(a) * b + c); }>)
#define T_MAD32(T)     \
  (ternary<T, T, T, T, \
           [](T a, T b, T c) { return static_cast<T>(static_cast<u32>(a) * static_cast<u32>(b) + c); }>)
#define T_MADHI(T)                                                                \
  (ternary<T, T, T, T, [](T a, T b, T c) {                                        \
    return static_cast<T>(static_cast<std::make_unsigned_t<T>>(mul_hi<T>(a, b)) + \
                          static_cast<std::make_unsigned_t<T>>(c));               \
  }>)
#define T_DIV(T) (binary<T, T, T, [](T a, T b) { return divide<T>(a, b); }>)
#define T_REM(T) (binary<T, T, T, [](T a, T b) { return remainder<T>(a, b); }>)
#define T_MIN(T) (binary<T, T, T, [](T a, T b) { return b < a ? b : a; }>)
#define T_MAX(T) (binary<T, T, T, [](T a, T b) { return a < b ? b : a; }>)
#define T_AND(T) (binary<T, T, T, [](T a, T b) { return static_cast<T>(a & b); }>)
#define T_OR(T) (binary<T, T, T, [](T a, T b) { return static_cast<T>(a | b); }>)
#define T_XOR(T) (binary<T, T, T, [](T a, T b) { return static_cast<T>(a ^ b); }>)
#define T_NOT(T) (unary<T, T, [](T a) { return static_cast<T>(~a); }>)
#define T_CNOT(T) (unary<T, T, [](T a) { return static_cast<T>(a == 0 ? 1 : 0); }>)
#define T_NEG(T) (unary<T, T, [](T a) { return static_cast<T>(0 - static_cast<u64>(a)); }>)
#define T_ABS(T) \
  (unary<T, T, [](T a) { return static_cast<T>(a < 0 ? 0 - static_cast<u64>(a) : static_cast<u64>(a)); }>)
#define T_SHL(T) (binary<T, T, u32, [](T a, u32 n) { return clamped_shl<T>(a, n); }>)
#define T_SHR(T) (binary<T, T, u32, [](T a, u32 n) { return clamped_shr<T>(a, n); }>)
#define T_SAD(T)                                                                                      \
  (ternary<T, T, T, T, [](T a, T b, T c) {                                                            \
    return static_cast<T>(static_cast<u64>(c) + (a < b ? static_cast<u64>(b) - static_cast<u64>(a)    \
                                                       : static_cast<u64>(a) - static_cast<u64>(b))); \
  }>)

void logic_predicate(Warp& w, const Inst& in, Mask m) {
  const Mask a = predicate(w, in.ops[1]) ^ static_cast<Mask>(in.imm);
  const Mask b = in.nops > 2 ? predicate(w, in.ops[2]) ^ static_cast<Mask>(in.imm >> 32) : 0;
  set_predicate(w, in.ops[0], m, in.aux == 0 ? a & b : in.aux == 1 ? a | b : in.aux == 2 ? a ^ b : ~a);
}

// Two 16-bit halves at once: the lanes are 64 contiguous 16-bit values.
template <class T, auto F>
void pairs(Warp& w, const Inst& in, Mask m) {
  u32* d = lanes<u32>(w, in.ops[0]);
  const u32* a = lanes<u32>(w, in.ops[1]);
  const u32* b = lanes<u32>(w, in.ops[2]);
  each(m, d, [=](int i) {
    const u32 lo = static_cast<u16>(F(static_cast<T>(a[i]), static_cast<T>(b[i])));
    const u32 hi = static_cast<u16>(F(static_cast<T>(a[i] >> 16), static_cast<T>(b[i] >> 16)));
    return lo | (hi << 16);
  });
}

bool two(Decoder& d, Handler h, int bits) {
  if (!h) return false;
  d.emit(h, Class::kInteger, {d.dst(0, bits), d.src(1, bits), d.src(2, bits)});
  return true;
}
bool three(Decoder& d, Handler h, int bits, int last) {
  if (!h) return false;
  d.emit(h, Class::kInteger, {d.dst(0, bits), d.src(1, bits), d.src(2, bits), d.src(3, last)});
  return true;
}

bool decode_multiply(Decoder& d, const Type& t, bool add) {
  const bool s = t.kind == 's';
  const int bits = t.bits;
  if (d.has("wide")) {
    if (bits != 16 && bits != 32) return false;
    Handler h;
    if (!add) {
      h = bits == 16 ? (s ? static_cast<Handler>(binary<i32, i16, i16, [](i16 a, i16 b) { return a * b; }>)
                          : static_cast<Handler>(
                                binary<u32, u16, u16, [](u16 a, u16 b) { return static_cast<u32>(a) * b; }>))
                     : (s ? static_cast<Handler>(
                                binary<i64, i32, i32, [](i32 a, i32 b) { return static_cast<i64>(a) * b; }>)
                          : static_cast<Handler>(
                                binary<u64, u32, u32, [](u32 a, u32 b) { return static_cast<u64>(a) * b; }>));
      d.emit(h, Class::kInteger, {d.dst(0, 2 * bits), d.src(1, bits), d.src(2, bits)});
    } else {
      h = bits == 16
              ? (s ? static_cast<Handler>(
                         ternary<u32, i16, i16, u32,
                                 [](i16 a, i16 b, u32 c) { return static_cast<u32>(a * b) + c; }>)
                   : static_cast<Handler>(
                         ternary<u32, u16, u16, u32,
                                 [](u16 a, u16 b, u32 c) { return static_cast<u32>(a) * b + c; }>))
              : (s ? static_cast<Handler>(ternary<u64, i32, i32, u64,
                                                  [](i32 a, i32 b, u64 c) {
                                                    return static_cast<u64>(static_cast<i64>(a) * b) + c;
                                                  }>)
                   : static_cast<Handler>(ternary<u64, u32, u32, u64, [](u32 a, u32 b, u64 c) {
                       return static_cast<u64>(a) * b + c;
                     }>));
      d.emit(h, Class::kInteger, {d.dst(0, 2 * bits), d.src(1, bits), d.src(2, bits), d.src(3, 2 * bits)});
    }
    return true;
  }
  if (add && (d.has("cc") || d.name() == "madc")) {
    if (bits != 32 && bits != 64) return false;
    three(d, bits == 32 ? static_cast<Handler>(mad_carry<u32>) : static_cast<Handler>(mad_carry<u64>), bits,
          bits);
    d.kernel().code.back().aux = (d.name() == "madc" ? kReadsCarry : 0) | (d.has("cc") ? kWritesCarry : 0) |
                                 (d.has("hi") ? kHigh : 0) | (s ? kSigned : 0);
    return true;
  }
  if (d.has("hi")) {
    if (add && d.has("sat")) {
      return three(d,
                   ternary<i32, i32, i32, i32,
                           [](i32 a, i32 b, i32 c) {
                             return saturating<i32>(static_cast<i64>(mul_hi<i32>(a, b)) + c);
                           }>,
                   32, 32);
    }
    if (add)
      return three(d, s ? SOFTGPU_BY_SIGNED(bits, T_MADHI) : SOFTGPU_BY_UNSIGNED(bits, T_MADHI), bits, bits);
    return two(d, s ? SOFTGPU_BY_SIGNED(bits, T_MULHI) : SOFTGPU_BY_UNSIGNED(bits, T_MULHI), bits);
  }
  if (!d.has("lo")) return false;
  if (add)
    return three(d, bits == 32 ? static_cast<Handler>(T_MAD32(u32)) : SOFTGPU_BY_UNSIGNED(bits, T_MAD), bits,
                 bits);
  return two(d, bits == 32 ? static_cast<Handler>(T_MUL32(u32)) : SOFTGPU_BY_UNSIGNED(bits, T_MUL), bits);
}

}  // namespace

bool decode_integer(Decoder& d) {
  const std::string& op = d.name();
  if (d.types().empty()) return false;
  const Type t = d.type();
  const bool integer = t.kind == 'u' || t.kind == 's' || t.kind == 'b';
  const bool s = t.kind == 's';
  const int bits = t.bits;
  if (op == "and" || op == "or" || op == "xor" || op == "not") {
    if (t.kind == 'p') {
      const bool unary_op = op == "not";
      std::vector<Ref> refs = {d.dst(0, 1), d.pred(d.arg(1))};
      if (!unary_op) refs.push_back(d.pred(d.arg(2)));
      Inst& in = d.emit(logic_predicate, Class::kInteger, refs);
      in.aux = op == "and" ? 0 : op == "or" ? 1 : op == "xor" ? 2 : 3;
      const u64 flip = d.arg(1).negated ? 0xffffffffull : 0;
      const u64 flip2 = !unary_op && d.arg(2).negated ? 0xffffffff00000000ull : 0;
      in.imm = static_cast<i64>(flip | flip2);
      return true;
    }
    if (op == "not") {
      d.emit(SOFTGPU_BY_UNSIGNED(bits, T_NOT), Class::kInteger, {d.dst(0, bits), d.src(1, bits)});
      return true;
    }
    return two(d,
               op == "and"  ? SOFTGPU_BY_UNSIGNED(bits, T_AND)
               : op == "or" ? SOFTGPU_BY_UNSIGNED(bits, T_OR)
                            : SOFTGPU_BY_UNSIGNED(bits, T_XOR),
               bits);
  }
  if (!integer) return false;
  if (t.pair) {
    if (op == "add") return two(d, pairs<u16, [](u16 a, u16 b) { return a + b; }>, 32);
    if (op == "min")
      return two(d,
                 s ? static_cast<Handler>(pairs<i16, [](i16 a, i16 b) { return std::min(a, b); }>)
                   : static_cast<Handler>(pairs<u16, [](u16 a, u16 b) { return std::min(a, b); }>),
                 32);
    if (op == "max")
      return two(d,
                 s ? static_cast<Handler>(pairs<i16, [](i16 a, i16 b) { return std::max(a, b); }>)
                   : static_cast<Handler>(pairs<u16, [](u16 a, u16 b) { return std::max(a, b); }>),
                 32);
    return false;
  }
  if (op == "add" || op == "sub" || op == "addc" || op == "subc") {
    const bool sub = op[0] == 's', carry_in = op.size() == 4;
    if (carry_in || d.has("cc")) {
      if (bits != 32 && bits != 64) return false;
      two(d, bits == 32 ? static_cast<Handler>(add_carry<u32>) : static_cast<Handler>(add_carry<u64>), bits);
      d.kernel().code.back().aux =
          (carry_in ? kReadsCarry : 0) | (d.has("cc") ? kWritesCarry : 0) | (sub ? kSubtracts : 0);
      return true;
    }
    if (d.has("sat")) {
      return two(d,
                 sub ? static_cast<Handler>(
                           binary<i32, i32, i32,
                                  [](i32 a, i32 b) { return saturating<i32>(static_cast<i64>(a) - b); }>)
                     : static_cast<Handler>(
                           binary<i32, i32, i32,
                                  [](i32 a, i32 b) { return saturating<i32>(static_cast<i64>(a) + b); }>),
                 32);
    }
    return two(d, sub ? SOFTGPU_BY_UNSIGNED(bits, T_SUB) : SOFTGPU_BY_UNSIGNED(bits, T_ADD), bits);
  }
  if (op == "mul") return decode_multiply(d, t, false);
  if (op == "mad" || op == "madc") return decode_multiply(d, t, true);
  if (op == "mul24" || op == "mad24") {
    const bool add = op == "mad24", hi = d.has("hi");
    if (d.has("sat")) return false;
    static constexpr auto low = [](u32 a, u32 b) { return (a & 0xffffff) * (b & 0xffffff); };
    static constexpr auto slow = [](i32 a, i32 b) {
      return static_cast<i64>(static_cast<i32>(static_cast<u32>(a) << 8) >> 8) *
             (static_cast<i32>(static_cast<u32>(b) << 8) >> 8);
    };
    if (hi) {
      if (add)
        return s ? three(d,
                         ternary<u32, i32, i32, u32,
                                 [](i32 a, i32 b, u32 c) { return static_cast<u32>(slow(a, b) >> 16) + c; }>,
                         32, 32)
                 : three(d,
                         ternary<u32, u32, u32, u32,
                                 [](u32 a, u32 b, u32 c) {
                                   return static_cast<u32>(
                                              (static_cast<u64>(a & 0xffffff) * (b & 0xffffff)) >> 16) +
                                          c;
                                 }>,
                         32, 32);
      return s ? two(d,
                     binary<u32, i32, i32, [](i32 a, i32 b) { return static_cast<u32>(slow(a, b) >> 16); }>,
                     32)
               : two(d,
                     binary<u32, u32, u32,
                            [](u32 a, u32 b) {
                              return static_cast<u32>((static_cast<u64>(a & 0xffffff) * (b & 0xffffff)) >>
                                                      16);
                            }>,
                     32);
    }
    if (add)
      return s ? three(d,
                       ternary<u32, i32, i32, u32,
                               [](i32 a, i32 b, u32 c) { return static_cast<u32>(slow(a, b)) + c; }>,
                       32, 32)
               : three(d, ternary<u32, u32, u32, u32, [](u32 a, u32 b, u32 c) { return low(a, b) + c; }>, 32,
                       32);
    return s ? two(d, binary<u32, i32, i32, [](i32 a, i32 b) { return static_cast<u32>(slow(a, b)); }>, 32)
             : two(d, binary<u32, u32, u32, [](u32 a, u32 b) { return low(a, b); }>, 32);
  }
  if (op == "div") return two(d, s ? SOFTGPU_BY_SIGNED(bits, T_DIV) : SOFTGPU_BY_UNSIGNED(bits, T_DIV), bits);
  if (op == "rem") return two(d, s ? SOFTGPU_BY_SIGNED(bits, T_REM) : SOFTGPU_BY_UNSIGNED(bits, T_REM), bits);
  if ((op == "min" || op == "max")) {
    if (d.has("relu")) {
      if (bits != 32 || !s) return false;
      return two(d,
                 op == "min"
                     ? static_cast<Handler>(
                           binary<i32, i32, i32, [](i32 a, i32 b) { return std::max(0, std::min(a, b)); }>)
                     : static_cast<Handler>(
                           binary<i32, i32, i32, [](i32 a, i32 b) { return std::max(0, std::max(a, b)); }>),
                 32);
    }
    if (op == "min")
      return two(d, s ? SOFTGPU_BY_SIGNED(bits, T_MIN) : SOFTGPU_BY_UNSIGNED(bits, T_MIN), bits);
    return two(d, s ? SOFTGPU_BY_SIGNED(bits, T_MAX) : SOFTGPU_BY_UNSIGNED(bits, T_MAX), bits);
  }
  if (op == "sad")
    return three(d, s ? SOFTGPU_BY_SIGNED(bits, T_SAD) : SOFTGPU_BY_UNSIGNED(bits, T_SAD), bits, bits);
  if (op == "neg" || op == "abs" || op == "cnot") {
    Handler h = op == "neg"   ? SOFTGPU_BY_UNSIGNED(bits, T_NEG)
                : op == "abs" ? SOFTGPU_BY_SIGNED(bits, T_ABS)
                              : SOFTGPU_BY_UNSIGNED(bits, T_CNOT);
    d.emit(h, Class::kInteger, {d.dst(0, bits), d.src(1, bits)});
    return true;
  }
  if (op == "shl" || op == "shr") {
    Handler h = op == "shl" ? SOFTGPU_BY_UNSIGNED(bits, T_SHL)
                : s         ? SOFTGPU_BY_SIGNED(bits, T_SHR)
                            : SOFTGPU_BY_UNSIGNED(bits, T_SHR);
    d.emit(h, Class::kInteger, {d.dst(0, bits), d.src(1, bits), d.src(2, 32)});
    return true;
  }
  if (op == "shf") {
    const bool left = d.has("l"), wrap = d.has("wrap");
    return three(d,
                 left ? (wrap ? static_cast<Handler>(ternary<u32, u32, u32, u32, funnel<true, true>>)
                              : static_cast<Handler>(ternary<u32, u32, u32, u32, funnel<true, false>>))
                      : (wrap ? static_cast<Handler>(ternary<u32, u32, u32, u32, funnel<false, true>>)
                              : static_cast<Handler>(ternary<u32, u32, u32, u32, funnel<false, false>>)),
                 32, 32);
  }
  if (op == "bfe") {
    Handler h = bits == 32
                    ? (s ? static_cast<Handler>(
                               ternary<i32, i32, u32, u32,
                                       [](i32 a, u32 p, u32 l) { return bit_field_extract<i32>(a, p, l); }>)
                         : static_cast<Handler>(
                               ternary<u32, u32, u32, u32,
                                       [](u32 a, u32 p, u32 l) { return bit_field_extract<u32>(a, p, l); }>))
                    : (s ? static_cast<Handler>(
                               ternary<i64, i64, u32, u32,
                                       [](i64 a, u32 p, u32 l) { return bit_field_extract<i64>(a, p, l); }>)
                         : static_cast<Handler>(ternary<u64, u64, u32, u32, [](u64 a, u32 p, u32 l) {
                             return bit_field_extract<u64>(a, p, l);
                           }>));
    d.emit(h, Class::kInteger, {d.dst(0, bits), d.src(1, bits), d.src(2, 32), d.src(3, 32)});
    return true;
  }
  if (op == "bfi") {
    d.emit(bits == 32 ? static_cast<Handler>(bfi<u32>) : static_cast<Handler>(bfi<u64>), Class::kInteger,
           {d.dst(0, bits), d.src(1, bits), d.src(2, bits), d.src(3, 32), d.src(4, 32)});
    return true;
  }
  if (op == "bfind") {
    const bool sh = d.has("shiftamt");
    Handler h;
    if (bits == 32) {
      h = s ? (sh ? static_cast<Handler>(unary<u32, i32, [](i32 a) { return find_leading(a, true); }>)
                  : static_cast<Handler>(unary<u32, i32, [](i32 a) { return find_leading(a, false); }>))
            : (sh ? static_cast<Handler>(unary<u32, u32, [](u32 a) { return find_leading(a, true); }>)
                  : static_cast<Handler>(unary<u32, u32, [](u32 a) { return find_leading(a, false); }>));
    } else {
      h = s ? (sh ? static_cast<Handler>(unary<u32, i64, [](i64 a) { return find_leading(a, true); }>)
                  : static_cast<Handler>(unary<u32, i64, [](i64 a) { return find_leading(a, false); }>))
            : (sh ? static_cast<Handler>(unary<u32, u64, [](u64 a) { return find_leading(a, true); }>)
                  : static_cast<Handler>(unary<u32, u64, [](u64 a) { return find_leading(a, false); }>));
    }
    d.emit(h, Class::kInteger, {d.dst(0, 32), d.src(1, bits)});
    return true;
  }
  if (op == "popc" || op == "clz") {
    Handler h =
        op == "popc"
            ? (bits == 32
                   ? static_cast<Handler>(unary<u32, u32, [](u32 a) { return __builtin_popcount(a); }>)
                   : static_cast<Handler>(unary<u32, u64, [](u64 a) { return __builtin_popcountll(a); }>))
            : (bits == 32
                   ? static_cast<Handler>(unary<u32, u32, [](u32 a) { return a ? __builtin_clz(a) : 32; }>)
                   : static_cast<Handler>(
                         unary<u32, u64, [](u64 a) { return a ? __builtin_clzll(a) : 64; }>));
    d.emit(h, Class::kInteger, {d.dst(0, 32), d.src(1, bits)});
    return true;
  }
  if (op == "brev") {
    d.emit(bits == 32 ? static_cast<Handler>(unary<u32, u32, reverse32>)
                      : static_cast<Handler>(unary<u64, u64, reverse64>),
           Class::kInteger, {d.dst(0, bits), d.src(1, bits)});
    return true;
  }
  if (op == "prmt") {
    static constexpr const char* modes[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    static constexpr Handler handlers[] = {prmt_mode<0>, prmt_mode<1>, prmt_mode<2>,
                                           prmt_mode<3>, prmt_mode<4>, prmt_mode<5>};
    for (int k = 0; k < 6; ++k)
      if (d.has(modes[k])) return three(d, handlers[k], 32, 32);
    return three(d, ternary<u32, u32, u32, u32, permute>, 32, 32);
  }
  if (op == "lop3") {
    if (d.args() != 5 || d.arg(4).kind != ptx::Operand::kImm) return false;
    three(d, lop3, 32, 32);
    d.kernel().code.back().aux = static_cast<u32>(d.arg(4).imm) & 255;
    return true;
  }
  if (op == "bmsk") {
    return two(
        d,
        d.has("wrap")
            ? static_cast<Handler>(binary<u32, u32, u32,
                                          [](u32 a, u32 b) {
                                            return static_cast<u32>(((u64{1} << (b & 31)) - 1) << (a & 31));
                                          }>)
            : static_cast<Handler>(binary<u32, u32, u32,
                                          [](u32 a, u32 b) {
                                            return a >= 32 ? 0u
                                                           : static_cast<u32>((b >= 32 ? ~0u : (1u << b) - 1)
                                                                              << a);
                                          }>),
        32);
  }
  if (op == "szext") {
    const bool wrap = d.has("wrap");
    static constexpr auto f = [](i32 a, u32 b, bool wraps, bool sign) -> u32 {
      const u32 n = wraps ? b & 31 : b;
      if (n == 0) return 0;
      if (n >= 32) return static_cast<u32>(a);
      const u32 v = static_cast<u32>(a) & ((1u << n) - 1);
      return sign && (v >> (n - 1)) ? v | (~0u << n) : v;
    };
    Handler h = s ? (wrap ? static_cast<Handler>(
                                binary<u32, i32, u32, [](i32 a, u32 b) { return f(a, b, true, true); }>)
                          : static_cast<Handler>(
                                binary<u32, i32, u32, [](i32 a, u32 b) { return f(a, b, false, true); }>))
                  : (wrap ? static_cast<Handler>(
                                binary<u32, i32, u32, [](i32 a, u32 b) { return f(a, b, true, false); }>)
                          : static_cast<Handler>(
                                binary<u32, i32, u32, [](i32 a, u32 b) { return f(a, b, false, false); }>));
    return two(d, h, 32);
  }
  if (op == "dp4a" && d.types().size() == 2) {
    const bool sa = d.types()[0].kind == 's', sb = d.types()[1].kind == 's';
    return three(d,
                 sa ? (sb ? static_cast<Handler>(ternary<i32, u32, u32, u32, dot4<i8, i8>>)
                          : static_cast<Handler>(ternary<i32, u32, u32, u32, dot4<i8, u8>>))
                    : (sb ? static_cast<Handler>(ternary<i32, u32, u32, u32, dot4<u8, i8>>)
                          : static_cast<Handler>(ternary<i32, u32, u32, u32, dot4<u8, u8>>)),
                 32, 32);
  }
  if (op == "dp2a" && d.types().size() == 2) {
    const bool sa = d.types()[0].kind == 's', sb = d.types()[1].kind == 's', hi = d.has("hi");
#define SOFTGPU_DOT2(A, B)                                               \
  (hi ? static_cast<Handler>(ternary<i32, u32, u32, u32, dot2<A, B, 2>>) \
      : static_cast<Handler>(ternary<i32, u32, u32, u32, dot2<A, B, 0>>))
    return three(d,
                 sa ? (sb ? SOFTGPU_DOT2(i16, i8) : SOFTGPU_DOT2(i16, u8))
                    : (sb ? SOFTGPU_DOT2(u16, i8) : SOFTGPU_DOT2(u16, u8)),
                 32, 32);
#undef SOFTGPU_DOT2
  }
  if (op == "fns") {
    d.emit(ternary<u32, u32, u32, i32, find_nth>, Class::kInteger,
           {d.dst(0, 32), d.src(1, 32), d.src(2, 32), d.src(3, 32)});
    return true;
  }
  return false;
}

}  // namespace softgpu
