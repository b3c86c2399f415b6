// Storage types on the device: f32, bf16, f16; arithmetic is done in f32. 16-byte vectors of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace gantrain::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

// Rounds once, to nearest even.
template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// kCount values that lie side by side, aligned to their size: one load or store instruction.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T value[kCount];
};
// 16 bytes of T.
template <typename T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

template <int kCount, typename T>
__device__ inline Vector<T, kCount> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T, kCount>*>(p);
}
// To global memory. Spelt out where it is wide, because the compiler does not always join the stores of a
// struct.
template <int kCount, typename T>
__device__ inline void store_vector(T* p, const Vector<T, kCount>& v) {
  constexpr int kBytes = kCount * sizeof(T);
  const auto* words = reinterpret_cast<const uint32_t*>(&v);
  if constexpr (kBytes == 16)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  else if constexpr (kBytes == 8)
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(words[0]),
                 "r"(words[1])
                 : "memory");
  else
    *reinterpret_cast<Vector<T, kCount>*>(p) = v;
}

// kCount f32 in pieces of 16 bytes, wherever p is aligned to those (one value: to itself).
template <int kCount>
__device__ inline void load_floats(const float* p, float (&to)[kCount]) {
  constexpr int kPart = kCount < 4 ? kCount : 4;
#pragma unroll
  for (int i = 0; i < kCount; i += kPart) {
    const Vector<float, kPart> part = load_vector<kPart>(p + i);
#pragma unroll
    for (int j = 0; j < kPart; ++j) to[i + j] = part.value[j];
  }
}
template <int kCount>
__device__ inline void store_floats(float* p, const float (&from)[kCount]) {
  constexpr int kPart = kCount < 4 ? kCount : 4;
#pragma unroll
  for (int i = 0; i < kCount; i += kPart) {
    Vector<float, kPart> part;
#pragma unroll
    for (int j = 0; j < kPart; ++j) part.value[j] = from[i + j];
    store_vector(p + i, part);
  }
}
// Two 16-bit values in a word, the first in its lower half.
template <typename T>
__device__ inline float2 unpack_pair(uint32_t word) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  else
    return __half22float2(*reinterpret_cast<const __half2*>(&word));
}
template <typename T>
__device__ inline uint32_t pack_pair(float a, float b) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

// kCount values of any type as f32.
template <typename T, int kCount>
__device__ inline void load_row(const T* p, float (&to)[kCount]) {
  if constexpr (sizeof(T) == 4) {
    load_floats(p, to);
  } else if constexpr (kCount == 1) {
    to[0] = to_float(*p);
  } else {
    const Vector<uint32_t, kCount / 2> packed = load_vector<kCount / 2>(reinterpret_cast<const uint32_t*>(p));
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float2 pair = unpack_pair<T>(packed.value[i]);
      to[2 * i] = pair.x;
      to[2 * i + 1] = pair.y;
    }
  }
}
// kCount f32 rounded once to T, 16 bytes of it or one value.
template <typename T, int kCount>
__device__ inline void store_row(T* p, const float (&from)[kCount]) {
  if constexpr (sizeof(T) == 4) {
    store_floats(p, from);
  } else if constexpr (kCount == 1) {
    *p = from_float<T>(from[0]);
  } else {
    Vector<uint32_t, kCount / 2> packed;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) packed.value[i] = pack_pair<T>(from[2 * i], from[2 * i + 1]);
    store_vector(reinterpret_cast<uint32_t*>(p), packed);
  }
}
// f32 of memory that nothing writes while the kernel runs. Spelt out, because the compiler takes a load
// under a condition apart.
template <int kCount>
__device__ inline void load_constant_floats(const float* p, float (&to)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(to[i]), "=f"(to[i + 1]), "=f"(to[i + 2]), "=f"(to[i + 3])
                   : "l"(__cvta_generic_to_global(p + i)));
  } else {
    load_floats(p, to);
  }
}

// Blocks of kThreads that fill a multiprocessor (2,048 threads): as a launch bound it leaves 32 registers a
// thread.
template <int kThreads>
constexpr int kFullBlocks = 2048 / kThreads;

// 1 / x by the hardware's approximation, to one unit in the last place; 0 where it would be subnormal.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace gantrain::cuda
