// wgmma: matrices in shared memory named by descriptors (PTX ISA, "Matrix descriptor" and the canonical
// layouts), accumulators in registers. Each warp computes its 16 of the 64 rows when it executes the
// instruction; in_flight.h keeps what must not be touched until the wait.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "cuda/softgpu/access.h"
#include "cuda/softgpu/in_flight.h"
#include "cuda/softgpu/matrix.h"

namespace softgpu {
namespace {

constexpr u32 kNegateA = 1, kNegateB = 2, kTransA = 4, kTransB = 8, kRegisterA = 16, kSaturate = 32;
constexpr int kBytesK = 32;  // of the k extent of one instruction, for every type

struct Descriptor {
  u32 start, leading, stride, span;  // span: of the swizzle, 16 where there is none
};
Descriptor descriptor(Warp& w, const Inst& in, const Ref& r) {
  const u64* all = lanes<u64>(w, r);
  const u64 v = all[0];
  for (int i = 1; i < kLanes; ++i)
    if (all[i] != v) fault(w, in, i, kFaultInstruction, "the matrix descriptor differs between lanes");
  if ((v >> 49) & 7)
    fault(w, in, 0, kFaultInstruction, "matrix descriptors with a base offset are not supported");
  static constexpr u32 spans[] = {16, 128, 64, 32};
  return {static_cast<u32>(v & 0x3fff) << 4, static_cast<u32>((v >> 16) & 0x3fff) << 4,
          static_cast<u32>((v >> 32) & 0x3fff) << 4, spans[v >> 62]};
}
// 16 bytes of the matrix: K-major, row `mn` and chunk `k` of the k extent; else row `k` and chunk `mn`.
const char* chunk(Warp& w, const Inst& in, const Descriptor& d, bool transposed, u32 mn, u32 k) {
  u32 a;
  if (!transposed) {
    a = d.start + mn / 8 * d.stride + mn % 8 * d.span + (d.span == 16 ? k * d.leading : k * 16);
  } else if (d.span == 16) {
    a = d.start + mn * d.stride + k / 8 * d.leading + k % 8 * 16;
  } else {
    const u32 per = d.span / 16;
    a = d.start + mn / per * d.leading + mn % per * 16 + k / 8 * d.stride + k % 8 * d.span;
  }
  a ^= ((a >> 7) & (d.span / 16 - 1)) << 4;
  a &= 0x3ffff;
  if (a + 16 > w.cta->shared_bytes)
    fault(w, in, 0, kFaultAddress,
          fmt::format("read of 16 bytes at byte {} of shared memory, of which the block has {}", a,
                      w.cta->shared_bytes));
  check_async_read(w, in, 0, *w.cta, a, 16);
  if (w.group->init_checks) keep_for_wgmma(w, in, a);
  return w.cta->shared + a;
}

// ops: registers of d, of a (or its descriptor), b's descriptor, the predicate that keeps d. Inst::vec: n
// / 8.
template <Element EA, Element EB, bool kHalfC>
void wgmma(Warp& w, const Inst& in, Mask m) {
  if (!converged(w, in, &m, kAll)) return;
  if (m != kAll) fault(w, in, __builtin_ctz(m), kFaultInstruction, "wgmma needs all 32 lanes of the warp");
  start_wgmma(w, in);
  using T = std::conditional_t<is_integer(EA), i32, float>;
  constexpr int kK = kBytesK / element_bytes(EA);
  constexpr bool kTwoBytes = element_bytes(EA) == 2;
  const int n = in.vec * 8, registers = kHalfC ? n / 4 : n / 2;
  const Ref* a = in.ops + registers;
  const Ref* b = a + (in.aux & kRegisterA ? 4 : 1);
  const Ref* keep = b + 1;
  const u32 row0 = w.index % 4 * 16;
  alignas(64) T av[16][kK];
  alignas(64) T bv[kK][256];
  alignas(64) T acc[16][256];
  if (in.aux & kRegisterA) {
    constexpr int width = kK / 2;
    T block[8 * width];
    for (int r = 0; r < 4; ++r) {
      widen<EA, 128>(lanes<u32>(w, a[r]), block);
      for (int row = 0; row < 8; ++row)
        for (int k = 0; k < width; ++k) av[r % 2 * 8 + row][r / 2 * width + k] = block[row * width + k];
    }
  } else {
    const Descriptor d = descriptor(w, in, a[0]);
    if (in.aux & kTransA) {  // 16-bit elements only
      for (u32 k = 0; k < (kTwoBytes ? kK : 0); ++k)
        for (u32 c = 0; c < 2; ++c) {
          T v[16 / element_bytes(EA)];
          widen<EA, 16>(chunk(w, in, d, true, row0 / 8 + c, k), v);
          for (u32 i = 0; i < std::size(v); ++i) av[c * 8 + i][k] = v[i];
        }
    } else {
      for (u32 row = 0; row < 16; ++row)
        for (u32 c = 0; c < 2; ++c)
          widen<EA, 16>(chunk(w, in, d, false, row0 + row, c), &av[row][c * kK / 2]);
    }
  }
  const Descriptor d = descriptor(w, in, b[0]);
  const u32 columns = static_cast<u32>(n);
  if (in.aux & kTransB) {
    for (u32 k = 0; k < (kTwoBytes ? kK : 0); ++k)
      for (u32 c = 0; c < columns / 8; ++c) widen<EB, 16>(chunk(w, in, d, true, c, k), &bv[k][c * 8]);
  } else {
    for (u32 col = 0; col < columns; ++col)
      for (u32 c = 0; c < 2; ++c) {
        T v[16 / element_bytes(EB)];
        widen<EB, 16>(chunk(w, in, d, false, col, c), v);
        for (u32 k = 0; k < kK / 2; ++k) bv[c * kK / 2 + k][col] = v[k];
      }
  }
  if (((in.aux & kNegateA) != 0) != ((in.aux & kNegateB) != 0))
    for (auto& row : av)
      for (T& x : row) x = -x;
  const bool add = !keep->present() || predicate(w, *keep) == kAll;
  for (int r = 0; r < registers; ++r) {
    if (!add) break;
    if constexpr (kHalfC) {
      const u16* v = lanes<u16>(w, in.ops[r]);
      for (int i = 0; i < 2 * kLanes; ++i) acc[i / 8 + r % 2 * 8][r / 2 * 8 + i % 8] = half_to_float(v[i]);
    } else {
      const T* v = lanes<T>(w, in.ops[r]);
      for (int l = 0; l < kLanes; ++l) acc[l / 4 + r % 4 / 2 * 8][r / 4 * 8 + l % 4 * 2 + r % 2] = v[l];
    }
  }
  [[maybe_unused]] T start[is_integer(EA) ? 256 : 1];  // added at the end where that can saturate
  for (int row = 0; row < 16; ++row) {
    T* out = acc[row];
    if (!add) std::fill_n(out, n, T{0});
    if constexpr (is_integer(EA)) {
      if (in.aux & kSaturate) std::copy_n(out, n, start), std::fill_n(out, n, T{0});
    }
    for (int k = 0; k < kK; ++k) {
      const T x = av[row][k];
      const T* y = bv[k];
      for (int c = 0; c < n; ++c) out[c] = multiply_add(x, y[c], out[c]);
    }
    if constexpr (is_integer(EA)) {
      for (int c = 0; (in.aux & kSaturate) && c < n; ++c) out[c] = saturating_add(out[c], start[c]);
    }
  }
  for (int r = 0; r < registers; ++r) {
    if constexpr (kHalfC) {
      u16* v = lanes<u16>(w, in.ops[r]);
      for (int i = 0; i < 2 * kLanes; ++i) v[i] = float_to_half(acc[i / 8 + r % 2 * 8][r / 2 * 8 + i % 8]);
    } else {
      T* v = lanes<T>(w, in.ops[r]);
      for (int l = 0; l < kLanes; ++l) {
        T x = acc[l / 4 + r % 4 / 2 * 8][r / 4 * 8 + l % 4 * 2 + r % 2];
        if constexpr (!is_integer(EA)) x = canonical(x);
        v[l] = x;
      }
    }
  }
  if (w.group->launch->count)
    w.group->counters.multiply_adds += static_cast<u64>(16) * static_cast<u64>(n) * kK;
}
constexpr u32 kFence = 0, kCommit = 1, kWait = 2;
void order(Warp& w, const Inst& in, Mask m) {
  if (!converged(w, in, &m, kAll)) return;
  if (in.aux == kFence) fence_wgmma(w);
  if (in.aux == kCommit) commit_wgmma(w);
  if (in.aux == kWait) wait_wgmma(w, static_cast<u32>(in.imm));
}

template <bool kHalfC>
Handler choose(const Type& a, const Type& b) {
  if (a.kind == 'h') return wgmma<Element::kF16, Element::kF16, kHalfC>;
  if (a.kind == 'e') {
    const bool a5 = a.name == "e5m2", b5 = b.name == "e5m2";
    return a5 ? (b5 ? static_cast<Handler>(wgmma<Element::kE5m2, Element::kE5m2, kHalfC>)
                    : static_cast<Handler>(wgmma<Element::kE5m2, Element::kE4m3, kHalfC>))
              : (b5 ? static_cast<Handler>(wgmma<Element::kE4m3, Element::kE5m2, kHalfC>)
                    : static_cast<Handler>(wgmma<Element::kE4m3, Element::kE4m3, kHalfC>));
  }
  return nullptr;
}

}  // namespace

bool decode_wgmma(Decoder& d) {
  if (d.name() != "wgmma") return false;
  if (d.has("fence") || d.has("commit_group") || d.has("wait_group")) {
    Inst& in = d.emit(order, Class::kBarrier, {});
    in.aux = d.has("fence") ? kFence : d.has("commit_group") ? kCommit : kWait;
    if (in.aux == kWait) in.imm = d.arg(0).imm;
    return true;
  }
  if (!d.has("mma_async") || d.has("sp") || d.types().size() != 3) return false;
  int m = 0, n = 0, k = 0;
  for (const std::string& part : d.in().op) std::sscanf(part.c_str(), "m%dn%dk%d", &m, &n, &k);
  const Type out = d.types()[0], ta = d.types()[1], tb = d.types()[2];
  if (m != 64 || n < 8 || n > 256 || n % 8 || ta.bits == 0 || k * ta.bits != 8 * kBytesK ||
      ta.bits != tb.bits)
    return false;
  const bool half = out.kind == 'h';
  Handler h = nullptr;
  if (out.kind == 'f' || half) {
    h = half ? choose<true>(ta, tb) : choose<false>(ta, tb);
    if (!half && ta.kind == 'B') h = wgmma<Element::kBf16, Element::kBf16, false>;
    if (!half && ta.kind == 't') h = wgmma<Element::kTf32, Element::kTf32, false>;
  } else if (out.kind == 's' && ta.bits == 8) {
    const bool sa = ta.kind == 's', sb = tb.kind == 's';
    h = sa ? (sb ? static_cast<Handler>(wgmma<Element::kS8, Element::kS8, false>)
                 : static_cast<Handler>(wgmma<Element::kS8, Element::kU8, false>))
           : (sb ? static_cast<Handler>(wgmma<Element::kU8, Element::kS8, false>)
                 : static_cast<Handler>(wgmma<Element::kU8, Element::kU8, false>));
  }
  if (!h) return false;
  const auto& list = d.arg(0).list;
  if (list.size() != static_cast<size_t>(half ? n / 4 : n / 2)) d.unknown("number of registers of d");
  std::vector<Ref> refs;
  for (const auto& o : list) {
    Ref r = d.dst(o, 32);
    r.def = 2;
    refs.push_back(r);
  }
  if (d.has("satfinite") && out.kind != 's') return false;
  u32 aux = d.has("satfinite") ? kSaturate : 0;
  if (d.arg(1).kind == ptx::Operand::kVector) {
    if (d.arg(1).list.size() != 4) d.unknown("number of registers of a");
    for (const auto& o : d.arg(1).list) refs.push_back(d.src(o, 32));
    aux |= kRegisterA;
  } else {
    refs.push_back(d.src(1, 64));
  }
  refs.push_back(d.src(2, 64));
  refs.push_back(d.args() > 3 ? d.src(3, 1) : kNoRef);
  const auto flag = [&](size_t i, i64 is, u32 bit) {
    if (d.args() > i && d.arg(i).imm == is) aux |= bit;
  };
  flag(4, -1, kNegateA), flag(5, -1, kNegateB);
  if (aux & kRegisterA) {
    flag(6, 1, kTransB);
  } else {
    flag(6, 1, kTransA), flag(7, 1, kTransB);
  }
  if ((aux & (kTransA | kTransB)) && ta.bits != 16) return false;
  Inst& in = d.emit(h, Class::kMma, refs);
  in.vec = static_cast<u8>(n / 8);
  in.aux = aux;
  in.size = static_cast<u8>(list.size());
  in.flags |= kFlagWgmma;
  return true;
}

}  // namespace softgpu
