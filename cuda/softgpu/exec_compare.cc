// setp, set, selp, slct, testp.
#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

enum class Cmp : u8 { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan };

template <Cmp C, class T>
inline bool compare(T a, T b) {
  const bool unordered = a != a || b != b;
  switch (C) {
    case Cmp::kEq:
      return a == b;
    case Cmp::kNe:
      return std::is_floating_point_v<T> ? (a < b || a > b) : a != b;
    case Cmp::kLt:
      return a < b;
    case Cmp::kLe:
      return a <= b;
    case Cmp::kGt:
      return a > b;
    case Cmp::kGe:
      return a >= b;
    case Cmp::kEqu:
      return unordered || a == b;
    case Cmp::kNeu:
      return a != b;
    case Cmp::kLtu:
      return !(a >= b);
    case Cmp::kLeu:
      return !(a > b);
    case Cmp::kGtu:
      return !(a <= b);
    case Cmp::kGeu:
      return !(a < b);
    case Cmp::kNum:
      return !unordered;
    default:
      return unordered;
  }
}

// How a comparison's result goes on: joined with a predicate, written as predicates, or as a value (set).
constexpr u32 kAnd = 1, kOr = 2, kXor = 3, kJoin = 3, kNotC = 4, kFtzCmp = 8, kSetInt = 16, kSetFloat = 32;
void finish(Warp& w, const Inst& in, Mask m, Mask r) {
  Mask other = ~r;
  if (in.aux & kJoin) {
    const Mask c = predicate(w, in.ops[4]) ^ ((in.aux & kNotC) ? kAll : 0);
    const auto join = [&](Mask v) {
      return (in.aux & kJoin) == kAnd ? v & c : (in.aux & kJoin) == kOr ? v | c : v ^ c;
    };
    r = join(r), other = join(other);
  }
  if (in.aux & (kSetInt | kSetFloat)) {
    u32* d = lanes<u32>(w, in.ops[0]);
    const u32 yes = (in.aux & kSetFloat) ? 0x3f800000 : 0xffffffff;
    each(m, d, [=](int i) { return (r >> i) & 1 ? yes : 0u; });
    return;
  }
  set_predicate(w, in.ops[0], m, r);
  if (in.ops[1].present()) set_predicate(w, in.ops[1], m, other);
}

// ops: p, q, a, b, c
template <class T, Cmp C>
void setp(Warp& w, const Inst& in, Mask m) {
  const T* a = lanes<T>(w, in.ops[2]);
  const T* b = lanes<T>(w, in.ops[3]);
  Mask r;
  if constexpr (std::is_same_v<T, float>) {
    if (in.aux & kFtzCmp) {
      const auto z = [](float f) { return std::fabs(f) < 1.17549435e-38f ? 0.0f : f; };
      r = ballot(kAll, [=](int i) { return compare<C>(z(a[i]), z(b[i])); });
      return finish(w, in, m, r);
    }
  }
  r = ballot(kAll, [=](int i) { return compare<C>(a[i], b[i]); });
  finish(w, in, m, r);
}
template <bool kBf16, Cmp C>
void setp_half(Warp& w, const Inst& in, Mask m) {
  const u16* a = lanes<u16>(w, in.ops[2]);
  const u16* b = lanes<u16>(w, in.ops[3]);
  const auto v = [](u16 x) { return kBf16 ? bf16_to_float(x) : half_to_float(x); };
  finish(w, in, m, ballot(kAll, [=](int i) { return compare<C>(v(a[i]), v(b[i])); }));
}
// Pairs: p is the low half's result, q the high half's.
template <bool kBf16, Cmp C>
void setp_pair(Warp& w, const Inst& in, Mask m) {
  const u32* a = lanes<u32>(w, in.ops[2]);
  const u32* b = lanes<u32>(w, in.ops[3]);
  const auto v = [](u32 x) {
    return kBf16 ? bf16_to_float(static_cast<u16>(x)) : half_to_float(static_cast<u16>(x));
  };
  const Mask lo = ballot(kAll, [=](int i) { return compare<C>(v(a[i]), v(b[i])); });
  const Mask hi = ballot(kAll, [=](int i) { return compare<C>(v(a[i] >> 16), v(b[i] >> 16)); });
  if (in.aux & (kSetInt | kSetFloat)) {
    u32* d = lanes<u32>(w, in.ops[0]);
    const u32 yes = (in.aux & kSetInt) ? 0xffff : kBf16 ? 0x3f80 : 0x3c00;
    each(m, d, [=](int i) { return ((lo >> i) & 1 ? yes : 0u) | ((hi >> i) & 1 ? yes << 16 : 0u); });
    return;
  }
  set_predicate(w, in.ops[0], m, lo);
  if (in.ops[1].present()) set_predicate(w, in.ops[1], m, hi);
}

template <class T>
Handler pick_cmp(Cmp c) {
  switch (c) {
    case Cmp::kEq:
      return setp<T, Cmp::kEq>;
    case Cmp::kNe:
      return setp<T, Cmp::kNe>;
    case Cmp::kLt:
      return setp<T, Cmp::kLt>;
    case Cmp::kLe:
      return setp<T, Cmp::kLe>;
    case Cmp::kGt:
      return setp<T, Cmp::kGt>;
    case Cmp::kGe:
      return setp<T, Cmp::kGe>;
    default:
      break;
  }
  if constexpr (std::is_floating_point_v<T>) {
    switch (c) {
      case Cmp::kEqu:
        return setp<T, Cmp::kEqu>;
      case Cmp::kNeu:
        return setp<T, Cmp::kNeu>;
      case Cmp::kLtu:
        return setp<T, Cmp::kLtu>;
      case Cmp::kLeu:
        return setp<T, Cmp::kLeu>;
      case Cmp::kGtu:
        return setp<T, Cmp::kGtu>;
      case Cmp::kGeu:
        return setp<T, Cmp::kGeu>;
      case Cmp::kNum:
        return setp<T, Cmp::kNum>;
      case Cmp::kNan:
        return setp<T, Cmp::kNan>;
      default:
        break;
    }
  }
  return nullptr;
}
template <bool kBf16, bool kPair>
Handler pick_half(Cmp c) {
#define SOFTGPU_CASE(C)                                           \
  case Cmp::C:                                                    \
    return kPair ? static_cast<Handler>(setp_pair<kBf16, Cmp::C>) \
                 : static_cast<Handler>(setp_half<kBf16, Cmp::C>)
  switch (c) {
    SOFTGPU_CASE(kEq);
    SOFTGPU_CASE(kNe);
    SOFTGPU_CASE(kLt);
    SOFTGPU_CASE(kLe);
    SOFTGPU_CASE(kGt);
    SOFTGPU_CASE(kGe);
    SOFTGPU_CASE(kEqu);
    SOFTGPU_CASE(kNeu);
    SOFTGPU_CASE(kLtu);
    SOFTGPU_CASE(kLeu);
    SOFTGPU_CASE(kGtu);
    SOFTGPU_CASE(kGeu);
    SOFTGPU_CASE(kNum);
    SOFTGPU_CASE(kNan);
  }
#undef SOFTGPU_CASE
  return nullptr;
}

bool cmp_of(const std::string& s, Cmp* c) {
  static const std::unordered_map<std::string, Cmp> table = {
      {"eq", Cmp::kEq},   {"ne", Cmp::kNe},   {"lt", Cmp::kLt},   {"le", Cmp::kLe},   {"gt", Cmp::kGt},
      {"ge", Cmp::kGe},   {"lo", Cmp::kLt},   {"ls", Cmp::kLe},   {"hi", Cmp::kGt},   {"hs", Cmp::kGe},
      {"equ", Cmp::kEqu}, {"neu", Cmp::kNeu}, {"ltu", Cmp::kLtu}, {"leu", Cmp::kLeu}, {"gtu", Cmp::kGtu},
      {"geu", Cmp::kGeu}, {"num", Cmp::kNum}, {"nan", Cmp::kNan}};
  const auto it = table.find(s);
  if (it == table.end()) return false;
  *c = it->second;
  return true;
}

template <class T>
void selp(Warp& w, const Inst& in, Mask m) {
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const T* b = lanes<T>(w, in.ops[2]);
  const Mask p = predicate(w, in.ops[3]) ^ in.aux;
  each(m, d, [=](int i) { return (p >> i) & 1 ? a[i] : b[i]; });
}
template <class T, class C>
void slct(Warp& w, const Inst& in, Mask m) {
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const T* b = lanes<T>(w, in.ops[2]);
  const C* c = lanes<C>(w, in.ops[3]);
  each(m, d, [=](int i) { return c[i] >= 0 ? a[i] : b[i]; });
}
template <class T>
void testp(Warp& w, const Inst& in, Mask m) {
  const T* a = lanes<T>(w, in.ops[1]);
  const u32 kind = in.aux;
  set_predicate(w, in.ops[0], m, ballot(kAll, [=](int i) {
                  switch (kind) {
                    case 0:
                      return std::isfinite(a[i]);
                    case 1:
                      return std::isinf(a[i]);
                    case 2:
                      return !(a[i] != a[i]);
                    case 3:
                      return a[i] != a[i];
                    case 4:
                      return std::isnormal(a[i]);
                    default:
                      return std::fpclassify(a[i]) == FP_SUBNORMAL;
                  }
                }));
}

}  // namespace

bool decode_compare(Decoder& d) {
  const std::string& op = d.name();
  if (op == "selp") {
    const int bits = d.type().bits;
#define SOFTGPU_SELP(T) (selp<T>)
    Handler h = SOFTGPU_BY_UNSIGNED(bits, SOFTGPU_SELP);
#undef SOFTGPU_SELP
    if (!h) return false;
    d.emit(h, Class::kMove,
           {d.dst(0, bits), d.src(1, bits, d.type().kind), d.src(2, bits, d.type().kind), d.pred(d.arg(3))})
        .aux = d.arg(3).negated ? kAll : 0;
    return true;
  }
  if (op == "slct" && d.types().size() == 2) {
    const int bits = d.types()[0].bits;
    const bool f = d.types()[1].kind == 'f';
#define SOFTGPU_SLCT(T) (f ? static_cast<Handler>(slct<T, float>) : static_cast<Handler>(slct<T, i32>))
    d.emit(SOFTGPU_BY_UNSIGNED(bits, SOFTGPU_SLCT), Class::kMove,
           {d.dst(0, bits), d.src(1, bits), d.src(2, bits), d.src(3, 32)});
#undef SOFTGPU_SLCT
    return true;
  }
  if (op == "testp") {
    static constexpr const char* kinds[] = {"finite",     "infinite", "number",
                                            "notanumber", "normal",   "subnormal"};
    for (u32 k = 0; k < 6; ++k) {
      if (!d.has(kinds[k])) continue;
      const int bits = d.type().bits;
      d.emit(bits == 32 ? static_cast<Handler>(testp<float>) : static_cast<Handler>(testp<double>),
             Class::kFloat, {d.dst(0, 1), d.src(1, bits, 'f')})
          .aux = k;
      return true;
    }
    return false;
  }
  if (op != "setp" && op != "set") return false;
  Cmp c = Cmp::kEq;
  bool found = false;
  for (size_t i = 1; i < d.in().op.size() && !found; ++i) found = cmp_of(d.in().op[i], &c);
  if (!found || d.types().empty()) return false;
  const Type t = d.type();
  Handler h = nullptr;
  if (t.kind == 'h')
    h = t.pair ? pick_half<false, true>(c) : pick_half<false, false>(c);
  else if (t.kind == 'B')
    h = t.pair ? pick_half<true, true>(c) : pick_half<true, false>(c);
  else if (t.kind == 'f')
    h = t.bits == 32 ? pick_cmp<float>(c) : pick_cmp<double>(c);
  else if (t.kind == 's')
    h = t.bits == 16 ? pick_cmp<i16>(c) : t.bits == 32 ? pick_cmp<i32>(c) : pick_cmp<i64>(c);
  else if (t.kind == 'u' || t.kind == 'b')
    h = t.bits == 16 ? pick_cmp<u16>(c) : t.bits == 32 ? pick_cmp<u32>(c) : pick_cmp<u64>(c);
  if (!h) return false;
  u32 aux = d.has("and") ? kAnd : d.has("or") ? kOr : d.has("xor") ? kXor : 0;
  if (d.has("ftz")) aux |= kFtzCmp;
  std::vector<Ref> refs;
  if (op == "set") {
    if (d.types().size() != 2) return false;
    const Type to = d.types()[0];
    if (to.bits != 32) return false;
    aux |= to.kind == 'f' || to.kind == 'h' || to.kind == 'B' ? kSetFloat : kSetInt;
    refs = {d.dst(0, 32), kNoRef};
  } else {
    refs = {d.dst(0, 1), d.second(0)};
  }
  refs.push_back(d.src(1, t.bits, t.kind));
  refs.push_back(d.src(2, t.bits, t.kind));
  if (aux & kJoin) {
    refs.push_back(d.pred(d.arg(3)));
    if (d.arg(3).negated) aux |= kNotC;
  }
  d.emit(h, t.is_float() ? Class::kFloat : Class::kInteger, refs).aux = aux;
  return true;
}

}  // namespace softgpu
