// f16, bf16 and their pairs. Lanes of a pair are 64 contiguous 16-bit values. Sums are made in f32 and
// rounded once more: with 24 bits against 11 (8) the second rounding cannot go wrong. Products of bf16 and
// all fma go through a double whose last bit keeps "inexact".
#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

template <bool kBf16>
inline float widen(u16 v) {
  return kBf16 ? bf16_to_float(v) : half_to_float(v);
}
template <bool kBf16>
inline u16 narrow(float f) {
  return kBf16 ? float_to_bf16(f) : float_to_half(f);
}

enum class HalfOp : u8 { kAdd, kSub, kMul, kFma, kMin, kMax, kNeg, kAbs, kEx2, kTanh };

inline float flush_half(float f, bool ftz) {
  return ftz && std::fabs(f) < 6.103515625e-05f ? std::copysign(0.0f, f) : f;
}

template <bool kBf16, HalfOp kOp, int kCount>
void half_op(Warp& w, const Inst& in, Mask m) {
  u16* d = lanes<u16>(w, in.ops[0]);
  const u16* a = lanes<u16>(w, in.ops[1]);
  const u16* b = in.nops > 2 ? lanes<u16>(w, in.ops[2]) : a;
  const u16* c = in.nops > 3 ? lanes<u16>(w, in.ops[3]) : a;
  alignas(64) u16 r[kCount];
  const u32 aux = in.aux;
  const bool ftz = aux & kFtz;
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kOp == HalfOp::kNeg || kOp == HalfOp::kAbs) {
      r[i] = kOp == HalfOp::kNeg ? a[i] ^ 0x8000 : a[i] & 0x7fff;
      if ((r[i] & 0x7fff) > (kBf16 ? 0x7f80 : 0x7c00)) r[i] = 0x7fff;
      continue;
    } else {
      const float x = flush_half(widen<kBf16>(a[i]), ftz && !kBf16),
                  y = flush_half(widen<kBf16>(b[i]), ftz && !kBf16);
      float v = 0;
      if constexpr (kOp == HalfOp::kAdd) v = x + y;
      if constexpr (kOp == HalfOp::kSub) v = x - y;
      if constexpr (kOp == HalfOp::kMul) v = to_float_odd(static_cast<double>(x) * static_cast<double>(y));
      if constexpr (kOp == HalfOp::kFma) v = fma_odd(x, y, flush_half(widen<kBf16>(c[i]), ftz && !kBf16));
      if constexpr (kOp == HalfOp::kMin || kOp == HalfOp::kMax) {
        if (x != x || y != y) {
          v = (aux & kNanMode) || (x != x && y != y) ? NAN : x != x ? y : x;
        } else if (x == y) {
          v = (kOp == HalfOp::kMin) == std::signbit(x) ? x : y;
        } else {
          v = (kOp == HalfOp::kMin) == (x < y) ? x : y;
        }
      }
      if constexpr (kOp == HalfOp::kEx2) v = static_cast<float>(std::exp2(static_cast<double>(x)));
      if constexpr (kOp == HalfOp::kTanh) v = static_cast<float>(std::tanh(static_cast<double>(x)));
      if (aux & kSat) v = saturate(v);
      if ((aux & kRelu) && !(v != v)) v = v > 0 ? v : 0.0f;
      v = flush_half(v, ftz && !kBf16);
      r[i] = narrow<kBf16>(v);
    }
  }
  if (kCount == 64) {
    u32* d2 = reinterpret_cast<u32*>(d);
    const u32* r2 = reinterpret_cast<const u32*>(r);
    each(m, d2, [=](int i) { return r2[i]; });
  } else {
    each(m, d, [&r](int i) { return r[i]; });
  }
}

template <HalfOp kOp>
Handler pick_half(const Type& t) {
  if (t.kind == 'h')
    return t.pair ? static_cast<Handler>(half_op<false, kOp, 64>)
                  : static_cast<Handler>(half_op<false, kOp, 32>);
  return t.pair ? static_cast<Handler>(half_op<true, kOp, 64>) : static_cast<Handler>(half_op<true, kOp, 32>);
}

}  // namespace

bool decode_half(Decoder& d) {
  if (d.types().size() != 1) return false;
  const Type t = d.type();
  if (t.kind != 'h' && t.kind != 'B') return false;
  const std::string& op = d.name();
  Handler h = nullptr;
  size_t sources = 2;
  if (op == "add")
    h = pick_half<HalfOp::kAdd>(t);
  else if (op == "sub")
    h = pick_half<HalfOp::kSub>(t);
  else if (op == "mul")
    h = pick_half<HalfOp::kMul>(t);
  else if (op == "min" && !d.has("xorsign"))
    h = pick_half<HalfOp::kMin>(t);
  else if (op == "max" && !d.has("xorsign"))
    h = pick_half<HalfOp::kMax>(t);
  else if (op == "fma" && !d.has("oob"))
    h = pick_half<HalfOp::kFma>(t), sources = 3;
  else if (op == "neg")
    h = pick_half<HalfOp::kNeg>(t), sources = 1;
  else if (op == "abs")
    h = pick_half<HalfOp::kAbs>(t), sources = 1;
  else if (op == "ex2")
    h = pick_half<HalfOp::kEx2>(t), sources = 1;
  else if (op == "tanh")
    h = pick_half<HalfOp::kTanh>(t), sources = 1;
  if (!h) return false;
  std::vector<Ref> refs = {d.dst(0, t.bits)};
  for (size_t i = 1; i <= sources; ++i) refs.push_back(d.src(i, t.bits));
  d.emit(h, Class::kFloat, refs).aux = float_modifiers(d);
  return true;
}

}  // namespace softgpu
