// What adapters need beside products: core/ops/lora.h. Fused with one (docs/kernels/lora.md), all adapters of
// a product share matrices in bf16, whose ranks lie side by side: each adapter's from a multiple of eight on,
// zeros behind its last.
#pragma once

#include "cuda/device/mma.cuh"
#include "cuda/device/parts.cuh"
#include "cuda/device/philox.cuh"
#include "cuda/device/swizzle.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// x[i] *= scale. Grid ceil(count / (kVector kThreads)), no shared memory; a thread owns kVector values,
// aligned to their size, each read and written once. No two threads meet: deterministic.
template <int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void scale_kernel(float* __restrict__ x, float scale, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (i >= count) return;
  Vector<float, kVector> v = load_vector<kVector>(x + i);
#pragma unroll
  for (int j = 0; j < kVector; ++j) v.value[j] *= scale;
  store_vector(x + i, v);
}

// to = or += scale * from where Philox(key)(row, column / 4)[column % 4] >= bound, else = 0 or += nothing:
// what dropout leaves of rows of `width` values. Grid (rows, ceil(width / (4 kThreads))), no shared memory; a
// thread owns four columns, which share one draw. kVector 4: width is a multiple of four and rows are aligned
// to 16 bytes; else 1. Traffic: f32 read and written once (to read too with kAdd). Deterministic.
template <bool kAdd, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads) void dropout_kernel(const float* __restrict__ from,  // (N, width)
                                                           float* __restrict__ to,          // (N, width)
                                                           uint64_t key, uint32_t bound, float scale,
                                                           int width) {
  const int64_t row = blockIdx.x;
  const int j = (blockIdx.y * kThreads + threadIdx.x) * 4;
  if (j >= width) return;
  const PhiloxWords words = philox(key, static_cast<uint64_t>(row), static_cast<uint64_t>(j / 4));
  from += row * width + j;
  to += row * width + j;
#pragma unroll
  for (int l = 0; l < 4; l += kVector) {
    if (j + l >= width) return;
    float value[kVector], sum[kVector];
    load_floats(from + l, value);
    if constexpr (kAdd) load_floats(to + l, sum);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float kept = words.word[l + i] >= bound ? value[i] * scale : 0.0f;
      sum[i] = kAdd ? sum[i] + kept : kept;
    }
    store_floats(to + l, sum);
  }
}

// Where an adapter lies among all of its product.
constexpr int kMostAdapters = 4;
struct AdapterPlace {
  int offset, rank;        // of the ranks side by side
  int64_t first, outputs;  // of the product's
  float scale;
  const float *a, *b;  // (rank, I), (outputs, rank)
  const float* z;      // (N, rank), of backward
  float* to;           // forward: z (N, rank); backward: a gradient, see lora_gradient_kernel
};
struct AdapterPlaces {
  AdapterPlace of[kMostAdapters];
  int count;
  int ranks;  // of all, rounded up
};

// Eight neighbours of `to`, 16 bytes: value(i) rounded.
template <typename Value>
__device__ inline void pack_eight(__nv_bfloat16* to, Value value) {
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = value(i);
  store_row(to, v);
}

// a (ranks, inputs), b (outputs, ranks) and, where it is not null, z (n, ranks), from the adapters' own;
// zeros where no adapter is. `inputs` is a multiple of 8. Grid: eight values a thread, no shared memory; each
// is written once, each of the adapters' read once. No two threads meet: deterministic.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void lora_pack_kernel(const AdapterPlaces places,
                                                             __nv_bfloat16* __restrict__ a,
                                                             __nv_bfloat16* __restrict__ b,
                                                             __nv_bfloat16* __restrict__ z, int64_t inputs,
                                                             int64_t outputs, int64_t n) {
  const int ranks = places.ranks;
  const int64_t of_a = ranks * inputs / 8, of_b = outputs * ranks / 8;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < of_a) {
    const int64_t row = i * 8 / inputs, column = i * 8 % inputs;
    const float* from = nullptr;
#pragma unroll
    for (int p = 0; p < kMostAdapters; ++p) {
      const AdapterPlace& place = places.of[p];
      const int64_t r = row - place.offset;
      if (p < places.count && r >= 0 && r < place.rank) from = place.a + r * inputs + column;
    }
    return pack_eight(a + i * 8, [&](int j) { return from ? from[j] : 0.0f; });
  }
  i -= of_a;
  const bool is_b = i < of_b;
  if (!is_b) i -= of_b;
  if (!is_b && (!z || i >= n * ranks / 8)) return;
  const int64_t row = i * 8 / ranks;
  const int column = static_cast<int>(i * 8 % ranks);
  const float* from = nullptr;
  int count = 0;
#pragma unroll
  for (int p = 0; p < kMostAdapters; ++p) {
    const AdapterPlace& place = places.of[p];
    const int64_t r = column - place.offset, o = is_b ? row - place.first : row;
    if (p < places.count && r >= 0 && r < place.rank && o >= 0 && (!is_b || o < place.outputs)) {
      from = (is_b ? place.b : place.z) + o * place.rank + r;
      count = place.rank - static_cast<int>(r);
    }
  }
  pack_eight((is_b ? b : z) + i * 8, [&](int j) { return j < count ? from[j] : 0.0f; });
}

// At the end of the product that gives all adapters' z or dz (cuda/kernels/matmul_epilogue.cuh): scale * v,
// rounded for the product that follows; and, forward, times row_scale in f32 as each adapter's z. The rows
// that follow are scaled only after that product, so `packed` is not. Traffic a value: 2 B written, and 4.
struct LoraEpilogue {
  static constexpr bool kPaired = false, kQuads = false, kSums = false;
  AdapterPlaces places;
  __nv_bfloat16* packed;   // (m, places.ranks)
  const float* row_scale;  // (m) or null: ones
  bool keeps, wide;        // z is written; each is aligned to 16 bytes

  __device__ float of_row(int64_t row, bool inside) const {
    return keeps && row_scale && inside ? row_scale[row] : 1.0f;
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, float (&v)[kCount], bool inside, float r) const {
    static_assert(kCount == 4);
    if (!inside || column >= places.ranks) return;
    float scale = 0;
    float* z = nullptr;
    int left = 0;  // columns of the adapter, from this one on
    bool quads = false;
#pragma unroll
    for (int p = 0; p < kMostAdapters; ++p) {
      const AdapterPlace& place = places.of[p];
      if (p >= places.count || column < place.offset) continue;
      const int64_t at = column - place.offset;
      scale = place.scale;
      left = place.rank - static_cast<int>(at);
      z = place.to + row * place.rank + at;
      quads = wide && place.rank % 4 == 0;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] *= scale;
    store_row(packed + row * places.ranks + column, v);
    if (!keeps || left <= 0) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] *= r;
    if (quads) {
      store_floats(z, v);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (i < left) z[i] = v[i];
    }
  }
};

// A block of lora_gradient_kernel: so many ranks and columns, so many rows at a time.
constexpr int kGradientRanks = 32, kGradientColumns = 64, kGradientDepth = 32, kGradientThreads = 128;

// Gradients of the adapters' matrices: sum over rows n of u[n, rank] * v[n, column] * rstd[n] * gain[column],
// added to the adapter's `to`: dB (outputs, rank) where v has the product's outputs (kOutputs), else dA
// (rank, columns). u (n, ranks) is bf16, v (n, columns) f32 (of a norm), bf16 or f16; rstd and gain may be
// null; v * rstd is rounded once to bf16. A block owns 64 columns and 32 ranks of `rows` rows, warp w 16
// columns; it leaves its sums in `parts` (gridDim.z, 32 gridDim.y, columns), and the last block of its
// columns and ranks adds those up in order of rows: deterministic, whichever is last. Two buffers of 32 rows
// in shared memory, one barrier each. columns is a multiple of 8, v and u of 16 bytes. grid: columns / 64,
// ranks / 32, pieces of `rows` rows, a multiple of 32. Traffic: v read once each 32 ranks, u once each 64
// columns.
template <typename T, bool kOutputs>
__global__ __launch_bounds__(kGradientThreads) void lora_gradient_kernel(
    const AdapterPlaces places, const __nv_bfloat16* __restrict__ u, const T* __restrict__ v,
    const float* __restrict__ rstd, const float* __restrict__ gain, int64_t n, int64_t columns, int64_t rows,
    float* __restrict__ parts, unsigned* __restrict__ arrivals) {
  constexpr int kRanks = kGradientRanks, kColumns = kGradientColumns, kDepth = kGradientDepth,
                kThreads = kGradientThreads;
  constexpr int kVector = kWide<T>, kAcross = kColumns / kVector, kPass = kThreads / kAcross,
                kTimes = kDepth / kPass;
  constexpr int kAcrossU = kRanks / 8;
  static_assert(kThreads / kAcrossU == kDepth);
  constexpr int kBytesU = kDepth * kRanks * 2, kBytesV = kDepth * kColumns * 2;
  __shared__ __align__(128) unsigned char shared[2 * (kBytesU + kBytesV)];
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) * kColumns;
  const int rank0 = blockIdx.y * kRanks;

  if constexpr (kOutputs) {  // outputs of adapters whose ranks are others
    bool any = false;
#pragma unroll
    for (int p = 0; p < kMostAdapters; ++p) {
      const AdapterPlace& place = places.of[p];
      any |= p < places.count && place.offset < rank0 + kRanks && place.offset + place.rank > rank0 &&
             place.first < column0 + kColumns && place.first + place.outputs > column0;
    }
    if (!any) return;
  }

  const int64_t begin = blockIdx.z * rows, end = min(begin + rows, n);
  const int row_u = thread / kAcrossU, chunk_u = thread % kAcrossU;
  const int row_v = thread / kAcross, chunk_v = thread % kAcross;
  const bool inside_u = rank0 + chunk_u * 8 < places.ranks, inside_v = column0 + chunk_v * kVector < columns;
  const __nv_bfloat16* from_u = u + (begin + row_u) * places.ranks + rank0 + chunk_u * 8;
  const T* from_v = v + (begin + row_v) * columns + column0 + chunk_v * kVector;
  // What was read for the next slice.
  Vector<uint32_t, 4> next_u, next_v[kTimes];
  float scale[kTimes];
  const auto read = [&](int64_t row) {
    next_u = {};
    if (inside_u && row + row_u < end) next_u = load_words(from_u);
    from_u += kDepth * places.ranks;
#pragma unroll
    for (int i = 0; i < kTimes; ++i) {
      next_v[i] = {};
      scale[i] = 1;
      if (inside_v && row + row_v + i * kPass < end) {
        next_v[i] = load_words(from_v + i * kPass * columns);
        if constexpr (std::is_same_v<T, float>)
          if (rstd) scale[i] = rstd[row + row_v + i * kPass];
      }
    }
    from_v += kDepth * columns;
  };
  const auto write = [&](unsigned char* buffer) {
    *reinterpret_cast<Vector<uint32_t, 4>*>(buffer + swizzled<kAcrossU>(row_u, chunk_u)) = next_u;
#pragma unroll
    for (int i = 0; i < kTimes; ++i) {
      unsigned char* const to = buffer + kBytesU;
      const int row = row_v + i * kPass;
      if constexpr (std::is_same_v<T, float>) {
        float f[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) f[j] = __uint_as_float(next_v[i].value[j]) * scale[i];
        *reinterpret_cast<uint2*>(to + swizzled<kColumns / 8>(row, chunk_v / 2) + chunk_v % 2 * 8) =
            make_uint2(pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]));
      } else {
        Vector<uint32_t, 4> w = next_v[i];
        if constexpr (!std::is_same_v<T, __nv_bfloat16>) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float2 pair = unpack_pair<T>(w.value[j]);
            w.value[j] = pack_bf16(pair.x, pair.y);
          }
        }
        *reinterpret_cast<Vector<uint32_t, 4>*>(to + swizzled<kColumns / 8>(row, chunk_v)) = w;
      }
    }
  };

  const uint32_t base = shared_address(shared);
  float sum[2][2][4] = {};  // of 16 ranks, of 8 columns
  read(begin);
  int buffer = 0;
#pragma unroll 1
  for (int64_t row = begin; row < end; row += kDepth) {
    write(shared + buffer * (kBytesU + kBytesV));
    if (row + kDepth < end) read(row + kDepth);
    __syncthreads();  // and all have left the buffer that is written next
    const uint32_t at_u = base + buffer * (kBytesU + kBytesV), at_v = at_u + kBytesU;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t of_v[4];
      load_matrices_transposed(of_v, at_v + swizzled<kColumns / 8>(k + lane % 16, warp * 2 + lane / 16));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t of_u[4];  // u^T: as it lies, rows are k
        load_matrices_transposed(
            of_u, at_u + swizzled<kAcrossU>(k + lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < 2; ++j) multiply_add(sum[i][j], of_u, of_v[2 * j], of_v[2 * j + 1]);
      }
    }
    buffer ^= 1;
  }

  const int64_t ranks = static_cast<int64_t>(gridDim.y) * kRanks;
  float* const mine = parts + (blockIdx.z * ranks + rank0) * columns + column0;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int column = warp * 16 + j * 8 + lane % 4 * 2;
      if (column0 + column >= columns) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int rank = i * 16 + h * 8 + lane / 4;
        if (rank0 + rank < places.ranks)
          store_vector(mine + rank * columns + column,
                       Vector<float, 2>{sum[i][j][2 * h], sum[i][j][2 * h + 1]});
      }
    }
  __shared__ bool last;
  unsigned* const arrived = arrivals + blockIdx.y * gridDim.x + blockIdx.x;
  __threadfence();
  __syncthreads();
  if (thread == 0) last = atomicAdd(arrived, 1u) + 1 == gridDim.z;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const float* const all = parts + rank0 * columns + column0;
#pragma unroll 1
  for (int i = thread; i < kRanks * kColumns; i += kThreads) {
    const int rank = rank0 + i / kColumns;
    const int64_t column = column0 + i % kColumns;
    if (column >= columns) continue;
    float* to = nullptr;
#pragma unroll
    for (int p = 0; p < kMostAdapters; ++p) {
      const AdapterPlace& place = places.of[p];
      const int64_t r = rank - place.offset, o = column - place.first;
      if (p >= places.count || r < 0 || r >= place.rank) continue;
      if constexpr (kOutputs) {
        if (o >= 0 && o < place.outputs) to = place.to + o * place.rank + r;
      } else {
        to = place.to + r * columns + column;
      }
    }
    if (!to) continue;
    float total = 0;
#pragma unroll 1
    for (unsigned s = 0; s < gridDim.z; ++s)
      total += __ldcg(all + (s * ranks + i / kColumns) * columns + i % kColumns);
    *to += gain ? total * gain[column] : total;
  }
  if (thread == 0) *arrived = 0;
}

}  // namespace gantrain::cuda
