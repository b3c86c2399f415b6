// ldmatrix, stmatrix, movmatrix, mma.sync. Fragment layouts are those of the PTX ISA's figures: a register of
// a fragment, over the 32 lanes, is an 8-row block in row order, four lanes to a row.
#include <fmt/format.h>

#include "cuda/softgpu/access.h"
#include "cuda/softgpu/matrix.h"

namespace softgpu {
namespace {

bool whole_warp(Warp& w, const Inst& in, Mask* m) {
  if (!converged(w, in, m, kAll)) return false;
  if (*m != kAll)
    fault(w, in, __builtin_ctz(*m), kFaultInstruction,
          fmt::format("needs all 32 lanes of the warp, {:#x} execute it", *m));
  return true;
}

// ops: registers (count of them), address. Lane 8*i+r gives the address of row r of matrix i.
template <bool kTrans>
void ldmatrix(Warp& w, const Inst& in, Mask m) {
  if (!whole_warp(w, in, &m)) return;
  const int count = in.vec;
  alignas(64) u64 a[kLanes];
  gather_addresses(w, in, in.ops[count], in.imm, a);
  Access access;
  const Mask rows = count == 4 ? kAll : (1u << (8 * count)) - 1;
  translate(w, in, rows, static_cast<Window>(in.space), a, 16, Use::kRead, false, &access);
  for (int k = 0; k < count; ++k) {
    u32* d = lanes<u32>(w, in.ops[k]);
    if (!kTrans) {
      for (int r = 0; r < 8; ++r)
        std::memcpy(d + 4 * r, reinterpret_cast<const void*>(access.host[8 * k + r]), 16);
    } else {
      u16 e[8][8];
      for (int r = 0; r < 8; ++r)
        std::memcpy(e[r], reinterpret_cast<const void*>(access.host[8 * k + r]), 16);
      for (int l = 0; l < kLanes; ++l)
        d[l] = e[(l % 4) * 2][l / 4] | static_cast<u32>(e[(l % 4) * 2 + 1][l / 4]) << 16;
    }
  }
}
template <bool kTrans>
void stmatrix(Warp& w, const Inst& in, Mask m) {
  if (!whole_warp(w, in, &m)) return;
  const int count = in.vec;
  alignas(64) u64 a[kLanes];
  gather_addresses(w, in, in.ops[count], in.imm, a);
  Access access;
  const Mask rows = count == 4 ? kAll : (1u << (8 * count)) - 1;
  translate(w, in, rows, static_cast<Window>(in.space), a, 16, Use::kWrite, false, &access);
  for (int k = 0; k < count; ++k) {
    const u32* s = lanes<u32>(w, in.ops[k]);
    u16 e[8][8];
    for (int l = 0; l < kLanes; ++l) {
      const u16 lo = static_cast<u16>(s[l]), hi = static_cast<u16>(s[l] >> 16);
      if (kTrans) {
        e[(l % 4) * 2][l / 4] = lo, e[(l % 4) * 2 + 1][l / 4] = hi;
      } else {
        e[l / 4][(l % 4) * 2] = lo, e[l / 4][(l % 4) * 2 + 1] = hi;
      }
    }
    for (int r = 0; r < 8; ++r) std::memcpy(reinterpret_cast<void*>(access.host[8 * k + r]), e[r], 16);
  }
}
void movmatrix(Warp& w, const Inst& in, Mask m) {
  if (!whole_warp(w, in, &m)) return;
  u16 e[8][8];
  std::memcpy(e, lanes<u32>(w, in.ops[1]), sizeof e);
  u32* d = lanes<u32>(w, in.ops[0]);
  for (int l = 0; l < kLanes; ++l)
    d[l] = e[(l % 4) * 2][l / 4] | static_cast<u32>(e[(l % 4) * 2 + 1][l / 4]) << 16;
}

// --- mma
// -------------------------------------------------------------------------------------------------------------

// m16n8kK: ops are the registers of d, a, b, c. Sums run over k in order, in f32 (s32 for integers; with
// .satfinite, Inst::aux, clamped once at the end).
template <Element EA, Element EB, int kK, bool kHalfC>
void mma(Warp& w, const Inst& in, Mask m) {
  if (!whole_warp(w, in, &m)) return;
  using T = std::conditional_t<is_integer(EA), i32, float>;
  constexpr int per = 32 / element_bits(EA), width = 4 * per, blocks = kK / width;
  constexpr int c_regs = kHalfC ? 2 : 4;
  const Ref* d = in.ops;
  const Ref* a = d + c_regs;
  const Ref* b = a + 2 * blocks;
  const Ref* c = b + blocks;
  alignas(64) T av[2 * blocks][8 * width];
  alignas(64) T bt[8 * width];
  alignas(64) T bv[kK][8];
  alignas(64) T acc[16][8];
  [[maybe_unused]] T start[16][8];  // added at the end where that can saturate
  for (int r = 0; r < 2 * blocks; ++r) widen<EA, 128>(lanes<u32>(w, a[r]), av[r]);
  for (int r = 0; r < blocks; ++r) {
    widen<EB, 128>(lanes<u32>(w, b[r]), bt);
    for (int k = 0; k < width; ++k)
      for (int n = 0; n < 8; ++n) bv[r * width + k][n] = bt[n * width + k];
  }
  if constexpr (kHalfC) {
    for (int h = 0; h < 2; ++h) {
      const u16* v = lanes<u16>(w, c[h]);
      for (int i = 0; i < 64; ++i) acc[8 * h + i / 8][i % 8] = half_to_float(v[i]);
    }
  } else {
    for (int h = 0; h < 2; ++h) {
      const T* even = lanes<T>(w, c[2 * h]);
      const T* odd = lanes<T>(w, c[2 * h + 1]);
      for (int l = 0; l < kLanes; ++l)
        acc[8 * h + l / 4][(l % 4) * 2] = even[l], acc[8 * h + l / 4][(l % 4) * 2 + 1] = odd[l];
    }
  }
  if constexpr (is_integer(EA)) {
    if (in.aux) std::memcpy(start, acc, sizeof acc), std::memset(acc, 0, sizeof acc);
  }
  for (int block = 0; block < blocks; ++block) {
    for (int h = 0; h < 2; ++h) {
      const T* rows = av[block * 2 + h];
      for (int r = 0; r < 8; ++r) {
        T* out = acc[8 * h + r];
        for (int k = 0; k < width; ++k) {
          const T x = rows[r * width + k];
          const T* y = bv[block * width + k];
          for (int n = 0; n < 8; ++n) out[n] = multiply_add(x, y[n], out[n]);
        }
      }
    }
  }
  if constexpr (is_integer(EA)) {
    for (int i = 0; in.aux && i < 128; ++i)
      acc[i / 8][i % 8] = saturating_add(acc[i / 8][i % 8], start[i / 8][i % 8]);
  }
  if constexpr (kHalfC) {
    for (int h = 0; h < 2; ++h) {
      u16* v = lanes<u16>(w, d[h]);
      for (int i = 0; i < 64; ++i) v[i] = float_to_half(acc[8 * h + i / 8][i % 8]);
    }
  } else {
    for (int h = 0; h < 2; ++h) {
      T* even = lanes<T>(w, d[2 * h]);
      T* odd = lanes<T>(w, d[2 * h + 1]);
      for (int l = 0; l < kLanes; ++l) {
        T x = acc[8 * h + l / 4][(l % 4) * 2], y = acc[8 * h + l / 4][(l % 4) * 2 + 1];
        if constexpr (!is_integer(EA)) x = canonical(x), y = canonical(y);
        even[l] = x, odd[l] = y;
      }
    }
  }
  if (w.group->launch->count) w.group->counters.multiply_adds += 16 * 8 * kK;
}

// m8n8k4 f64
void mma_f64(Warp& w, const Inst& in, Mask m) {
  if (!whole_warp(w, in, &m)) return;
  const double* a = lanes<double>(w, in.ops[2]);
  const double* b = lanes<double>(w, in.ops[3]);
  double acc[8][8];
  for (int h = 0; h < 2; ++h) {
    const double* c = lanes<double>(w, in.ops[4 + h]);
    for (int l = 0; l < kLanes; ++l) acc[l / 4][(l % 4) * 2 + h] = c[l];
  }
  for (int r = 0; r < 8; ++r)
    for (int n = 0; n < 8; ++n)
      for (int k = 0; k < 4; ++k) acc[r][n] = std::fma(a[r * 4 + k], b[n * 4 + k], acc[r][n]);
  for (int h = 0; h < 2; ++h) {
    double* d = lanes<double>(w, in.ops[h]);
    for (int l = 0; l < kLanes; ++l) d[l] = acc[l / 4][(l % 4) * 2 + h];
  }
  if (w.group->launch->count) w.group->counters.multiply_adds += 8 * 8 * 4;
}

// m16n8kK f64, K 4, 8, 16: register i of a holds row block i % 2, columns i / 2 * 4 and on.
template <int kK>
void mma_f64_wide(Warp& w, const Inst& in, Mask m) {
  if (!whole_warp(w, in, &m)) return;
  constexpr int kA = kK / 2, kB = kK / 4;
  const Ref* a = in.ops + 4;
  const Ref* b = a + kA;
  const Ref* c = b + kB;
  double acc[16][8];
  for (int h = 0; h < 4; ++h) {
    const double* v = lanes<double>(w, c[h]);
    for (int l = 0; l < kLanes; ++l) acc[h / 2 * 8 + l / 4][(l % 4) * 2 + h % 2] = v[l];
  }
  for (int k = 0; k < kK; ++k) {
    const double* y = lanes<double>(w, b[k / 4]);
    for (int r = 0; r < 16; ++r) {
      const double x = lanes<double>(w, a[k / 4 * 2 + r / 8])[r % 8 * 4 + k % 4];
      for (int n = 0; n < 8; ++n) acc[r][n] = std::fma(x, y[n * 4 + k % 4], acc[r][n]);
    }
  }
  for (int h = 0; h < 4; ++h) {
    double* d = lanes<double>(w, in.ops[h]);
    for (int l = 0; l < kLanes; ++l) d[l] = acc[h / 2 * 8 + l / 4][(l % 4) * 2 + h % 2];
  }
  if (w.group->launch->count) w.group->counters.multiply_adds += 16 * 8 * kK;
}

struct Shape {
  int m, n, k;
};
bool shape_of(const Decoder& d, Shape* s) {
  for (const std::string& part : d.in().op)
    if (std::sscanf(part.c_str(), "m%dn%dk%d", &s->m, &s->n, &s->k) == 3) return true;
  return false;
}

std::vector<Ref> registers(Decoder& d, size_t arg, int bits, bool destination) {
  std::vector<ptx::Operand> list = {d.arg(arg)};
  if (d.arg(arg).kind == ptx::Operand::kVector) list = d.arg(arg).list;
  std::vector<Ref> out;
  for (const auto& o : list)
    out.push_back(destination ? d.dst(o, bits) : d.src(o, bits, bits == 64 ? 'f' : 'b'));
  return out;
}

template <int kK>
Handler mma4(bool signed_a, bool signed_b) {
  if (signed_a)
    return signed_b ? mma<Element::kS4, Element::kS4, kK, false> : mma<Element::kS4, Element::kU4, kK, false>;
  return signed_b ? mma<Element::kU4, Element::kS4, kK, false> : mma<Element::kU4, Element::kU4, kK, false>;
}

bool decode_mma(Decoder& d) {
  Shape s{};
  if (!shape_of(d, &s) || d.types().size() != 4 || d.has("sp") || d.has("block_scale")) return false;
  if (!d.has("row") || !d.has("col")) return false;
  const Type out = d.types()[0], ta = d.types()[1], tb = d.types()[2], tc = d.types()[3];
  if (out.bits != tc.bits) return false;
  Handler h = nullptr;
  int bits = 32;
  if (out.bits == 64) {
    if (s.n != 8) return false;
    if (s.m == 8 && s.k == 4) h = mma_f64;
    if (s.m == 16 && s.k == 4) h = mma_f64_wide<4>;
    if (s.m == 16 && s.k == 8) h = mma_f64_wide<8>;
    if (s.m == 16 && s.k == 16) h = mma_f64_wide<16>;
    bits = 64;
  } else if (s.m != 16 || s.n != 8) {
    return false;
  } else if (ta.kind == 'h') {
    const bool half = out.kind == 'h';
    if (s.k == 16)
      h = half ? static_cast<Handler>(mma<Element::kF16, Element::kF16, 16, true>)
               : static_cast<Handler>(mma<Element::kF16, Element::kF16, 16, false>);
    if (s.k == 8)
      h = half ? static_cast<Handler>(mma<Element::kF16, Element::kF16, 8, true>)
               : static_cast<Handler>(mma<Element::kF16, Element::kF16, 8, false>);
  } else if (ta.kind == 'B') {
    if (s.k == 16) h = mma<Element::kBf16, Element::kBf16, 16, false>;
    if (s.k == 8) h = mma<Element::kBf16, Element::kBf16, 8, false>;
  } else if (ta.kind == 't') {
    if (s.k == 8) h = mma<Element::kTf32, Element::kTf32, 8, false>;
    if (s.k == 4) h = mma<Element::kTf32, Element::kTf32, 4, false>;
  } else if (ta.kind == 'e' && s.k == 32 && out.bits == 32) {
    const bool a5 = ta.name == "e5m2", b5 = tb.name == "e5m2";
    h = a5 ? (b5 ? static_cast<Handler>(mma<Element::kE5m2, Element::kE5m2, 32, false>)
                 : static_cast<Handler>(mma<Element::kE5m2, Element::kE4m3, 32, false>))
           : (b5 ? static_cast<Handler>(mma<Element::kE4m3, Element::kE5m2, 32, false>)
                 : static_cast<Handler>(mma<Element::kE4m3, Element::kE4m3, 32, false>));
  } else if (ta.bits == 4 && tb.bits == 4) {
    const bool sa = ta.kind == 's', sb = tb.kind == 's';
    if (s.k == 64) h = mma4<64>(sa, sb);
    if (s.k == 32) h = mma4<32>(sa, sb);
  } else if (ta.bits == 8 && tb.bits == 8) {
    const bool sa = ta.kind == 's', sb = tb.kind == 's';
#define SOFTGPU_MMA8(K)                                                        \
  (sa ? (sb ? static_cast<Handler>(mma<Element::kS8, Element::kS8, K, false>)  \
            : static_cast<Handler>(mma<Element::kS8, Element::kU8, K, false>)) \
      : (sb ? static_cast<Handler>(mma<Element::kU8, Element::kS8, K, false>)  \
            : static_cast<Handler>(mma<Element::kU8, Element::kU8, K, false>)))
    if (s.k == 32) h = SOFTGPU_MMA8(32);
    if (s.k == 16) h = SOFTGPU_MMA8(16);
#undef SOFTGPU_MMA8
  }
  if (!h) return false;
  std::vector<Ref> refs = registers(d, 0, bits, true);
  for (size_t i = 1; i < 4; ++i)
    for (const Ref& r : registers(d, i, bits, false)) refs.push_back(r);
  d.emit(h, Class::kMma, refs).aux = d.has("satfinite");
  return true;
}

}  // namespace

bool decode_matrix(Decoder& d) {
  const std::string& op = d.name();
  if (op == "mma") return decode_mma(d);
  if (op == "movmatrix") {
    d.emit(movmatrix, Class::kShuffle, {d.dst(0, 32), d.src(1, 32)});
    return true;
  }
  if (op != "ldmatrix" && op != "stmatrix") return false;
  if (!d.has("m8n8") || d.type().bits != 16) return false;
  const bool load = op == "ldmatrix", trans = d.has("trans");
  std::vector<Ref> refs = registers(d, load ? 0 : 1, 32, load);
  const size_t count = refs.size();
  if (count != (d.has("x4") ? 4u : d.has("x2") ? 2u : 1u)) d.unknown("number of registers");
  Symbol symbol;
  i64 offset;
  refs.push_back(d.address(d.arg(load ? 1 : 0), &symbol, &offset));
  Handler h = load ? (trans ? static_cast<Handler>(ldmatrix<true>) : static_cast<Handler>(ldmatrix<false>))
                   : (trans ? static_cast<Handler>(stmatrix<true>) : static_cast<Handler>(stmatrix<false>));
  Inst& in = d.emit(h, Class::kMemory, refs);
  in.vec = static_cast<u8>(count);
  in.imm = offset;
  in.space = static_cast<u8>(Window::kShared);
  return true;
}

}  // namespace softgpu
