// atom and red, scalar and vector, on global and shared memory (also of other blocks of the cluster).
#include "cuda/softgpu/access.h"
#include "cuda/softgpu/async.h"
#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

enum class Op : u32 { kAdd, kExch, kCas, kMin, kMax, kInc, kDec, kAnd, kOr, kXor };

template <class T>
T apply_int(Op op, T old, T b, T c) {
  switch (op) {
    case Op::kAdd:
      return static_cast<T>(static_cast<u64>(old) + static_cast<u64>(b));
    case Op::kExch:
      return b;
    case Op::kCas:
      return old == b ? c : old;
    case Op::kMin:
      return std::min(old, b);
    case Op::kMax:
      return std::max(old, b);
    case Op::kInc:
      return old >= b ? 0 : old + 1;
    case Op::kDec:
      return old == 0 || old > b ? b : old - 1;
    case Op::kAnd:
      return old & b;
    case Op::kOr:
      return old | b;
    default:
      return old ^ b;
  }
}
u16 add16(bool bf16, u16 a, u16 b) {
  return bf16 ? float_to_bf16(bf16_to_float(a) + bf16_to_float(b))
              : float_to_half(half_to_float(a) + half_to_float(b));
}
u16 extremum16(bool bf16, bool largest, u16 a, u16 b) {
  const float x = bf16 ? bf16_to_float(a) : half_to_float(a), y = bf16 ? bf16_to_float(b) : half_to_float(b);
  if (x != x) return b;
  if (y != y) return a;
  return (x < y) == largest ? b : a;
}

// What one element becomes; U holds its bits.
template <class U, char kKind>
U apply(Op op, U old, U b, U c) {
  if constexpr (kKind == 'u') {
    return apply_int<U>(op, old, b, c);
  } else if constexpr (kKind == 's') {
    using S = std::make_signed_t<U>;
    return static_cast<U>(apply_int<S>(op, static_cast<S>(old), static_cast<S>(b), static_cast<S>(c)));
  } else if constexpr (kKind == 'f' && sizeof(U) == 4) {
    return bit<U>(canonical(bit<float>(old) + bit<float>(b)));
  } else if constexpr (kKind == 'f') {
    return bit<U>(bit<double>(old) + bit<double>(b));
  } else {  // 'h', 'B': one or two 16-bit floats
    U r = 0;
    for (size_t k = 0; k < sizeof(U) / 2; ++k) {
      const u16 x = static_cast<u16>(old >> (16 * k)), y = static_cast<u16>(b >> (16 * k));
      const u16 v =
          op == Op::kAdd ? add16(kKind == 'B', x, y) : extremum16(kKind == 'B', op == Op::kMax, x, y);
      r = static_cast<U>(r | static_cast<U>(static_cast<U>(v) << (16 * k)));
    }
    return r;
  }
}

// ops: vec destinations (absent for red), address, vec operands, for cas one more. Inst::vec elements each.
template <class U, char kKind>
void atomic(Warp& w, const Inst& in, Mask m) {
  const int n = in.vec;
  const Op op = static_cast<Op>(in.aux & 255);
  const bool returns = in.aux & 256;
  const Ref* ops = in.ops;
  const Ref* dest = ops;
  if (returns) ops += n;
  const Ref address = *ops++;
  alignas(64) u64 a[kLanes];
  gather_addresses(w, in, address, in.imm, a);
  Access access;
  translate(w, in, m, static_cast<Window>(in.space), a, static_cast<u32>(sizeof(U)) * static_cast<u32>(n),
            Use::kAtomic, true, &access);
  for_lanes(m, [&](int i) {
    for (int k = 0; k < n; ++k) {
      U* p = reinterpret_cast<U*>(access.host[i]) + k;
      const U b = lanes<U>(w, ops[k])[i];
      const U c = op == Op::kCas ? lanes<U>(w, ops[n])[i] : 0;
      U old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
      while (!__atomic_compare_exchange_n(p, &old, apply<U, kKind>(op, old, b, c), false, __ATOMIC_SEQ_CST,
                                          __ATOMIC_SEQ_CST)) {
      }
      if (returns) lanes<U>(w, dest[k])[i] = old;
    }
  });
}

bool decode_operation(const Decoder& d, Op* op) {
  if (d.has("add"))
    *op = Op::kAdd;
  else if (d.has("exch"))
    *op = Op::kExch;
  else if (d.has("cas"))
    *op = Op::kCas;
  else if (d.has("min"))
    *op = Op::kMin;
  else if (d.has("max"))
    *op = Op::kMax;
  else if (d.has("inc"))
    *op = Op::kInc;
  else if (d.has("dec"))
    *op = Op::kDec;
  else if (d.has("and"))
    *op = Op::kAnd;
  else if (d.has("or"))
    *op = Op::kOr;
  else if (d.has("xor"))
    *op = Op::kXor;
  else
    return false;
  return true;
}

template <class U, char kKind>
void reduce(u32 op, char* to, const char* from, u64 bytes) {
  for (u64 at = 0; at < bytes; at += sizeof(U)) {
    U* p = reinterpret_cast<U*>(to + at);
    U b;
    std::memcpy(&b, from + at, sizeof b);
    U old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(p, &old, apply<U, kKind>(static_cast<Op>(op), old, b, U{0}), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
  }
}

}  // namespace

Reducer find_reducer(Decoder& d, u32* out) {
  Op op;
  if (d.types().empty() || !decode_operation(d, &op) || op == Op::kCas || op == Op::kExch) return nullptr;
  *out = static_cast<u32>(op);
  const Type t = d.type();
  if (t.kind == 'h') return reduce<u16, 'h'>;
  if (t.kind == 'B') return reduce<u16, 'B'>;
  if (t.kind == 'f') return op != Op::kAdd ? nullptr : t.bits == 32 ? reduce<u32, 'f'> : reduce<u64, 'f'>;
  if (t.kind == 's') return t.bits == 32 ? reduce<u32, 's'> : t.bits == 64 ? reduce<u64, 's'> : nullptr;
  return t.bits == 32 ? reduce<u32, 'u'> : t.bits == 64 ? reduce<u64, 'u'> : nullptr;
}

bool decode_atomic(Decoder& d) {
  const std::string& name = d.name();
  if ((name != "atom" && name != "red") || d.types().empty() || d.has("async")) return false;
  const bool returns = name == "atom";
  const Type t = d.type();
  Op op;
  if (!decode_operation(d, &op)) return false;
  Handler h = nullptr;
  if (t.kind == 'h' && !d.has("cas"))
    h = t.pair ? static_cast<Handler>(atomic<u32, 'h'>) : static_cast<Handler>(atomic<u16, 'h'>);
  else if (t.kind == 'B')
    h = t.pair ? static_cast<Handler>(atomic<u32, 'B'>) : static_cast<Handler>(atomic<u16, 'B'>);
  else if (t.kind == 'f' && op == Op::kAdd)
    h = t.bits == 32 ? static_cast<Handler>(atomic<u32, 'f'>) : static_cast<Handler>(atomic<u64, 'f'>);
  else if (t.kind == 's')
    h = t.bits == 32 ? static_cast<Handler>(atomic<u32, 's'>) : static_cast<Handler>(atomic<u64, 's'>);
  else if (t.kind == 'u' || t.kind == 'b')
    h = t.bits == 16   ? static_cast<Handler>(atomic<u16, 'u'>)
        : t.bits == 32 ? static_cast<Handler>(atomic<u32, 'u'>)
        : t.bits == 64 ? static_cast<Handler>(atomic<u64, 'u'>)
                       : nullptr;
  if (!h) return false;
  Window window = Window::kGeneric;
  for (size_t i = 1; i < d.in().op.size(); ++i) {
    bool known;
    const Window v = window_of(d.in().op[i], &known);
    if (known) window = v;
  }
  const size_t at = returns ? 1 : 0;
  Symbol symbol;
  i64 offset;
  const auto list = [&](const ptx::Operand& o) {
    std::vector<ptx::Operand> out;
    if (o.kind == ptx::Operand::kVector)
      out = o.list;
    else
      out.push_back(o);
    return out;
  };
  const auto values = list(d.arg(at + 1));
  std::vector<Ref> refs;
  if (returns)
    for (const auto& o : list(d.arg(0))) refs.push_back(d.dst(o, t.bits));
  refs.push_back(d.address(d.arg(at), &symbol, &offset));
  for (const auto& o : values) refs.push_back(d.src(o, t.bits, t.kind));
  if (op == Op::kCas) refs.push_back(d.src(at + 2, t.bits, t.kind));
  Inst& in = d.emit(h, Class::kAtomic, refs);
  in.aux = static_cast<u32>(op) | (returns ? 256 : 0);
  in.vec = static_cast<u8>(values.size());
  in.space = static_cast<u8>(window);
  in.imm = offset;
  if (t.bits == 16 && window != Window::kGlobal) d.kernel().subword_shared = true;
  return true;
}

}  // namespace softgpu
