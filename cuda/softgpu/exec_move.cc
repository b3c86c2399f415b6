// mov (registers, packing, symbols, special registers), cvta, isspacep, mapa, getctarank, prefetch and other
// hints.
#include <fmt/format.h>

#include <chrono>

#include "cuda/softgpu/access.h"
#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

template <class T>
void copy(Warp& w, const Inst& in, Mask m) {
  unary<T, T, [](T a) { return a; }>(w, in, m);
}
void copy_predicate(Warp& w, const Inst& in, Mask m) {
  set_predicate(w, in.ops[0], m, predicate(w, in.ops[1]) ^ in.aux);
}
struct Quad {
  u64 lo, hi;
};
void copy128(Warp& w, const Inst& in, Mask m) {
  Quad* d = lanes<Quad>(w, in.ops[0]);
  const Quad* a = lanes<Quad>(w, in.ops[1]);
  for_lanes(m, [&](int i) { d[i] = a[i]; });
}
void narrow_copy(Warp& w, const Inst& in, Mask m) {  // a 32-bit special register into a 16- or 64-bit one
  const u32* a = lanes<u32>(w, in.ops[1]);
  if (in.ops[0].bits == 16) {
    each(m, lanes<u16>(w, in.ops[0]), [=](int i) { return static_cast<u16>(a[i]); });
  } else {
    each(m, lanes<u64>(w, in.ops[0]), [=](int i) { return static_cast<u64>(a[i]); });
  }
}
void shrink_copy(Warp& w, const Inst& in, Mask m) {
  const u64* a = lanes<u64>(w, in.ops[1]);
  each(m, lanes<u32>(w, in.ops[0]), [=](int i) { return static_cast<u32>(a[i]); });
}

// ops[0] whole, ops[1..] parts, low first.
template <class Whole, class Part>
void pack(Warp& w, const Inst& in, Mask m) {
  constexpr int n = sizeof(Whole) / sizeof(Part);
  Whole* d = lanes<Whole>(w, in.ops[0]);
  const Part* p[n];
  for (int k = 0; k < n; ++k) p[k] = lanes<Part>(w, in.ops[1 + k]);
  each(m, d, [&](int i) {
    Whole v = 0;
    for (int k = 0; k < n; ++k) v |= static_cast<Whole>(p[k][i]) << (k * 8 * static_cast<int>(sizeof(Part)));
    return v;
  });
}
template <class Whole, class Part>
void unpack(Warp& w, const Inst& in, Mask m) {
  constexpr int n = sizeof(Whole) / sizeof(Part);
  const Whole* a = lanes<Whole>(w, in.ops[0]);
  for (int k = 0; k < n; ++k) {
    if (!in.ops[1 + k].present()) continue;
    Part* p = lanes<Part>(w, in.ops[1 + k]);
    each(m, p, [=](int i) { return static_cast<Part>(a[i] >> (k * 8 * static_cast<int>(sizeof(Part)))); });
  }
}
void pack128(Warp& w, const Inst& in, Mask m) {
  Quad* d = lanes<Quad>(w, in.ops[0]);
  const u64* a = lanes<u64>(w, in.ops[1]);
  const u64* b = lanes<u64>(w, in.ops[2]);
  for_lanes(m, [&](int i) { d[i] = {a[i], b[i]}; });
}
void unpack128(Warp& w, const Inst& in, Mask m) {
  const Quad* a = lanes<Quad>(w, in.ops[0]);
  if (in.ops[1].present()) each(m, lanes<u64>(w, in.ops[1]), [=](int i) { return a[i].lo; });
  if (in.ops[2].present()) each(m, lanes<u64>(w, in.ops[2]), [=](int i) { return a[i].hi; });
}

void clock(Warp& w, const Inst& in, Mask m) {
  const u64 v = in.aux ? static_cast<u64>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                              std::chrono::system_clock::now().time_since_epoch())
                                              .count())
                       : __builtin_ia32_rdtsc();
  if (in.ops[0].bits == 64) {
    each(m, lanes<u64>(w, in.ops[0]), [=](int) { return v; });
  } else {
    each(m, lanes<u32>(w, in.ops[0]), [=](int) { return static_cast<u32>(in.imm ? v >> 32 : v); });
  }
}

void add_window(Warp& w, const Inst& in, Mask m) {
  u64* d = lanes<u64>(w, in.ops[0]);
  const u64* a = lanes<u64>(w, in.ops[1]);
  const u64 window = static_cast<u64>(in.imm);
  each(m, d, [=](int i) { return a[i] + window; });
}
void is_space(Warp& w, const Inst& in, Mask m) {
  const u64* a = lanes<u64>(w, in.ops[1]);
  const u64 window = static_cast<u64>(in.imm);
  if (window) {
    set_predicate(w, in.ops[0], m, ballot(kAll, [=](int i) { return a[i] - window < kWindowSize; }));
  } else {
    set_predicate(w, in.ops[0], m, ballot(kAll, [=](int i) {
                    return a[i] - kSharedWindow >= kWindowSize && a[i] - kLocalWindow >= kWindowSize &&
                           a[i] - kParamWindow >= kWindowSize;
                  }));
  }
}
// mapa: an address of the own block's shared memory to the same place in another block of the cluster.
void map_rank(Warp& w, const Inst& in, Mask m) {
  const u32* rank = lanes<u32>(w, in.ops[2]);
  const u32 blocks = static_cast<u32>(w.group->ctas.size());
  for_lanes(m, [&](int i) {
    if (rank[i] >= blocks)
      fault(w, in, i, kFaultAddress, fmt::format("mapa: block rank {} of a cluster of {}", rank[i], blocks));
  });
  if (in.ops[0].bits == 64) {
    u64* d = lanes<u64>(w, in.ops[0]);
    const u64* a = lanes<u64>(w, in.ops[1]);
    each(m, d, [=](int i) { return (a[i] & ~u64{0xff000000}) | (static_cast<u64>(rank[i]) + 1) << 24; });
  } else {
    u32* d = lanes<u32>(w, in.ops[0]);
    const u32* a = lanes<u32>(w, in.ops[1]);
    each(m, d, [=](int i) { return (a[i] & 0xffffff) | (rank[i] + 1) << 24; });
  }
}
void rank_of(Warp& w, const Inst& in, Mask m) {
  u32* d = lanes<u32>(w, in.ops[0]);
  const u32 own = w.cta->rank;
  for_lanes(m, [&](int i) {
    const u64 a = in.ops[1].bits == 64 ? lanes<u64>(w, in.ops[1])[i] : lanes<u32>(w, in.ops[1])[i];
    const u32 r = static_cast<u32>(a >> 24) & 255;
    d[i] = r ? r - 1 : own;
  });
}
void nothing(Warp&, const Inst&, Mask) {}
void policy(Warp& w, const Inst& in, Mask m) {
  each(m, lanes<u64>(w, in.ops[0]), [](int) { return u64{0x12f0000000000000}; });
}

u64 window_base(const Decoder& d, bool* known) {
  *known = true;
  if (d.has("shared") || d.has("shared::cta") || d.has("shared::cluster")) return kSharedWindow;
  if (d.has("local")) return kLocalWindow;
  if (d.has("param") || d.has("param::entry")) return kParamWindow;
  if (d.has("global") || d.has("const")) return 0;
  *known = false;
  return 0;
}

bool decode_mov(Decoder& d) {
  const ptx::Operand& to = d.arg(0);
  const ptx::Operand& from = d.arg(1);
  using K = ptx::Operand;
  if (from.kind == K::kVector || to.kind == K::kVector) {
    const bool packing = from.kind == K::kVector;
    const auto& parts = packing ? from.list : to.list;
    const int whole = d.type().bits;
    const int part = whole / static_cast<int>(parts.size());
    std::vector<Ref> refs = {packing ? d.dst(to, whole) : d.src(from, whole)};
    for (const auto& p : parts)
      refs.push_back(packing ? d.src(p, part) : p.kind == K::kSink ? kNoRef : d.dst(p, part));
    Handler h = nullptr;
    if (whole == 32 && part == 16)
      h = packing ? static_cast<Handler>(pack<u32, u16>) : static_cast<Handler>(unpack<u32, u16>);
    if (whole == 64 && part == 32)
      h = packing ? static_cast<Handler>(pack<u64, u32>) : static_cast<Handler>(unpack<u64, u32>);
    if (whole == 64 && part == 16)
      h = packing ? static_cast<Handler>(pack<u64, u16>) : static_cast<Handler>(unpack<u64, u16>);
    if (whole == 128 && part == 64)
      h = packing ? static_cast<Handler>(pack128) : static_cast<Handler>(unpack128);
    if (!h) return false;
    d.emit(h, Class::kMove, refs);
    return true;
  }
  const Type t = d.type();
  if (t.kind == 'p') {
    d.emit(copy_predicate, Class::kMove, {d.dst(to, 1), d.pred(from)}).aux = from.negated ? kAll : 0;
    return true;
  }
  const int bits = d.width(to);
  if (from.kind == K::kReg) {
    if (from.name == "%clock" || from.name == "%clock_hi" || from.name == "%clock64" ||
        from.name.rfind("%globaltimer", 0) == 0) {
      Inst& in = d.emit(clock, Class::kMove, {d.dst(to, bits)});
      in.aux = from.name[1] == 'g';
      in.imm = from.name.ends_with("_hi");
      return true;
    }
    if (from.name.rfind("%envreg", 0) == 0) {
      d.emit(copy<u32>, Class::kMove, {d.dst(to, 32), d.constant(32, 0)});
      return true;
    }
    const int w = d.width(from);
    if (w == 1 && bits == 1) {
      d.emit(copy_predicate, Class::kMove, {d.dst(to, 1), d.pred(from)});
      return true;
    }
    if (w == 32 && (bits == 16 || bits == 64)) {
      d.emit(narrow_copy, Class::kMove, {d.dst(to, bits), d.src(from, 32)});
      return true;
    }
    if (w == 64 && bits == 32) {
      d.emit(shrink_copy, Class::kMove, {d.dst(to, 32), d.src(from, 64)});
      return true;
    }
    if (bits == 128) {
      d.emit(copy128, Class::kMove, {d.dst(to, 128), d.src(from, 128)});
      return true;
    }
  }
#define SOFTGPU_COPY(T) (copy<T>)
  Handler h = SOFTGPU_BY_UNSIGNED(bits, SOFTGPU_COPY);
  if (!h) return false;
  d.emit(h, Class::kMove, {d.dst(to, bits), d.src(from, bits, t.kind)});
  return true;
}

}  // namespace

bool decode_move(Decoder& d) {
  const std::string& op = d.name();
  if (op == "mov") return decode_mov(d);
  if (op == "cvta") {
    bool known;
    const u64 base = window_base(d, &known);
    if (!known || d.type().bits != 64) return false;
    Inst& in = d.emit(base ? static_cast<Handler>(add_window) : static_cast<Handler>(copy<u64>), Class::kMove,
                      {d.dst(0, 64), d.src(1, 64)});
    in.imm = static_cast<i64>(d.has("to") ? u64{0} - base : base);
    return true;
  }
  if (op == "isspacep") {
    bool known;
    const u64 base = window_base(d, &known);
    if (!known) return false;
    d.emit(is_space, Class::kMove, {d.dst(0, 1), d.src(1, 64)}).imm = static_cast<i64>(base);
    return true;
  }
  if (op == "mapa") {
    const int bits = d.type().bits;
    d.emit(map_rank, Class::kMove, {d.dst(0, bits), d.src(1, bits), d.src(2, 32)});
    return true;
  }
  if (op == "getctarank") {
    d.emit(rank_of, Class::kMove, {d.dst(0, 32), d.src(1, d.type().bits)});
    return true;
  }
  if (op == "createpolicy") {
    d.emit(policy, Class::kMove, {d.dst(0, 64)});
    return true;
  }
  if (op == "prefetch" || op == "prefetchu" || op == "applypriority" || op == "pmevent" || op == "nop" ||
      op == "setmaxnreg" || op == "griddepcontrol") {
    d.emit(nothing, Class::kControl, {});
    return true;
  }
  return false;
}

}  // namespace softgpu
