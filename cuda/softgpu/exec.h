// Shared by the exec_*.cc files: short names, lane-wise handlers built from a lambda, numeric helpers.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/softgpu/decode.h"
#include "cuda/softgpu/floats.h"
#include "cuda/softgpu/machine.h"

namespace softgpu {

// Handlers from a function of one lane's operands: op 0 is the destination.
template <class D, class A, auto F>
void unary(Warp& w, const Inst& in, Mask m) {
  D* d = lanes<D>(w, in.ops[0]);
  const A* a = lanes<A>(w, in.ops[1]);
  each(m, d, [=](int i) { return static_cast<D>(F(a[i])); });
}
template <class D, class A, class B, auto F>
void binary(Warp& w, const Inst& in, Mask m) {
  D* d = lanes<D>(w, in.ops[0]);
  const A* a = lanes<A>(w, in.ops[1]);
  const B* b = lanes<B>(w, in.ops[2]);
  each(m, d, [=](int i) { return static_cast<D>(F(a[i], b[i])); });
}
template <class D, class A, class B, class C, auto F>
void ternary(Warp& w, const Inst& in, Mask m) {
  D* d = lanes<D>(w, in.ops[0]);
  const A* a = lanes<A>(w, in.ops[1]);
  const B* b = lanes<B>(w, in.ops[2]);
  const C* c = lanes<C>(w, in.ops[3]);
  each(m, d, [=](int i) { return static_cast<D>(F(a[i], b[i], c[i])); });
}

// Inst::aux of floating-point instructions.
constexpr u32 kRoundNearest = 0, kRoundZero = 1, kRoundDown = 2, kRoundUp = 3, kRoundMask = 3, kFtz = 4,
              kSat = 8, kRelu = 16, kNanMode = 32, kSatFinite = 64;
inline u32 float_modifiers(const Decoder& d) {
  u32 m = 0;
  if (d.has("rz") || d.has("rzi")) m |= kRoundZero;
  if (d.has("rm") || d.has("rmi")) m |= kRoundDown;
  if (d.has("rp") || d.has("rpi")) m |= kRoundUp;
  if (d.has("ftz")) m |= kFtz;
  if (d.has("sat")) m |= kSat;
  if (d.has("relu")) m |= kRelu;
  if (d.has("NaN")) m |= kNanMode;
  if (d.has("satfinite")) m |= kSatFinite;
  return m;
}

// The host's rounding mode and flushing for the length of a handler. The fences keep arithmetic inside.
class RoundingScope {
 public:
  explicit RoundingScope(u32 aux) : changed_((aux & (kRoundMask | kFtz)) != 0) {
    if (!changed_) return;
    static constexpr u32 round[] = {0, 0x6000, 0x2000, 0x4000};
    saved_ = _mm_getcsr();
    _mm_setcsr((saved_ & ~u32{0xe040}) | round[aux & kRoundMask] | ((aux & kFtz) ? 0x8040 : 0));
    asm volatile("" ::: "memory");
  }
  ~RoundingScope() {
    if (!changed_) return;
    asm volatile("" ::: "memory");
    _mm_setcsr(saved_);
  }
  RoundingScope(const RoundingScope&) = delete;

 private:
  bool changed_;
  u32 saved_ = 0;
};

inline double canonical(double f) { return f; }
inline float saturate(float f) { return f > 0 ? (f < 1 ? f : 1.0f) : 0.0f; }  // NaN becomes +0
inline double saturate(double f) { return f > 0 ? (f < 1 ? f : 1.0) : 0.0; }

// --- 16-bit floats
// ---------------------------------------------------------------------------------------------

inline u16 float_to_bf16_mode(float f, u32 mode) {
  const u32 u = bit<u32>(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  if ((mode & kRoundMask) == kRoundNearest) return float_to_bf16(f);
  const bool negative = u >> 31, inexact = (u & 0xffff) != 0;
  const bool away =
      ((mode & kRoundMask) == kRoundDown && negative) || ((mode & kRoundMask) == kRoundUp && !negative);
  return static_cast<u16>((u >> 16) + (inexact && away && (u & 0x7fffffff) < 0x7f800000 ? 1 : 0));
}
// A double to a float that keeps "inexact" in the last bit, so that rounding again to 16 bits is right.
inline float to_float_odd(double d) {
  const float f = static_cast<float>(d);
  if (static_cast<double>(f) == d || d != d) return f;
  u32 u = bit<u32>(f);
  if ((u & 0x7fffffff) == 0x7f800000) {
    if (std::isinf(d)) return f;
    return bit<float>(u - 1);
  }
  if (u & 1) return f;
  if (std::fabs(static_cast<double>(f)) > std::fabs(d)) return bit<float>(u - 1);
  return bit<float>(u | 1);
}
// a*b+c of 16-bit values, "inexact" kept in the last bit.
inline float fma_odd(double a, double b, double c) {
  const double p = a * b;  // exact: at most 22 bits
  const double s = p + c;
  if (!(std::fabs(s) < INFINITY)) return static_cast<float>(s);
  const double bb = s - p;
  const double err = (p - (s - bb)) + (c - bb);
  if (err == 0) return to_float_odd(s);
  u64 u = bit<u64>(s);
  if (!(u & 1)) {
    const bool grows = (err > 0) == (s > 0);  // the true value is larger in size
    u = grows ? u | 1 : u - 1;
  }
  return to_float_odd(bit<double>(u));
}
inline float truncate_tf32(float f) { return bit<float>(bit<u32>(f) & ~u32{0x1fff}); }

// 8-bit floats: e4m3 (no infinity, NaN 0x7f) and e5m2.
float e4m3_to_float(u8 v);
float e5m2_to_float(u8 v);
u8 float_to_e4m3(float f, bool relu);  // nearest even, saturating to the largest finite value
u8 float_to_e5m2(float f, bool relu);

// Choose a handler by the width (16, 32, 64) and sign of a type.
#define SOFTGPU_BY_UNSIGNED(bits, TEMPLATE)             \
  ((bits) == 16   ? static_cast<Handler>(TEMPLATE(u16)) \
   : (bits) == 32 ? static_cast<Handler>(TEMPLATE(u32)) \
   : (bits) == 64 ? static_cast<Handler>(TEMPLATE(u64)) \
                  : nullptr)
#define SOFTGPU_BY_SIGNED(bits, TEMPLATE)               \
  ((bits) == 16   ? static_cast<Handler>(TEMPLATE(i16)) \
   : (bits) == 32 ? static_cast<Handler>(TEMPLATE(i32)) \
   : (bits) == 64 ? static_cast<Handler>(TEMPLATE(i64)) \
                  : nullptr)

}  // namespace softgpu
