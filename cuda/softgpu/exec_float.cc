// f32 and f64 arithmetic and the approximate functions.
#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

// Each handler: apply F in the wanted rounding mode, then canonical NaN, then saturation.
template <class T, auto F>
void float1(Warp& w, const Inst& in, Mask m) {
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const RoundingScope scope(in.aux);
  if (in.aux & kSat) {
    each(m, d, [=](int i) { return saturate(F(a[i])); });
  } else {
    each(m, d, [=](int i) { return canonical(F(a[i])); });
  }
}
template <class T, auto F>
void float2(Warp& w, const Inst& in, Mask m) {
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const T* b = lanes<T>(w, in.ops[2]);
  const RoundingScope scope(in.aux);
  if (in.aux & kSat) {
    each(m, d, [=](int i) { return saturate(F(a[i], b[i])); });
  } else {
    each(m, d, [=](int i) { return canonical(F(a[i], b[i])); });
  }
}
template <class T>
void fma_lanes(Warp& w, const Inst& in, Mask m) {
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const T* b = lanes<T>(w, in.ops[2]);
  const T* c = lanes<T>(w, in.ops[3]);
  const RoundingScope scope(in.aux);
  if (in.aux & kSat) {
    each(m, d, [=](int i) { return saturate(std::fma(a[i], b[i], c[i])); });
  } else {
    each(m, d, [=](int i) { return canonical(std::fma(a[i], b[i], c[i])); });
  }
}

// -0 < +0; a NaN loses against a number unless kNanMode asks for it.
template <class T>
inline T minimum(T a, T b) {
  const T r = a < b ? a : b < a ? b : (std::signbit(a) ? a : b);
  return a != a ? b : b != b ? a : r;
}
template <class T>
inline T maximum(T a, T b) {
  const T r = a > b ? a : b > a ? b : (std::signbit(a) ? b : a);
  return a != a ? b : b != b ? a : r;
}
inline float flush(float f, bool ftz) {
  return ftz && std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f;
}
inline double flush(double f, bool) { return f; }
template <class T, bool kMax>
void extremum(Warp& w, const Inst& in, Mask m) {
  T* d = lanes<T>(w, in.ops[0]);
  const T* a = lanes<T>(w, in.ops[1]);
  const T* b = lanes<T>(w, in.ops[2]);
  const bool nan_mode = in.aux & kNanMode, ftz = in.aux & kFtz;
  each(m, d, [=](int i) {
    const T x = flush(a[i], ftz), y = flush(b[i], ftz);
    const T r = kMax ? maximum(x, y) : minimum(x, y);
    return canonical(nan_mode && (x != x || y != y) ? static_cast<T>(NAN) : r);
  });
}
void extremum3(Warp& w, const Inst& in, Mask m) {  // min/max of three, sm_100
  float* d = lanes<float>(w, in.ops[0]);
  const float* a = lanes<float>(w, in.ops[1]);
  const float* b = lanes<float>(w, in.ops[2]);
  const float* c = lanes<float>(w, in.ops[3]);
  const bool nan_mode = in.aux & kNanMode, ftz = in.aux & kFtz, largest = in.imm;
  each(m, d, [=](int i) {
    const float x = flush(a[i], ftz), y = flush(b[i], ftz), z = flush(c[i], ftz);
    const float r = largest ? maximum(maximum(x, y), z) : minimum(minimum(x, y), z);
    return canonical(nan_mode && (x != x || y != y || z != z) ? NAN : r);
  });
}

// 2^x to double accuracy, written so that the compiler vectorises it.
inline float exp2_lane(float f) {
  const double x = f < -200.0f ? -200.0 : f > 200.0f ? 200.0 : static_cast<double>(f);
  const double n = std::nearbyint(x);
  const double r = (x - n) * 0.6931471805599453;
  double p = 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const double scale = bit<double>(static_cast<u64>(static_cast<i64>(n) + 1023) << 52);
  return f != f ? f : static_cast<float>(p * scale);
}
inline float log2_lane(float f) {
  const double x = static_cast<double>(f);
  const u64 u = bit<u64>(x);
  i64 e = static_cast<i64>(u >> 52) - 1023;
  double y = bit<double>((u & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  const bool high = y > 1.4142135623730951;
  y = high ? y * 0.5 : y;
  e = high ? e + 1 : e;
  const double s = (y - 1) / (y + 1), q = s * s;
  double p = 1.0 / 17;
  p = p * q + 1.0 / 15;
  p = p * q + 1.0 / 13;
  p = p * q + 1.0 / 11;
  p = p * q + 1.0 / 9;
  p = p * q + 1.0 / 7;
  p = p * q + 1.0 / 5;
  p = p * q + 1.0 / 3;
  p = p * q + 1.0;
  const float r = static_cast<float>(static_cast<double>(e) + 2.8853900817779268 * s * p);
  return f > 0 && f < INFINITY ? r : f == 0 ? -INFINITY : f > 0 ? INFINITY : bit<float>(u32{0x7fffffff});
}
float sin_lane(float f) { return static_cast<float>(std::sin(static_cast<double>(f))); }
float cos_lane(float f) { return static_cast<float>(std::cos(static_cast<double>(f))); }
float tanh_lane(float f) { return static_cast<float>(std::tanh(static_cast<double>(f))); }
inline float rsqrt_lane(float f) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(f))); }
inline double rsqrt_lane64(double f) { return 1.0 / std::sqrt(f); }
// rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 keep the upper word only.
inline double upper_word(double f) { return bit<double>(bit<u64>(f) & 0xffffffff00000000ull); }

#define F_ADD(T) (float2<T, [](T a, T b) { return a + b; }>)
#define F_SUB(T) (float2<T, [](T a, T b) { return a - b; }>)
#define F_MUL(T) (float2<T, [](T a, T b) { return a * b; }>)
#define F_DIV(T) (float2<T, [](T a, T b) { return a / b; }>)
#define F_RCP(T) (float1<T, [](T a) { return T(1) / a; }>)
#define F_SQRT(T) (float1<T, [](T a) { return std::sqrt(a); }>)
#define F_ABS(T) (unary<T, T, [](T a) { return std::fabs(a); }>)
#define F_NEG(T) (unary<T, T, [](T a) { return -a; }>)
#define F_PICK(NAME) (f32 ? static_cast<Handler>(NAME(float)) : static_cast<Handler>(NAME(double)))

template <bool kNeg>
void sign_ftz(Warp& w, const Inst& in, Mask m) {
  float* d = lanes<float>(w, in.ops[0]);
  const float* a = lanes<float>(w, in.ops[1]);
  each(m, d, [=](int i) { return flush(kNeg ? -a[i] : std::fabs(a[i]), true); });
}

// f32 sums of a 16-bit float and an f32 (sm_100): add/sub/fma .f32.f16 and .f32.bf16 are left out: nvcc makes
// none.

}  // namespace

bool decode_float(Decoder& d) {
  if (d.types().empty()) return false;
  const Type t = d.type();
  if (t.kind != 'f' || (t.bits != 32 && t.bits != 64)) return false;
  const std::string& op = d.name();
  const bool f32 = t.bits == 32;
  const int bits = t.bits;
  if (d.types().size() != 1) return false;
  const u32 aux = float_modifiers(d);
  const auto two = [&](Handler h) {
    d.emit(h, Class::kFloat, {d.dst(0, bits), d.src(1, bits, 'f'), d.src(2, bits, 'f')}).aux = aux;
    return true;
  };
  const auto one = [&](Handler h) {
    d.emit(h, Class::kFloat, {d.dst(0, bits), d.src(1, bits, 'f')}).aux = aux;
    return true;
  };
  if (op == "add") return two(F_PICK(F_ADD));
  if (op == "sub") return two(F_PICK(F_SUB));
  if (op == "mul") return two(F_PICK(F_MUL));
  if (op == "div") return two(F_PICK(F_DIV));
  if (op == "fma" || op == "mad") {
    d.emit(f32 ? static_cast<Handler>(fma_lanes<float>) : static_cast<Handler>(fma_lanes<double>),
           Class::kFloat, {d.dst(0, bits), d.src(1, bits, 'f'), d.src(2, bits, 'f'), d.src(3, bits, 'f')})
        .aux = aux;
    return true;
  }
  if (op == "min" || op == "max") {
    if (d.has("xorsign")) return false;
    if (d.args() == 4) {
      if (!f32) return false;
      Inst& in = d.emit(extremum3, Class::kFloat,
                        {d.dst(0, 32), d.src(1, 32, 'f'), d.src(2, 32, 'f'), d.src(3, 32, 'f')});
      in.aux = aux, in.imm = op == "max";
      return true;
    }
    if (d.has("abs")) return false;
    return two(op == "max" ? (f32 ? static_cast<Handler>(extremum<float, true>)
                                  : static_cast<Handler>(extremum<double, true>))
                           : (f32 ? static_cast<Handler>(extremum<float, false>)
                                  : static_cast<Handler>(extremum<double, false>)));
  }
  if (op == "abs") return one(f32 && d.has("ftz") ? static_cast<Handler>(sign_ftz<false>) : F_PICK(F_ABS));
  if (op == "neg") return one(f32 && d.has("ftz") ? static_cast<Handler>(sign_ftz<true>) : F_PICK(F_NEG));
  if (op == "sqrt") return one(F_PICK(F_SQRT));
  if (op == "rcp") {
    if (!f32 && d.has("approx")) return one(float1<double, [](double a) { return upper_word(1.0 / a); }>);
    return one(F_PICK(F_RCP));
  }
  if (op == "rsqrt") {
    if (!f32) return one(float1<double, [](double a) { return upper_word(rsqrt_lane64(a)); }>);
    return one(float1<float, rsqrt_lane>);
  }
  if (op == "copysign")
    return two(
        f32 ? static_cast<Handler>(
                  binary<u32, u32, u32, [](u32 a, u32 b) { return (a & 0x80000000) | (b & 0x7fffffff); }>)
            : static_cast<Handler>(binary<u64, u64, u64, [](u64 a, u64 b) {
                return (a & (1ull << 63)) | (b & ~(1ull << 63));
              }>));
  if (!f32) return false;
  if (op == "ex2") return one(float1<float, exp2_lane>);
  if (op == "lg2") return one(float1<float, log2_lane>);
  if (op == "sin") return one(float1<float, sin_lane>);
  if (op == "cos") return one(float1<float, cos_lane>);
  if (op == "tanh") return one(float1<float, tanh_lane>);
  return false;
}

}  // namespace softgpu
