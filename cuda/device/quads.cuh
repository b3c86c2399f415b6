// What lanes side by side do together: four values each at a time, and sums over four of them.
#pragma once

#include "cuda/device/reduce.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// Over four lanes, neighbours first; each gets the result.
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Four words of global memory. Spelt out, because the compiler takes a load apart whose words are used at
// different times.
__device__ inline Vector<uint32_t, 4> load_words(const void* p) {
  Vector<uint32_t, 4> w;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.value[0]), "=r"(w.value[1]), "=r"(w.value[2]), "=r"(w.value[3])
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return w;
}
// Two quads a lane, four values at p and four `apart` further, where lanes side by side have quads side by
// side, so that in f32 a request of the warp leaves no hole. Of 16-bit types two neighbouring lanes, which
// hold eight values of either place between them, share their accesses: the even one moves 16 bytes of the
// first place, the odd one 16 bytes of the second, and each gives the other what is its own. `lanes`: those
// of the warp that call, in pairs; where not `second` (the same in a pair) nothing is moved of the second
// place. kCount is 4, or 1, which is moved alone.
template <typename T, int kCount>
__device__ inline void load_quads(const T* p, int apart, bool second, unsigned lanes, float (&a)[kCount],
                                  float (&b)[kCount]) {
  static_assert(kCount == 4 || kCount == 1);
  if constexpr (sizeof(T) == 2 && kCount == 4) {
    const bool odd = threadIdx.x % 2, moves = second | !odd;
    Vector<uint32_t, 4> w{};
    if (moves) w = load_words(odd ? p + apart - 4 : p);
    const uint32_t x = __shfl_xor_sync(lanes, odd ? w.value[0] : w.value[2], 1),
                   y = __shfl_xor_sync(lanes, odd ? w.value[1] : w.value[3], 1);
    const float2 a0 = unpack_pair<T>(odd ? x : w.value[0]), a1 = unpack_pair<T>(odd ? y : w.value[1]),
                 b0 = unpack_pair<T>(odd ? w.value[2] : x), b1 = unpack_pair<T>(odd ? w.value[3] : y);
    a[0] = a0.x, a[1] = a0.y, a[2] = a1.x, a[3] = a1.y;
    b[0] = b0.x, b[1] = b0.y, b[2] = b1.x, b[3] = b1.y;
  } else {
    load_row(p, a);
    if (second) load_row(p + apart, b);
  }
}
template <typename T, int kCount>
__device__ inline void store_quads(T* p, int apart, bool second, unsigned lanes, const float (&a)[kCount],
                                   const float (&b)[kCount]) {
  static_assert(kCount == 4 || kCount == 1);
  if constexpr (sizeof(T) == 2 && kCount == 4) {
    const bool odd = threadIdx.x % 2, moves = second | !odd;
    const uint32_t a0 = pack_pair<T>(a[0], a[1]), a1 = pack_pair<T>(a[2], a[3]),
                   b0 = pack_pair<T>(b[0], b[1]), b1 = pack_pair<T>(b[2], b[3]);
    const uint32_t x = __shfl_xor_sync(lanes, odd ? a0 : b0, 1), y = __shfl_xor_sync(lanes, odd ? a1 : b1, 1);
    const Vector<uint32_t, 4> w{{odd ? x : a0, odd ? y : a1, odd ? b0 : x, odd ? b1 : y}};
    if (moves) store_vector(reinterpret_cast<uint32_t*>(odd ? p + apart - 4 : p), w);
  } else {
    store_row(p, a);
    if (second) store_row(p + apart, b);
  }
}

}  // namespace gantrain::cuda
