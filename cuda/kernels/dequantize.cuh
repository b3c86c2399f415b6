// Packed blocks of quantised weights to values: core/packed.h, docs/kernels/dequant.md.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// As PackedType of core/packed.h (checked where kernels are launched).
enum class PackedCode : int { kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K, kNf4 };

// Values, and bytes, of a packed block.
template <PackedCode kType>
constexpr int kPackedValues = kType < PackedCode::kQ4_K   ? 32
                              : kType == PackedCode::kNf4 ? 64
                                                          : 256;
template <PackedCode kType>
constexpr int kPackedBytes = kType == PackedCode::kQ8_0   ? 34
                             : kType == PackedCode::kQ4_0 ? 18
                             : kType == PackedCode::kQ4_1 ? 20
                             : kType == PackedCode::kQ4_K ? 144
                             : kType == PackedCode::kQ6_K ? 210
                                                          : 32;

// Four 16-bit words: eight bytes at an even address.
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

// Values 8 part .. 8 part + 7 of the block at p, at any even address. Products are exact, so that it does not
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

// NF4's value of four bits (core/packed.h, with whose table it is compared where kernels are launched).
__host__ __device__ constexpr float nf4_value(int i) {
  constexpr float kValues[16] = {-1.0f,
                                 -0.6961928009986877f,
                                 -0.5250730514526367f,
                                 -0.39491748809814453f,
                                 -0.28444138169288635f,
                                 -0.18477343022823334f,
                                 -0.09105003625154495f,
                                 0.0f,
                                 0.07958029955625534f,
                                 0.16093020141124725f,
                                 0.24611230194568634f,
                                 0.33791524171829224f,
                                 0.44070982933044434f,
                                 0.5626170039176941f,
                                 0.7229568362236023f,
                                 1.0f};
  return kValues[i];
}
// What a value is made of beside its four bits.
struct Nf4Tensor {
  const unsigned char* codes;   // a block's
  const float *steps, *values;  // of 256 blocks; (256)
  float mean;
  int64_t first;  // number of the first block in its tensor
};
__device__ inline float nf4_scale(const Nf4Tensor& t, int64_t block) {
  // Not fused: the same bits as on the host.
  return __fadd_rn(__fmul_rn(t.values[t.codes[block]], t.steps[(t.first + block) / 256]), t.mean);
}
// Into shared memory, by one thread: where four bits become a value.
__device__ inline void write_nf4_table(float* table) {
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < 16; ++i) table[i] = nf4_value(i);
  }
  __syncthreads();
}
// Eight values out of four bytes, the first in the upper half of the first one. `table` is in shared memory.
__device__ inline void unpack_nf4(uint32_t bytes, float scale, const float* table, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = table[bytes >> (i / 2 * 8 + (i % 2 ? 0 : 4)) & 15u] * scale;
}

// NF4 to values, rounded once to T: eight values a thread. grid (eights / kThreads), block kThreads, static
// shared memory of 16 values. Traffic: blocks, codes and values once. kWideWrite: y is aligned to 16 bytes;
// `packed` always is to 4.
template <typename T, bool kWideWrite, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void dequantize_nf4_kernel(
    const unsigned char* __restrict__ packed, Nf4Tensor tensor, T* __restrict__ y, int64_t eights) {
  __shared__ float table[16];
  write_nf4_table(table);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= eights) return;
  float v[8];
  unpack_nf4(reinterpret_cast<const uint32_t*>(packed)[i], nf4_scale(tensor, i / 8), table, v);
  if constexpr (kWideWrite) {
    store_row(y + 8 * i, v);
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e) y[8 * i + e] = from_float<T>(v[e]);
  }
}

// Rows of packed blocks by token, with the soft prompt spliced in (core/ops/embedding.h): x[i] = the row of
// tokens[i], rounded once to T, where it is one of [begin, begin + rows), whose blocks these are; prompt rows
// where kPrompt; other rows are left alone. grid (N), block kThreads: a block owns one row, a thread eight
// values at a time. Traffic a row: its packed bytes, C f32 written. kWide: x and prompt are 16-byte aligned.
template <PackedCode kType, typename T, bool kWide, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void embed_packed_kernel(
    const unsigned char* __restrict__ packed, Nf4Tensor tensor, const int32_t* __restrict__ tokens,
    const float* __restrict__ prompt, bool with_prompt, float* __restrict__ x, int64_t begin, int64_t rows,
    int c) {
  constexpr int kParts = kPackedValues<kType> / 8, kStep = kWide ? 4 : 1;
  __shared__ float table[16];
  if constexpr (kType == PackedCode::kNf4) write_nf4_table(table);
  const int64_t n = blockIdx.x, token = tokens[n], row = token - begin;
  float* to = x + n * c;
  if (token < 0) {
    if (!with_prompt) return;
    const float* from = prompt + (-1 - token) * c;
#pragma unroll 1
    for (int j = threadIdx.x * kStep; j < c; j += kThreads * kStep) {
      float v[kStep];
      load_floats(from + j, v);
      store_floats(to + j, v);
    }
    return;
  }
  if (row < 0 || row >= rows) return;
  const int64_t first = row * (c / kPackedValues<kType>);
#pragma unroll 1
  for (int i = threadIdx.x; i < c / 8; i += kThreads) {
    const int64_t block = first + i / kParts;
    float v[8];
    if constexpr (kType == PackedCode::kNf4)
      unpack_nf4(reinterpret_cast<const uint32_t*>(packed)[block * 8 + i % 8], nf4_scale(tensor, block),
                 table, v);
    else
      unpack_eight<kType>(packed + block * kPackedBytes<kType>, i % kParts, v);
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = to_float(from_float<T>(v[e]));
    if constexpr (kWide) {
      store_floats(to + 8 * i, v);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e) to[8 * i + e] = v[e];
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
  static_assert(kType != PackedCode::kNf4, "dequantize_nf4_kernel");
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
