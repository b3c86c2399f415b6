// ld and st in every state space, scalar and vector.
#include "cuda/softgpu/access.h"
#include "cuda/softgpu/exec.h"

namespace softgpu {

Window window_of(const std::string& m, bool* known) {
  *known = true;
  if (m == "global" || m == "const") return Window::kGlobal;
  if (m == "shared" || m == "shared::cta") return Window::kShared;
  if (m == "shared::cluster") return Window::kSharedCluster;
  if (m == "local") return Window::kLocal;
  if (m == "param" || m == "param::entry" || m == "param::func") return Window::kParam;
  *known = false;
  return Window::kGeneric;
}

namespace {

constexpr u8 kStrong = 64;  // Inst::flags

// ops: the vector's registers, then the address.
template <class T, class R, int kVec>
void load(Warp& w, const Inst& in, Mask m) {
  alignas(64) u64 a[kLanes];
  gather_addresses(w, in, in.ops[kVec], in.imm, a);
  Access access;
  translate(w, in, m, static_cast<Window>(in.space), a, sizeof(T) * kVec, Use::kRead, in.flags & kStrong,
            &access);
  R* d[kVec];
  for (int k = 0; k < kVec; ++k) d[k] = lanes<R>(w, in.ops[k]);
  if (access.contiguous) {
    const T* p = reinterpret_cast<const T*>(access.host[0]);
    if constexpr (kVec == 1 && sizeof(T) == sizeof(R)) {
      std::memcpy(d[0], p, sizeof(T) * kLanes);
    } else {
      for (int k = 0; k < kVec; ++k) {
        R* out = d[k];
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) out[i] = static_cast<R>(p[i * kVec + k]);
      }
    }
    return;
  }
  for_lanes(m, [&](int i) {
    T v[kVec];
    std::memcpy(v, reinterpret_cast<const void*>(access.host[i]), sizeof v);
    for (int k = 0; k < kVec; ++k) d[k][i] = static_cast<R>(v[k]);
  });
}

template <class T, class R, int kVec>
void store(Warp& w, const Inst& in, Mask m) {
  alignas(64) u64 a[kLanes];
  gather_addresses(w, in, in.ops[kVec], in.imm, a);
  Access access;
  translate(w, in, m, static_cast<Window>(in.space), a, sizeof(T) * kVec, Use::kWrite, in.flags & kStrong,
            &access);
  const R* s[kVec];
  for (int k = 0; k < kVec; ++k) s[k] = lanes<R>(w, in.ops[k]);
  if (access.contiguous) {
    T* p = reinterpret_cast<T*>(access.host[0]);
    if constexpr (kVec == 1 && sizeof(T) == sizeof(R)) {
      std::memcpy(p, s[0], sizeof(T) * kLanes);
    } else {
      for (int k = 0; k < kVec; ++k) {
        const R* from = s[k];
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) p[i * kVec + k] = static_cast<T>(from[i]);
      }
    }
    return;
  }
  for_lanes(m, [&](int i) {
    T v[kVec];
    for (int k = 0; k < kVec; ++k) v[k] = static_cast<T>(s[k][i]);
    std::memcpy(reinterpret_cast<void*>(access.host[i]), v, sizeof v);
  });
}

// Parameters of the kernel at a constant place: one value for all lanes.
template <class T, class R, int kVec>
void load_param(Warp& w, const Inst& in, Mask m) {
  const char* p = w.group->launch->params.data() + in.imm;
  for (int k = 0; k < kVec; ++k) {
    T v;
    std::memcpy(&v, p + static_cast<size_t>(k) * sizeof(T), sizeof v);
    const R r = static_cast<R>(v);
    each(m, lanes<R>(w, in.ops[k]), [=](int) { return r; });
  }
}

enum class Kind : u8 { kLoad, kStore, kParam };
template <class T, class R>
Handler by_vector(Kind k, int n) {
#define SOFTGPU_VEC(N)                                                \
  case N:                                                             \
    return k == Kind::kLoad    ? static_cast<Handler>(load<T, R, N>)  \
           : k == Kind::kStore ? static_cast<Handler>(store<T, R, N>) \
                               : static_cast<Handler>(load_param<T, R, N>);
  switch (n) {
    SOFTGPU_VEC(1)
    SOFTGPU_VEC(2)
    SOFTGPU_VEC(4)
    case 8:
      if constexpr (sizeof(T) == 4)
        return k == Kind::kLoad    ? static_cast<Handler>(load<T, R, 8>)
               : k == Kind::kStore ? static_cast<Handler>(store<T, R, 8>)
                                   : nullptr;
      return nullptr;
    default:
      return nullptr;
  }
#undef SOFTGPU_VEC
}
template <class T>
Handler by_register(Kind k, int n, int bits) {
  if constexpr (sizeof(T) <= 2) {
    if (bits == 16) return by_vector<T, std::conditional_t<std::is_signed_v<T>, i16, u16>>(k, n);
  }
  if constexpr (sizeof(T) <= 4) {
    if (bits == 32) return by_vector<T, std::conditional_t<std::is_signed_v<T>, i32, u32>>(k, n);
  }
  if (bits == 64) return by_vector<T, std::conditional_t<std::is_signed_v<T>, i64, u64>>(k, n);
  return nullptr;
}
Handler by_memory(Kind k, const Type& t, int n, int bits) {
  const bool s = t.kind == 's' && k != Kind::kStore;
  switch (t.bits) {
    case 8:
      return s ? by_register<i8>(k, n, bits) : by_register<u8>(k, n, bits);
    case 16:
      return s ? by_register<i16>(k, n, bits) : by_register<u16>(k, n, bits);
    case 32:
      return s && bits != 32 ? by_register<i32>(k, n, bits) : by_register<u32>(k, n, bits);
    case 64:
      return by_register<u64>(k, n, bits);
    default:
      return nullptr;
  }
}

// 128-bit registers (ld.b128), always one element.
struct Quad {
  u64 lo, hi;
};
template <bool kStore>
void access128(Warp& w, const Inst& in, Mask m) {
  alignas(64) u64 a[kLanes];
  gather_addresses(w, in, in.ops[1], in.imm, a);
  Access access;
  translate(w, in, m, static_cast<Window>(in.space), a, 16, kStore ? Use::kWrite : Use::kRead,
            in.flags & kStrong, &access);
  Quad* r = lanes<Quad>(w, in.ops[0]);
  for_lanes(m, [&](int i) {
    if (kStore) {
      std::memcpy(reinterpret_cast<void*>(access.host[i]), &r[i], 16);
    } else {
      std::memcpy(&r[i], reinterpret_cast<const void*>(access.host[i]), 16);
    }
  });
}

}  // namespace

bool decode_memory(Decoder& d) {
  const std::string& op = d.name();
  if ((op != "ld" && op != "ldu" && op != "st") || d.types().empty() || d.has("async")) return false;
  const bool is_store = op == "st";
  Window window = Window::kGeneric;
  for (size_t i = 1; i < d.in().op.size(); ++i) {
    bool known;
    const Window v = window_of(d.in().op[i], &known);
    if (known) window = v;
  }
  const size_t address_at = is_store ? 0 : 1, value_at = is_store ? 1 : 0;
  Symbol symbol;
  i64 offset;
  const Ref address = d.address(d.arg(address_at), &symbol, &offset);
  if (symbol.space == ptx::Space::kLocal)
    window = Window::kLocal;  // .param variables of calls are local memory
  if (symbol.space == ptx::Space::kShared && window == Window::kGeneric) window = Window::kShared;
  const ptx::Operand& value = d.arg(value_at);
  std::vector<const ptx::Operand*> parts;
  if (value.kind == ptx::Operand::kVector) {
    for (const auto& p : value.list) parts.push_back(&p);
  } else {
    parts.push_back(&value);
  }
  const Type t = d.type();
  const int n = static_cast<int>(parts.size());
  int bits = 0;
  for (const auto* p : parts) bits = std::max<int>(bits, d.width(*p));
  if (bits == 0) bits = std::max(t.bits, 16);
  std::vector<Ref> refs;
  for (const auto* p : parts)
    refs.push_back(is_store ? d.src(*p, bits, t.is_float() ? t.kind : 'b') : d.dst(*p, bits));
  refs.push_back(address);
  Inst* in;
  if (t.bits == 128) {
    if (n != 1) return false;
    in = &d.emit(is_store ? static_cast<Handler>(access128<true>) : static_cast<Handler>(access128<false>),
                 Class::kMemory, refs);
  } else if (window == Window::kParam && symbol.space == ptx::Space::kParam && !is_store) {
    const i64 at = static_cast<i64>(symbol.address) + offset;
    if (at < 0 || at + n * t.bits / 8 > d.kernel().param_bytes) d.unknown("outside the kernel's parameters");
    Handler h = by_memory(Kind::kParam, t, n, bits);
    if (!h) return false;
    refs.pop_back();
    d.emit(h, Class::kMemory, refs).imm = at;
    return true;
  } else {
    Handler h = by_memory(is_store ? Kind::kStore : Kind::kLoad, t, n, bits);
    if (!h) return false;
    in = &d.emit(h, Class::kMemory, refs);
  }
  in->imm = offset;
  in->space = static_cast<u8>(window);
  in->size = static_cast<u8>(t.bits / 8);
  in->vec = static_cast<u8>(n);
  if (d.has("volatile") || d.has("relaxed") || d.has("acquire") || d.has("release") || d.has("mmio"))
    in->flags |= kStrong;
  if (t.bits * n < 32 && window != Window::kGlobal && window != Window::kLocal)
    d.kernel().subword_shared = true;
  return true;
}

}  // namespace softgpu
