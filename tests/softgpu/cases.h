// One kernel per instruction, run over special and random operands and compared, bit for bit unless a case
// says otherwise, with a function of the host.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/softgpu/check.h"

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i8 = int8_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;

struct Case {
  const char* name;
  std::function<bool()> run;
};
inline std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}
struct Register {
  Register(const char* name, std::function<bool()> run) { cases().push_back({name, std::move(run)}); }
};

template <class To, class From>
inline To bits_as(From f) {
  static_assert(sizeof(To) == sizeof(From));
  To t;
  std::memcpy(&t, &f, sizeof t);
  return t;
}

inline u64 random_bits() {
  static u64 x = 0x853c49e6748fea9bull;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return x * 0x2545f4914f6cdd1dull;
}

// Operands of a type: its corners, then random bits. Floats are given as their bits.
template <class T>
std::vector<T> integer_values() {
  std::vector<u64> v = {0,
                        1,
                        2,
                        3,
                        5,
                        7,
                        8,
                        15,
                        16,
                        17,
                        24,
                        30,
                        31,
                        32,
                        33,
                        47,
                        63,
                        64,
                        65,
                        127,
                        128,
                        255,
                        256,
                        0x7fff,
                        0x8000,
                        0xffff,
                        0x10000,
                        0x7fffffff,
                        0x80000000,
                        0xffffffff,
                        0x100000000ull,
                        0x7fffffffffffffffull,
                        0x8000000000000000ull,
                        ~0ull,
                        ~1ull};
  std::vector<T> out;
  for (u64 x : v) out.push_back(static_cast<T>(x)), out.push_back(static_cast<T>(0 - x));
  for (int i = 0; i < 26; ++i) out.push_back(static_cast<T>(random_bits()));
  for (int i = 0; i < 10; ++i) out.push_back(static_cast<T>(random_bits() >> (random_bits() % 64)));
  return out;
}
inline std::vector<u32> f32_values() {
  std::vector<u32> v = {0,          1,          2,          0x3f800000, 0x3f000000, 0x40000000, 0x40490fdb,
                        0x7f7fffff, 0x7f800000, 0x7fc00000, 0x00800000, 0x007fffff, 0x00800001, 0x3f800001,
                        0x3f7fffff, 0x4b000000, 0x4b800000, 0x4f000000, 0x4effffff, 0x4f800000, 0x5f000000,
                        0x5f800000, 0x33800000, 0x38800000, 0x387fffff, 0x477fe000, 0x477fefff, 0x477ff000,
                        0x47800000, 0x3fc00000, 0x40200000, 0x3f808000, 0x3f818000, 0x437f8000};
  const size_t n = v.size();
  for (size_t i = 0; i < n; ++i) v.push_back(v[i] | 0x80000000);
  for (int i = 0; i < 24; ++i) v.push_back(static_cast<u32>(random_bits()));
  for (int i = 0; i < 24; ++i)
    v.push_back(0x3f800000 + static_cast<u32>(random_bits() % 0x4000000) - 0x2000000);
  return v;
}
inline std::vector<u64> f64_values() {
  std::vector<u64> v;
  for (u32 x : f32_values()) v.push_back(bits_as<u64>(static_cast<double>(bits_as<float>(x))));
  for (u64 x :
       {1ull, 0x000fffffffffffffull, 0x0010000000000000ull, 0x7fefffffffffffffull, 0x3ff0000000000001ull,
        0x3ff0000010000000ull, 0x3ff0000030000000ull, 0x41dfffffffc00000ull, 0x41e0000000000000ull,
        0x43e0000000000000ull, 0x47effffff0000000ull, 0x36a0000000000000ull, 0x3690000000000000ull})
    v.push_back(x), v.push_back(x | (1ull << 63));
  for (int i = 0; i < 16; ++i) v.push_back(random_bits());
  return v;
}
inline std::vector<u16> f16_values() {
  std::vector<u16> v = {0,      1,      2,      0x03ff, 0x0400, 0x0401, 0x3c00, 0x3c01, 0x3bff,
                        0x3800, 0x4000, 0x7bff, 0x7c00, 0x7e00, 0x6400, 0x3555, 0x1400};
  const size_t n = v.size();
  for (size_t i = 0; i < n; ++i) v.push_back(v[i] | 0x8000);
  for (int i = 0; i < 60; ++i) v.push_back(static_cast<u16>(random_bits()));
  return v;
}
inline std::vector<u16> bf16_values() {
  std::vector<u16> v = {0,      1,      0x7f,   0x80,   0x81,   0x3f80, 0x3f81, 0x3f7f,
                        0x3f00, 0x4000, 0x7f7f, 0x7f80, 0x7fc0, 0x4380, 0x3eab};
  const size_t n = v.size();
  for (size_t i = 0; i < n; ++i) v.push_back(v[i] | 0x8000);
  for (int i = 0; i < 60; ++i) v.push_back(static_cast<u16>(random_bits()));
  return v;
}

template <class T>
T* to_device(const std::vector<T>& v) {
  T* p;
  CHECK_CUDA(cudaMalloc(&p, v.size() * sizeof(T)));
  CHECK_CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

template <class T>
bool show(const char* name, size_t i, u64 a, u64 b, u64 c, T got, T want) {
  std::printf("%s: operands %#llx %#llx %#llx: got %#llx, want %#llx (case %zu)\n", name,
              (unsigned long long)a, (unsigned long long)b, (unsigned long long)c, (unsigned long long)got,
              (unsigned long long)want, i);
  return false;
}

// All pairs (triples: all pairs with a third that walks along) of operands.
template <class D, class A, class B, class C, class Host, class Same>
bool run_case(const char* name, void (*kernel)(D*, const A*, const B*, const C*, int), std::vector<A> av,
              std::vector<B> bv, std::vector<C> cv, Host host, Same same) {
  std::vector<A> a;
  std::vector<B> b;
  std::vector<C> c;
  size_t k = 0;
  for (const A& x : av)
    for (const B& y : bv)
      a.push_back(x), b.push_back(y), c.push_back(cv[(k++ * 7 + k / cv.size()) % cv.size()]);
  const int n = static_cast<int>(a.size());
  std::vector<D> d(a.size());
  A* pa = to_device(a);
  B* pb = to_device(b);
  C* pc = to_device(c);
  D* pd;
  CHECK_CUDA(cudaMalloc(&pd, d.size() * sizeof(D)));
  kernel<<<(n + 127) / 128, 128>>>(pd, pa, pb, pc, n);
  CHECK_CUDA(cudaGetLastError());
  CHECK_CUDA(cudaMemcpy(d.data(), pd, d.size() * sizeof(D), cudaMemcpyDeviceToHost));
  CHECK_CUDA(cudaFree(pa));
  CHECK_CUDA(cudaFree(pb));
  CHECK_CUDA(cudaFree(pc));
  CHECK_CUDA(cudaFree(pd));
  for (size_t i = 0; i < d.size(); ++i) {
    const D want = host(a[i], b[i], c[i]);
    if (!same(d[i], want))
      return show<u64>(name, i, static_cast<u64>(a[i]), static_cast<u64>(b[i]), static_cast<u64>(c[i]),
                       static_cast<u64>(d[i]), static_cast<u64>(want));
  }
  return true;
}

#define OPERANDS_u16 integer_values<u16>()
#define OPERANDS_i16 integer_values<i16>()
#define OPERANDS_u32 integer_values<u32>()
#define OPERANDS_i32 integer_values<i32>()
#define OPERANDS_u64 integer_values<u64>()
#define OPERANDS_i64 integer_values<i64>()

// DEFINE(name, D, Cd, A, Ca, B, Cb, C, Cc, asm text, operands..., host, same): operands travel as integers
// (their bits).
#define DEFINE(NAME, D, CD, A, CA, B, CB, C, CC, ASM, AV, BV, CV, HOST, SAME)      \
  __global__ void kernel_##NAME(D* d, const A* a, const B* b, const C* c, int n) { \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;                           \
    if (i >= n) return;                                                            \
    D r;                                                                           \
    asm volatile(ASM : CD(r) : CA(a[i]), CB(b[i]), CC(c[i]));                      \
    d[i] = r;                                                                      \
  }                                                                                \
  static Register register_##NAME(                                                 \
      #NAME, [] { return run_case<D, A, B, C>(#NAME, kernel_##NAME, AV, BV, CV, HOST, SAME); });

template <class T>
bool equal_bits(T a, T b) {
  return a == b;
}
inline bool equal_f32(u32 a, u32 b) {
  const bool na = (a & 0x7fffffff) > 0x7f800000, nb = (b & 0x7fffffff) > 0x7f800000;
  return a == b || (na && nb);
}
inline bool equal_f64(u64 a, u64 b) {
  const u64 inf = 0x7ff0000000000000ull;
  return a == b || ((a & ~(1ull << 63)) > inf && (b & ~(1ull << 63)) > inf);
}
inline bool equal_f16(u16 a, u16 b) { return a == b || ((a & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7c00); }
inline bool equal_bf16(u16 a, u16 b) { return a == b || ((a & 0x7fff) > 0x7f80 && (b & 0x7fff) > 0x7f80); }
// Within `ulps` units in the last place of f32 (subnormals may be flushed by approximate functions).
inline bool near_f32(u32 a, u32 b, u32 ulps) {
  if (equal_f32(a, b)) return true;
  const auto order = [](u32 x) {
    return x & 0x80000000 ? -static_cast<i64>(x & 0x7fffffff) : static_cast<i64>(x);
  };
  const i64 d = order(a) - order(b);
  return (d < 0 ? -d : d) <= static_cast<i64>(ulps);
}

inline int run_all(const char* title) {
  size_t failed = 0;
  for (const Case& c : cases()) failed += !c.run();
  std::printf("%s: %zu cases, %zu failed\n", title, cases().size(), failed);
  return failed || cases().empty() ? 1 : 0;
}
