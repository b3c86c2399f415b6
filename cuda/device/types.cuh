// Storage types on the device: f32, bf16, f16; arithmetic is done in f32. 16-byte vectors of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

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
// kCount neighbours as f32, and back: accesses of 16 bytes at most, to which `p` is aligned.
template <int kCount, typename T>
__device__ inline void load_floats(const T* p, float (&v)[kCount]) {
  constexpr int kPart = kCount < kWide<T> ? kCount : kWide<T>;
#pragma unroll
  for (int i = 0; i < kCount; i += kPart) {
    const Vector<T, kPart> part = load_vector<kPart>(p + i);
#pragma unroll
    for (int j = 0; j < kPart; ++j) v[i + j] = to_float(part.value[j]);
  }
}
template <int kCount, typename T>
__device__ inline void store_floats(T* p, const float (&v)[kCount]) {
  constexpr int kPart = kCount < kWide<T> ? kCount : kWide<T>;
#pragma unroll
  for (int i = 0; i < kCount; i += kPart) {
    Vector<T, kPart> part;
#pragma unroll
    for (int j = 0; j < kPart; ++j) part.value[j] = from_float<T>(v[i + j]);
    store_vector(p + i, part);
  }
}

}  // namespace gantrain::cuda
