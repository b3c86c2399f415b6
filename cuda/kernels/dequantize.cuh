// Packed blocks of quantised weights to values: core/packed.h, docs/kernels/dequant.md.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// As PackedType of core/packed.h (checked where kernels are launched).
enum class PackedCode : int { kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K };

// Values, and bytes, of a packed block.
template <PackedCode kType>
constexpr int kPackedValues = kType < PackedCode::kQ4_K ? 32 : 256;
template <PackedCode kType>
constexpr int kPackedBytes = kType == PackedCode::kQ8_0   ? 34
                             : kType == PackedCode::kQ4_0 ? 18
                             : kType == PackedCode::kQ4_1 ? 20
                             : kType == PackedCode::kQ4_K ? 144
                                                          : 210;

// Four 16-bit words of shared memory: eight bytes at an even address.
struct EightBytes {
  uint32_t word[4];
  __device__ explicit EightBytes(const unsigned char* p) {
    const auto* from = reinterpret_cast<const uint16_t*>(p);
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = from[i];
  }
  __device__ int operator[](int i) const { return static_cast<int>(word[i / 2] >> 8 * (i % 2) & 255u); }
};
__device__ inline float packed_half(const unsigned char* p) {
  return __half2float(*reinterpret_cast<const __half*>(p));
}

// Values 8 part .. 8 part + 7 of the block at p, in shared memory. Products are exact, so that it does not
// matter whether the compiler joins them with the addition behind them.
template <PackedCode kType>
__device__ inline void unpack_eight(const unsigned char* p, int part, float (&v)[8]) {
  if constexpr (kType == PackedCode::kQ8_0) {
    const float d = packed_half(p);
    const EightBytes q(p + 2 + 8 * part);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = d * static_cast<float>(static_cast<signed char>(q[i]));
  } else if constexpr (kType == PackedCode::kQ4_0 || kType == PackedCode::kQ4_1) {
    constexpr bool kOffset = kType == PackedCode::kQ4_1;
    const float d = packed_half(p), m = kOffset ? packed_half(p + 2) : 0.0f;
    const EightBytes q(p + (kOffset ? 4 : 2) + 8 * (part % 2));
    const int shift = part / 2 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int nibble = q[i] >> shift & 15;
      v[i] = kOffset ? d * static_cast<float>(nibble) + m : d * static_cast<float>(nibble - 8);
    }
  } else if constexpr (kType == PackedCode::kQ4_K) {
    const int g = part / 4, low = g % 4;
    const unsigned char* s = p + 4;
    // The first four groups have their own six bits; the others four bits each here and two on top of the
    // first four's.
    const int scale = g < 4 ? s[low] & 63 : (s[low + 8] & 15) | (s[low] >> 6) << 4;
    const int minimum = g < 4 ? s[low + 4] & 63 : s[low + 8] >> 4 | (s[low + 4] >> 6) << 4;
    const float step = packed_half(p) * static_cast<float>(scale),
                offset = packed_half(p + 2) * static_cast<float>(minimum);
    const EightBytes q(p + 16 + g / 2 * 32 + part % 4 * 8);
    const int shift = g % 2 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = step * static_cast<float>(q[i] >> shift & 15) - offset;
  } else {
    const int h = part / 16, g = part / 4 % 4, i0 = part % 4 * 8;
    const auto scale = static_cast<signed char>(p[192 + h * 8 + g * 2 + i0 / 16]);
    const float step = packed_half(p + 208) * static_cast<float>(scale);
    const EightBytes low(p + h * 64 + g % 2 * 32 + i0), high(p + 128 + h * 32 + i0);
    const int shift = g / 2 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int q = (low[i] >> shift & 15) | (high[i] >> 2 * g & 3) << 4;
      v[i] = step * static_cast<float>(q - 32);
    }
  }
}

// y[i] = value i, rounded once to T. grid (blocks of packed values / kRun), block kThreads, static shared
// memory of a run: kRun packed blocks, 4,096 values. A run is copied into shared memory 16 bytes a thread,
// where packed blocks of 18 to 210 bytes may be read at any address; a thread then makes eight values at a
// time. Traffic: packed bytes and values once. kWideRead, kWideWrite: packed, y are aligned to 16 bytes; else
// two bytes, one value at a time.
template <PackedCode kType, typename T, bool kWideRead, bool kWideWrite, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void dequantize_kernel(
    const unsigned char* __restrict__ packed, T* __restrict__ y, int64_t blocks) {
  constexpr int kBytes = kPackedBytes<kType>, kParts = kPackedValues<kType> / 8, kRun = 512 / kParts;
  static_assert(kRun * kBytes % 16 == 0, "runs start at multiples of 16 bytes");
  __shared__ alignas(16) unsigned char shared[kRun * kBytes];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRun;
  const int count = static_cast<int>(blocks - first < kRun ? blocks - first : kRun), bytes = count * kBytes;
  packed += first * kBytes;
  y += first * kParts * 8;
  int done = 0;
  if constexpr (kWideRead) {
    done = bytes / 16 * 16;
#pragma unroll 1
    for (int i = threadIdx.x; i < done / 16; i += kThreads)
      reinterpret_cast<uint4*>(shared)[i] = reinterpret_cast<const uint4*>(packed)[i];
  }
  // What is left of the last run; everything, if it is not aligned.
#pragma unroll 1
  for (int i = done / 2 + static_cast<int>(threadIdx.x); i < bytes / 2; i += kThreads)
    reinterpret_cast<uint16_t*>(shared)[i] = reinterpret_cast<const uint16_t*>(packed)[i];
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < count * kParts; i += kThreads) {
    float v[8];
    unpack_eight<kType>(shared + i / kParts * kBytes, i % kParts, v);
    if constexpr (kWideWrite) {
      store_row(y + 8 * i, v);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e) y[8 * i + e] = from_float<T>(v[e]);
    }
  }
}

}  // namespace gantrain::cuda
