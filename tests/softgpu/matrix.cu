// mma.sync, ldmatrix, stmatrix, movmatrix. Fragments are packed and unpacked here by the formulas of the PTX
// ISA ("Matrix Fragments for mma.m16n8k16 ..."): element i of lane l is at (row(i, l), column(i, l)).
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "tests/softgpu/cases.h"

namespace {

// --- layouts, as the PTX ISA states them; g is groupID (lane >> 2), t threadID_in_group (lane % 4)
struct At {
  int row, col;
};
using Layout = At (*)(int i, int g, int t);

At a16_k8(int i, int g, int t) { return {i < 2 ? g : g + 8, t * 2 + (i & 1)}; }
At a16_k16(int i, int g, int t) {
  return {(i < 2 || (i >= 4 && i < 6)) ? g : g + 8, i < 4 ? t * 2 + (i & 1) : t * 2 + (i & 1) + 8};
}
At b16(int i, int g, int t) { return {i < 2 ? t * 2 + (i & 1) : t * 2 + (i & 1) + 8, g}; }
At a32_k4(int i, int g, int t) { return {i == 0 ? g : g + 8, t}; }
At a32_k8(int i, int g, int t) { return {(i == 0 || i == 2) ? g : g + 8, i < 2 ? t : t + 4}; }
At b32(int i, int g, int t) { return {i == 0 ? t : t + 4, g}; }
At a8_k16(int i, int g, int t) { return {i < 4 ? g : g + 8, t * 4 + (i & 3)}; }
At a8_k32(int i, int g, int t) {
  return {(i < 4 || (i >= 8 && i < 12)) ? g : g + 8, i < 8 ? t * 4 + (i & 3) : t * 4 + (i & 3) + 16};
}
At b8(int i, int g, int t) { return {i < 4 ? t * 4 + (i & 3) : t * 4 + (i & 3) + 16, g}; }
At a4_k32(int i, int g, int t) { return {i < 8 ? g : g + 8, t * 8 + (i & 7)}; }
At a4_k64(int i, int g, int t) {
  return {(i < 8 || (i >= 16 && i < 24)) ? g : g + 8, i < 16 ? t * 8 + (i & 7) : t * 8 + (i & 7) + 32};
}
At b4(int i, int g, int t) { return {i < 8 ? t * 8 + (i & 7) : t * 8 + (i & 7) + 32, g}; }
At c16(int i, int g, int t) { return {i < 2 ? g : g + 8, t * 2 + (i & 1)}; }
At a64_m8(int, int g, int t) { return {g, t}; }
At a64_m16(int i, int g, int t) { return {i % 2 == 0 ? g : g + 8, i / 2 * 4 + t}; }
At b64(int i, int g, int t) { return {i * 4 + t, g}; }
At c64_m8(int i, int g, int t) { return {g, t * 2 + i}; }

// --- elements: their width in bits, a random one, its value
double half_value(u16 h) {
  const int e = (h >> 10) & 31, f = h & 1023;
  const double m = e ? std::ldexp(1024 + f, e - 25) : std::ldexp(f, -24);
  return h >> 15 ? -m : m;
}
double bf16_value(u16 b) { return bits_as<float>(static_cast<u32>(b) << 16); }
double e4m3_value(u8 v) {
  const int e = (v >> 3) & 15, f = v & 7;
  const double m = e ? std::ldexp(8 + f, e - 10) : std::ldexp(f, -9);
  return v >> 7 ? -m : m;
}
double e5m2_value(u8 v) {
  const int e = (v >> 2) & 31, f = v & 3;
  const double m = e ? std::ldexp(4 + f, e - 17) : std::ldexp(f, -16);
  return v >> 7 ? -m : m;
}
struct Element {
  int bits;
  u64 (*draw)();
  double (*value)(u64);
};
const Element kF16{16, [] { return u64{0x3000} + random_bits() % 0x1400 + (random_bits() & 0x8000); },
                   [](u64 v) { return half_value(static_cast<u16>(v)); }};
const Element kBf16{16, [] { return u64{0x3e00} + random_bits() % 0x280 + (random_bits() & 0x8000); },
                    [](u64 v) { return bf16_value(static_cast<u16>(v)); }};
// The lowest 13 bits are not part of a tf32 number.
const Element kTf32{32,
                    [] { return u64{0x3e000000} + random_bits() % 0x2800000 + (random_bits() & 0x80000000); },
                    [](u64 v) { return double{bits_as<float>(static_cast<u32>(v) & ~0x1fffu)}; }};
const Element kF32{32,
                   [] { return u64{0x3e000000} + random_bits() % 0x2800000 + (random_bits() & 0x80000000); },
                   [](u64 v) { return double{bits_as<float>(static_cast<u32>(v))}; }};
const Element kF64{64,
                   [] { return bits_as<u64>(static_cast<double>(static_cast<i32>(random_bits())) / 65536); },
                   [](u64 v) { return bits_as<double>(v); }};
const Element kE4m3{8, [] { return random_bits() % 0x7f + (random_bits() & 0x80); },
                    [](u64 v) { return e4m3_value(static_cast<u8>(v)); }};
const Element kE5m2{8, [] { return random_bits() % 0x7c + (random_bits() & 0x80); },
                    [](u64 v) { return e5m2_value(static_cast<u8>(v)); }};
const Element kS8{8, [] { return random_bits() & 0xff; },
                  [](u64 v) { return double{static_cast<float>(static_cast<i8>(v))}; }};
const Element kU8{8, [] { return random_bits() & 0xff; }, [](u64 v) { return static_cast<double>(v); }};
const Element kS32{32, [] { return random_bits() % 100000; },
                   [](u64 v) { return static_cast<double>(static_cast<i32>(v)); }};

const Element kS4{4, [] { return random_bits() & 15; },
                  [](u64 v) { return double{static_cast<float>(static_cast<i8>(v << 4) >> 4)}; }};
const Element kU4{4, [] { return random_bits() & 15; }, [](u64 v) { return static_cast<double>(v); }};

u64 load(const std::vector<u8>& bytes, size_t i, int bits) {
  if (bits == 4) return bytes[i / 2] >> (i % 2 * 4) & 15;
  u64 v = 0;
  std::memcpy(&v, bytes.data() + i * bits / 8, bits / 8);
  return v;
}
void store(std::vector<u8>* bytes, size_t i, int bits, u64 v) {
  if (bits == 4) {
    u8& b = (*bytes)[i / 2];
    b = static_cast<u8>((b & (i % 2 ? 15 : 240)) | v << (i % 2 * 4));
    return;
  }
  std::memcpy(bytes->data() + i * bits / 8, &v, bits / 8);
}

// Registers of a fragment in memory: lane by lane, elements in order.
struct Fragment {
  int elements = 0;
  Element element{};
  std::vector<u8> bytes;
  Fragment(int rows, int cols, const Element& e) : elements(rows * cols / 32), element(e) {
    bytes.resize(static_cast<size_t>(rows) * cols * e.bits / 8);
  }
  u64 get(int lane, int i) const {
    return load(bytes, static_cast<size_t>(lane) * elements + i, element.bits);
  }
  void set(int lane, int i, u64 v) {
    store(&bytes, static_cast<size_t>(lane) * elements + i, element.bits, v);
  }
};

using Kernel = void (*)(const void*, const void*, const void*, void*);
// d = a b + c on random fragments; `tolerance` of the sum of magnitudes is allowed (0:
// exact; below 0: exact, and clamped to s32).
bool test_mma(const char* name, Kernel kernel, int m, int k, Element ea, Element eb, Element ec, Layout la,
              Layout lb, Layout lc, double tolerance) {
  for (int round = 0; round < 4; ++round) {
    Fragment a(m, k, ea), b(k, 8, eb), c(m, 8, ec), d(m, 8, ec);
    std::vector<double> am(m * k, NAN), bm(k * 8, NAN), cm(m * 8, NAN);
    const auto fill = [](Fragment* f, std::vector<double>* matrix, int cols, Layout layout) {
      for (int l = 0; l < 32; ++l)
        for (int i = 0; i < f->elements; ++i) {
          const u64 v = f->element.draw();
          f->set(l, i, v);
          const At at = layout(i, l >> 2, l % 4);
          (*matrix)[at.row * cols + at.col] = f->element.value(v);
        }
    };
    fill(&a, &am, k, la), fill(&b, &bm, 8, lb), fill(&c, &cm, 8, lc);
    u8 *pa = to_device(a.bytes), *pb = to_device(b.bytes), *pc = to_device(c.bytes), *pd = to_device(d.bytes);
    kernel<<<1, 32>>>(pa, pb, pc, pd);
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaMemcpy(d.bytes.data(), pd, d.bytes.size(), cudaMemcpyDeviceToHost));
    for (u8* p : {pa, pb, pc, pd}) CHECK_CUDA(cudaFree(p));
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < d.elements; ++i) {
        const At at = lc(i, l >> 2, l % 4);
        double want = cm[at.row * 8 + at.col], size = std::fabs(want);
        for (int x = 0; x < k; ++x) {
          const double p = am[at.row * k + x] * bm[x * 8 + at.col];
          want += p, size += std::fabs(p);
        }
        if (tolerance < 0) want = std::min(std::max(want, -2147483648.0), 2147483647.0), size = 0;
        const double got = ec.value(d.get(l, i));
        if (!(std::fabs(got - want) <= tolerance * size)) {
          std::printf("%s: operands: lane %d, element %d (row %d, column %d): got %.9g, want %.9g\n", name, l,
                      i, at.row, at.col, got, want);
          return false;
        }
      }
    }
  }
  return true;
}

// Kernels by the numbers of 32-bit registers of a, b, c.
#define MMA_424(NAME, TEXT, ...)                                                                           \
  __global__ void kernel_##NAME(const void* pa, const void* pb, const void* pc, void* pd) {                \
    const u32* a = (const u32*)pa + threadIdx.x * 4;                                                       \
    const u32* b = (const u32*)pb + threadIdx.x * 2;                                                       \
    const u32* c = (const u32*)pc + threadIdx.x * 4;                                                       \
    u32* d = (u32*)pd + threadIdx.x * 4;                                                                   \
    u32 r0, r1, r2, r3;                                                                                    \
    asm volatile("mma.sync.aligned." TEXT " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"     \
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), \
                   "r"(c[2]), "r"(c[3]));                                                                  \
    d[0] = r0, d[1] = r1, d[2] = r2, d[3] = r3;                                                            \
  }                                                                                                        \
  Register register_##NAME(#NAME, [] { return test_mma(#NAME, kernel_##NAME, 16, __VA_ARGS__); });
#define MMA_214(NAME, TEXT, ...)                                                                 \
  __global__ void kernel_##NAME(const void* pa, const void* pb, const void* pc, void* pd) {      \
    const u32* a = (const u32*)pa + threadIdx.x * 2;                                             \
    const u32* b = (const u32*)pb + threadIdx.x;                                                 \
    const u32* c = (const u32*)pc + threadIdx.x * 4;                                             \
    u32* d = (u32*)pd + threadIdx.x * 4;                                                         \
    u32 r0, r1, r2, r3;                                                                          \
    asm volatile("mma.sync.aligned." TEXT " {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"       \
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])); \
    d[0] = r0, d[1] = r1, d[2] = r2, d[3] = r3;                                                  \
  }                                                                                              \
  Register register_##NAME(#NAME, [] { return test_mma(#NAME, kernel_##NAME, 16, __VA_ARGS__); });
#define MMA_422(NAME, TEXT, ...)                                                                            \
  __global__ void kernel_##NAME(const void* pa, const void* pb, const void* pc, void* pd) {                 \
    const u32* a = (const u32*)pa + threadIdx.x * 4;                                                        \
    const u32* b = (const u32*)pb + threadIdx.x * 2;                                                        \
    const u32* c = (const u32*)pc + threadIdx.x * 2;                                                        \
    u32* d = (u32*)pd + threadIdx.x * 2;                                                                    \
    u32 r0, r1;                                                                                             \
    asm volatile("mma.sync.aligned." TEXT " {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%8,%9};"                      \
                 : "=r"(r0), "=r"(r1)                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1])); \
    d[0] = r0, d[1] = r1;                                                                                   \
  }                                                                                                         \
  Register register_##NAME(#NAME, [] { return test_mma(#NAME, kernel_##NAME, 16, __VA_ARGS__); });
#define MMA_212(NAME, TEXT, ...)                                                            \
  __global__ void kernel_##NAME(const void* pa, const void* pb, const void* pc, void* pd) { \
    const u32* a = (const u32*)pa + threadIdx.x * 2;                                        \
    const u32* b = (const u32*)pb + threadIdx.x;                                            \
    const u32* c = (const u32*)pc + threadIdx.x * 2;                                        \
    u32* d = (u32*)pd + threadIdx.x * 2;                                                    \
    u32 r0, r1;                                                                             \
    asm volatile("mma.sync.aligned." TEXT " {%0,%1}, {%2,%3}, {%4}, {%5,%6};"               \
                 : "=r"(r0), "=r"(r1)                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]));                  \
    d[0] = r0, d[1] = r1;                                                                   \
  }                                                                                         \
  Register register_##NAME(#NAME, [] { return test_mma(#NAME, kernel_##NAME, 16, __VA_ARGS__); });

constexpr double kF32Sum = 1e-6, kF16Sum = 2e-3;
MMA_424(f16_k16, "m16n8k16.row.col.f32.f16.f16.f32", 16, kF16, kF16, kF32, a16_k16, b16, c16, kF32Sum)
MMA_214(f16_k8, "m16n8k8.row.col.f32.f16.f16.f32", 8, kF16, kF16, kF32, a16_k8, b16, c16, kF32Sum)
MMA_422(f16_k16_f16, "m16n8k16.row.col.f16.f16.f16.f16", 16, kF16, kF16, kF16, a16_k16, b16, c16, kF16Sum)
MMA_212(f16_k8_f16, "m16n8k8.row.col.f16.f16.f16.f16", 8, kF16, kF16, kF16, a16_k8, b16, c16, kF16Sum)
MMA_424(bf16_k16, "m16n8k16.row.col.f32.bf16.bf16.f32", 16, kBf16, kBf16, kF32, a16_k16, b16, c16, kF32Sum)
MMA_214(bf16_k8, "m16n8k8.row.col.f32.bf16.bf16.f32", 8, kBf16, kBf16, kF32, a16_k8, b16, c16, kF32Sum)
MMA_424(tf32_k8, "m16n8k8.row.col.f32.tf32.tf32.f32", 8, kTf32, kTf32, kF32, a32_k8, b32, c16, kF32Sum)
MMA_214(tf32_k4, "m16n8k4.row.col.f32.tf32.tf32.f32", 4, kTf32, kTf32, kF32, a32_k4, b32, c16, kF32Sum)
MMA_424(s8_k32, "m16n8k32.row.col.s32.s8.s8.s32", 32, kS8, kS8, kS32, a8_k32, b8, c16, 0)
MMA_424(u8_s8_k32, "m16n8k32.row.col.s32.u8.s8.s32", 32, kU8, kS8, kS32, a8_k32, b8, c16, 0)
MMA_424(s8_u8_k32, "m16n8k32.row.col.s32.s8.u8.s32", 32, kS8, kU8, kS32, a8_k32, b8, c16, 0)
MMA_214(s8_k16, "m16n8k16.row.col.s32.s8.s8.s32", 16, kS8, kS8, kS32, a8_k16, b8, c16, 0)
MMA_214(u8_k16, "m16n8k16.row.col.s32.u8.u8.s32", 16, kU8, kU8, kS32, a8_k16, b8, c16, 0)
MMA_424(s4_k64, "m16n8k64.row.col.s32.s4.s4.s32", 64, kS4, kS4, kS32, a4_k64, b4, c16, 0)
MMA_424(u4_s4_k64, "m16n8k64.row.col.s32.u4.s4.s32", 64, kU4, kS4, kS32, a4_k64, b4, c16, 0)
MMA_214(s4_u4_k32, "m16n8k32.row.col.s32.s4.u4.s32", 32, kS4, kU4, kS32, a4_k32, b4, c16, 0)
// The sums overflow, or do not by a little: c is near the ends of s32.
const Element kNearEnds{32,
                        [] {
                          const u64 r = random_bits();
                          return (r & 1 ? u64{0x7fff0000} : u64{0x80000000}) + ((r >> 8) & 0xffff);
                        },
                        [](u64 v) { return static_cast<double>(static_cast<i32>(v)); }};
MMA_424(s8_k32_sat, "m16n8k32.row.col.satfinite.s32.s8.s8.s32", 32, kS8, kS8, kNearEnds, a8_k32, b8, c16, -1)
MMA_214(u4_k32_sat, "m16n8k32.row.col.satfinite.s32.u4.u4.s32", 32, kU4, kU4, kNearEnds, a4_k32, b4, c16, -1)
MMA_214(u8_k16_sat, "m16n8k16.row.col.satfinite.s32.u8.u8.s32", 16, kU8, kU8, kNearEnds, a8_k16, b8, c16, -1)
MMA_424(e4m3_k32, "m16n8k32.row.col.f32.e4m3.e4m3.f32", 32, kE4m3, kE4m3, kF32, a8_k32, b8, c16, 4e-6)
MMA_424(e5m2_k32, "m16n8k32.row.col.f32.e5m2.e5m2.f32", 32, kE5m2, kE5m2, kF32, a8_k32, b8, c16, 4e-6)
MMA_424(e4m3_e5m2_k32, "m16n8k32.row.col.f32.e4m3.e5m2.f32", 32, kE4m3, kE5m2, kF32, a8_k32, b8, c16, 4e-6)

// f64
template <int kM, int kK>
__global__ void kernel_f64(const void* pa, const void* pb, const void* pc, void* pd) {
  const double* a = (const double*)pa + threadIdx.x * (kM * kK / 32);
  const double* b = (const double*)pb + threadIdx.x * (kK / 4);
  const double* c = (const double*)pc + threadIdx.x * (kM / 4);
  double* d = (double*)pd + threadIdx.x * (kM / 4);
  double r0, r1, r2 = 0, r3 = 0;
  if constexpr (kM == 8) {
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%4,%5};"
                 : "=d"(r0), "=d"(r1)
                 : "d"(a[0]), "d"(b[0]), "d"(c[0]), "d"(c[1]));
    d[0] = r0, d[1] = r1;
    return;
  } else if constexpr (kK == 4) {
    asm volatile(
        "mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
        : "=d"(r0), "=d"(r1), "=d"(r2), "=d"(r3)
        : "d"(a[0]), "d"(a[1]), "d"(b[0]), "d"(c[0]), "d"(c[1]), "d"(c[2]), "d"(c[3]));
  } else if constexpr (kK == 8) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%11,%12,%13};"
        : "=d"(r0), "=d"(r1), "=d"(r2), "=d"(r3)
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]), "d"(c[0]), "d"(c[1]), "d"(c[2]),
          "d"(c[3]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7,%8,%9,%10,%11}, "
        "{%12,%13,%14,%15}, {%16,%17,%18,%19};"
        : "=d"(r0), "=d"(r1), "=d"(r2), "=d"(r3)
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]), "d"(b[0]),
          "d"(b[1]), "d"(b[2]), "d"(b[3]), "d"(c[0]), "d"(c[1]), "d"(c[2]), "d"(c[3]));
  }
  d[0] = r0, d[1] = r1, d[2] = r2, d[3] = r3;
}
#define MMA_F64(NAME, M, K, LA, LC) \
  Register register_##NAME(         \
      #NAME, [] { return test_mma(#NAME, kernel_f64<M, K>, M, K, kF64, kF64, kF64, LA, b64, LC, 1e-14); });
MMA_F64(f64_m8n8k4, 8, 4, a64_m8, c64_m8)
MMA_F64(f64_m16n8k4, 16, 4, a64_m16, c16)
MMA_F64(f64_m16n8k8, 16, 8, a64_m16, c16)
MMA_F64(f64_m16n8k16, 16, 16, a64_m16, c16)

// --- ldmatrix, stmatrix: matrix i's row r is addressed by lane 8 * i + r; rows lie in a scattered order
__device__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
__host__ __device__ constexpr int row_place(int row) { return (row * 11 + 5) % 32; }

template <int kCount, bool kTrans>
__global__ void kernel_ldmatrix(u32* out) {
  __shared__ alignas(16) u16 s[32 * 8];
  for (int i = threadIdx.x; i < 256; i += 32) s[i] = static_cast<u16>(i * 3 + 1);
  __syncwarp();
  const u32 a = shared_address(s + row_place(threadIdx.x) * 8);
  u32 r[4] = {};
  if constexpr (kCount == 1 && !kTrans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a));
  if constexpr (kCount == 1 && kTrans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a));
  if constexpr (kCount == 2 && !kTrans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a));
  if constexpr (kCount == 2 && kTrans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(a));
  if constexpr (kCount == 4 && !kTrans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a));
  if constexpr (kCount == 4 && kTrans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a));
  for (int i = 0; i < kCount; ++i) out[threadIdx.x * 4 + i] = r[i];
}
template <int kCount, bool kTrans>
__global__ void kernel_stmatrix(u32* out) {
  __shared__ alignas(16) u16 s[32 * 8];
  for (int i = threadIdx.x; i < 256; i += 32) s[i] = 0xffff;
  __syncwarp();
  const u32 a = shared_address(s + row_place(threadIdx.x) * 8);
  u32 r[4];
  for (int i = 0; i < 4; ++i)  // lane, register and half in every element
    r[i] = (threadIdx.x * 8 + i * 2) | (threadIdx.x * 8 + i * 2 + 1) << 16;
  if constexpr (kCount == 1 && !kTrans)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(a), "r"(r[0]) : "memory");
  if constexpr (kCount == 1 && kTrans)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(a), "r"(r[0]) : "memory");
  if constexpr (kCount == 2 && !kTrans)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(a), "r"(r[0]), "r"(r[1])
                 : "memory");
  if constexpr (kCount == 2 && kTrans)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(a), "r"(r[0]),
                 "r"(r[1])
                 : "memory");
  if constexpr (kCount == 4 && !kTrans)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  if constexpr (kCount == 4 && kTrans)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  __syncwarp();
  for (int i = 0; i < 4; ++i)
    out[threadIdx.x * 4 + i] = s[threadIdx.x * 8 + 2 * i] | static_cast<u32>(s[threadIdx.x * 8 + 2 * i + 1])
                                                                << 16;
}
__global__ void kernel_movmatrix(u32* out) {
  u32 r;
  const u32 x = (threadIdx.x * 2) | (threadIdx.x * 2 + 1) << 16;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  out[threadIdx.x] = r;
}
std::vector<u16> run_rows(void (*kernel)(u32*)) {
  u32* p;
  std::vector<u16> v(256);
  CHECK_CUDA(cudaMalloc(&p, 512));
  CHECK_CUDA(cudaMemset(p, 0, 512));
  kernel<<<1, 32>>>(p);
  CHECK_CUDA(cudaMemcpy(v.data(), p, 512, cudaMemcpyDeviceToHost));
  CHECK_CUDA(cudaFree(p));
  return v;
}
bool expect(const char* name, int at, u32 got, u32 want) {
  if (got == want) return true;
  std::printf("%s: operands: element %d: got %u, want %u\n", name, at, got, want);
  return false;
}
// Element h of register i of lane l is row l / 4, column l % 4 * 2 + h of matrix i (transposed: the other
// way).
template <int kCount, bool kTrans>
bool test_ldmatrix(const char* name) {
  const std::vector<u16> v = run_rows(kernel_ldmatrix<kCount, kTrans>);
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < kCount; ++i)
      for (int h = 0; h < 2; ++h) {
        int row = l / 4, col = l % 4 * 2 + h;
        if (kTrans) std::swap(row, col);
        const int want = (row_place(8 * i + row) * 8 + col) * 3 + 1;
        if (!expect(name, l * 8 + i * 2 + h, v[l * 8 + i * 2 + h], want)) return false;
      }
  return true;
}
template <int kCount, bool kTrans>
bool test_stmatrix(const char* name) {
  const std::vector<u16> v = run_rows(kernel_stmatrix<kCount, kTrans>);
  std::vector<u16> want(256, 0xffff);
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < kCount; ++i)
      for (int h = 0; h < 2; ++h) {
        int row = l / 4, col = l % 4 * 2 + h;
        if (kTrans) std::swap(row, col);
        want[row_place(8 * i + row) * 8 + col] = static_cast<u16>(l * 8 + i * 2 + h);
      }
  for (int k = 0; k < 256; ++k)
    if (!expect(name, k, v[k], want[k])) return false;
  return true;
}
#define ROWS(TEST, COUNT, TRANS)          \
  Register register_##TEST##COUNT##TRANS( \
      #TEST #COUNT, [] { return test_##TEST<COUNT, TRANS>(#TEST "_" #COUNT "_" #TRANS); });
ROWS(ldmatrix, 1, false)
ROWS(ldmatrix, 1, true)
ROWS(ldmatrix, 2, false)
ROWS(ldmatrix, 2, true)
ROWS(ldmatrix, 4, false)
ROWS(ldmatrix, 4, true)
ROWS(stmatrix, 1, false)
ROWS(stmatrix, 1, true)
ROWS(stmatrix, 2, false)
ROWS(stmatrix, 2, true)
ROWS(stmatrix, 4, false)
ROWS(stmatrix, 4, true)
Register register_movmatrix("movmatrix", [] {
  const std::vector<u16> v = run_rows(kernel_movmatrix);
  for (int l = 0; l < 32; ++l)
    for (int h = 0; h < 2; ++h) {
      const int row = l / 4, col = l % 4 * 2 + h;
      if (!expect("movmatrix", l * 2 + h, v[l * 2 + h], col * 8 + row)) return false;
    }
  return true;
});

}  // namespace

int main() { return run_all("matrix"); }
