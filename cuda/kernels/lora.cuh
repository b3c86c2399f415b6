// What adapters need beside products: core/ops/lora.h. Fused with one (docs/kernels/lora.md), all adapters of
// a product share matrices in bf16, whose ranks lie side by side: each adapter's from a multiple of eight on,
// zeros behind its last.
#pragma once

#include "cuda/device/async_copy.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/philox.cuh"
#include "cuda/device/quads.cuh"
#include "cuda/device/reduce.cuh"
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
  float* to;           // forward: z (N, rank)
  float *da, *db;      // backward: as a and b, +=
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

// scale * v for all adapters' z or dz: rounded for the product that follows, in `packed`; and, forward, times
// row_scale in f32 as each adapter's z. The rows that follow are scaled only after that product, so `packed`
// is not. Traffic a value: 2 B written, and 4.
struct LoraRows {
  AdapterPlaces places;
  __nv_bfloat16* packed;   // (m, places.ranks)
  const float* row_scale;  // (m) or null: ones
  bool keeps, wide;        // z is written; each is aligned to 16 bytes

  // Four neighbours of a row, from a multiple of four on.
  __device__ void store(int64_t row, int column, float (&v)[4]) const {
    float scale = 0;
    float* z = nullptr;
    int left = 0;  // columns of the adapter, from this one on
    bool quads = false;
#pragma unroll
    for (int p = 0; p < kMostAdapters; ++p) {
      const AdapterPlace& place = places.of[p];
      if (p >= places.count || column < place.offset) continue;
      const int at = column - place.offset;
      scale = place.scale;
      left = place.rank - at;
      z = place.to + row * place.rank + at;
      quads = wide && place.rank % 4 == 0;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] *= scale;
    store_row(packed + row * places.ranks + column, v);
    if (!keeps || left <= 0) return;
    const float r = row_scale ? row_scale[row] : 1.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] *= r;
    if (quads) {
      store_floats(z, v);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < left) z[i] = v[i];
    }
  }
};

// A block of lora_ranks_kernel: so many rows and columns at a time, so many ranks.
constexpr int kRankRows = 256, kRankColumns = 64, kRanksAtOnce = 32, kRankThreads = 256;
// What of x and w, of two slices, and of z lies in shared memory.
constexpr int kRankSlice = (kRankRows + kRanksAtOnce) * kRankColumns * 2;
constexpr int lora_ranks_shared(bool backward) {
  return 2 * kRankSlice + (backward ? kRankRows * kRanksAtOnce * 2 : 0);
}

// All adapters' z = x a^T, or, backward, dz = x b and with the same reading of x = dy the shares of
// dB = x^T z. x (n, width) bf16, of ldx; w: a (ranks, width), or b (width, ranks); z (n, ranks) bf16,
// backward. Block (s, g, p) has ranks 32 g .. of `rows` rows from p rows on, a multiple of 256, and columns
// of `tiles` tiles of 64 from s tiles on; 256 rows at a time. Of those, warp w sums 32 rows of z, and of each
// tile of 64 columns 16 columns and 16 ranks of dB over all rows.
// z: a block leaves its sums in `sums` (gridDim.x, n, ranks), and the last of the blocks that share rows and
// ranks adds them up in order of columns and hands them to `to`: deterministic, whichever is last. dB: a
// piece's share, over its rows in order, goes to `parts` (gridDim.z, ranks, width), where an adapter is;
// columns that no adapter of these ranks gives are not read. lora_sum_kernel adds the shares up.
// Two slices in shared memory, the next one under way by cp.async, one barrier each. width and ldx are
// multiples of 8, addresses of 16 bytes. Which rows and columns a block sums depends on width alone for z,
// and on n and width for dB. Traffic: x once for 32 ranks, w once for 256 rows; sums written and read once,
// parts written once for each piece (again for every further 256 rows of it).
template <bool kBackward>
__global__ __launch_bounds__(kRankThreads, 2) void lora_ranks_kernel(
    const LoraRows to, const __nv_bfloat16* __restrict__ x, int64_t ldx, const __nv_bfloat16* __restrict__ w,
    const __nv_bfloat16* __restrict__ z, int64_t n, int64_t width, int64_t rows, int tiles,
    float* __restrict__ sums, float* __restrict__ parts, unsigned* __restrict__ arrivals) {
  constexpr int kAcross = kRankColumns / 8, kAcrossRanks = kRanksAtOnce / 8;  // pieces of 16 bytes
  constexpr int kPass = kRankThreads / kAcross, kBytesX = kRankRows * kRankColumns * 2;
  constexpr int kWarpRows = kRankRows * kWarp / kRankThreads;
  static_assert(kRanksAtOnce * kAcross == kRankThreads && kRankColumns * kAcrossRanks == kRankThreads);
  static_assert(kRankColumns == 64 && kRanksAtOnce == 32 && kRankThreads == 8 * kWarp && kWarpRows == 32);
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t base = shared_address(shared), of_z = base + 2 * kRankSlice;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const AdapterPlaces& places = to.places;
  const int ranks = places.ranks, rank0 = blockIdx.y * kRanksAtOnce;
  const int64_t begin = blockIdx.z * rows, end = min(begin + rows, n);
  const int all_tiles = static_cast<int>((width + kRankColumns - 1) / kRankColumns);
  const int first_tile = blockIdx.x * tiles, last_tile = min(first_tile + tiles, all_tiles);

  // From `tile` on the first that has outputs of these ranks' adapters.
  const auto reached = [&](int tile) {
    if constexpr (kBackward) {
      for (; tile < last_tile; ++tile) {
        const int64_t column0 = static_cast<int64_t>(tile) * kRankColumns;
        bool any = false;
#pragma unroll
        for (int p = 0; p < kMostAdapters; ++p) {
          const AdapterPlace& place = places.of[p];
          any |= p < places.count && place.offset < rank0 + kRanksAtOnce &&
                 place.offset + place.rank > rank0 && place.first < column0 + kRankColumns &&
                 place.first + place.outputs > column0;
        }
        if (any) break;
      }
    }
    return tile;
  };
  // The outputs that each rank of dB reaches.
  __shared__ int2 reach[kBackward ? kRanksAtOnce : 1];
  if constexpr (kBackward) {
    if (thread < kRanksAtOnce) {
      int2 of_rank = {};
#pragma unroll
      for (int p = 0; p < kMostAdapters; ++p) {
        const AdapterPlace& place = places.of[p];
        const int rank = rank0 + thread - place.offset;
        if (p < places.count && rank >= 0 && rank < place.rank)
          of_rank = {static_cast<int>(place.first), static_cast<int>(place.first + place.outputs)};
      }
      reach[thread] = of_rank;  // read after the next barrier
    }
  }

  // Of dB warps have 16 columns and 16 ranks each.
  const int share_column = warp % 4 * 16, share_rank = warp / 4 * 16;
  const int row_x = thread / kAcross, chunk_x = thread % kAcross;
  const auto copy = [&](int64_t row0, int tile, int buffer) {
    const uint32_t at = base + buffer * kRankSlice;
    const int64_t column0 = static_cast<int64_t>(tile) * kRankColumns;
    const bool inside = column0 + chunk_x * 8 < width;
    const int left = static_cast<int>(min(end - row0, static_cast<int64_t>(kRankRows)));
    const __nv_bfloat16* from = x + (row0 + row_x) * ldx + column0 + chunk_x * 8;
#pragma unroll
    for (int i = 0; i < kRankRows / kPass; ++i, from += kPass * ldx)
      copy_async(at + swizzled<kAcross>(row_x + i * kPass, chunk_x), from,
                 inside && row_x + i * kPass < left);
    if constexpr (kBackward) {  // (column, rank)
      const int64_t column = column0 + thread / kAcrossRanks;
      const int rank = rank0 + thread % kAcrossRanks * 8;
      copy_async(at + kBytesX + swizzled<kAcrossRanks>(thread / kAcrossRanks, thread % kAcrossRanks),
                 w + column * ranks + rank, column < width && rank < ranks);
    } else {  // (rank, column)
      copy_async(at + kBytesX + swizzled<kAcross>(row_x, chunk_x),
                 w + (rank0 + row_x) * width + column0 + chunk_x * 8, inside && rank0 + row_x < ranks);
    }
  };

  __shared__ bool last;
#pragma unroll 1
  for (int64_t row0 = begin; row0 < end; row0 += kRankRows) {
    float sum[2][4][4] = {};  // of 16 rows, of 8 ranks
    int tile = reached(first_tile), buffer = 0;
    if constexpr (kBackward) {
#pragma unroll
      for (int i = 0; i < kAcrossRanks; ++i) {
        const int row = (thread + i * kRankThreads) / kAcrossRanks, chunk = thread % kAcrossRanks;
        copy_async(of_z + swizzled<kAcrossRanks>(row, chunk), z + (row0 + row) * ranks + rank0 + chunk * 8,
                   row0 + row < end && rank0 + chunk * 8 < ranks);
      }
    }
    if (tile < last_tile) copy(row0, tile, buffer);
    copy_commit();
    const bool any_rows = row0 + warp * kWarpRows < end;
#pragma unroll 1
    while (tile < last_tile) {
      copy_wait<0>();
      __syncthreads();  // and all have left the buffer that is written next
      const int next = reached(tile + 1);
      if (next < last_tile) copy(row0, next, buffer ^ 1);
      copy_commit();
      const uint32_t at_x = base + buffer * kRankSlice, at_w = at_x + kBytesX;
      if (any_rows) {
#pragma unroll
        for (int k = 0; k < kRankColumns; k += 16) {
          uint32_t of_w[2][4];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            if constexpr (kBackward)
              load_matrices_transposed(of_w[j],
                                       at_w + swizzled<kAcrossRanks>(k + lane % 16, 2 * j + lane / 16));
            else
              load_matrices(
                  of_w[j], at_w + swizzled<kAcross>(16 * j + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
          }
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            uint32_t of_x[4];
            load_matrices(of_x,
                          at_x + swizzled<kAcross>(warp * kWarpRows + 16 * i + lane % 16, k / 8 + lane / 16));
#pragma unroll
            for (int j = 0; j < 4; ++j)
              multiply_add(sum[i][j], of_x, of_w[j / 2][j % 2 * 2], of_w[j / 2][j % 2 * 2 + 1]);
          }
        }
      }
      if constexpr (kBackward) {
        if (rank0 + share_rank < ranks) {
          float share[2][4] = {};  // of 16 ranks, of 8 columns
#pragma unroll 4
          for (int k = 0; k < kRankRows; k += 16) {
            uint32_t of_x[4], of_ranks[4];
            load_matrices_transposed(of_x,
                                     at_x + swizzled<kAcross>(k + lane % 16, share_column / 8 + lane / 16));
            load_matrices_transposed(
                of_ranks,  // z^T: as it lies, rows are k
                of_z + swizzled<kAcrossRanks>(k + lane % 8 + lane / 16 * 8, share_rank / 8 + lane / 8 % 2));
#pragma unroll
            for (int j = 0; j < 2; ++j) multiply_add(share[j], of_ranks, of_x[2 * j], of_x[2 * j + 1]);
          }
          const int column0 = tile * kRankColumns + share_column + lane % 4 * 2;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int rank = share_rank + h * 8 + lane / 4;
            const int2 of_rank = reach[rank];
            float* const mine = parts + (static_cast<int64_t>(blockIdx.z) * ranks + rank0 + rank) * width;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int column = column0 + j / 2 * 8 + j % 2;
              if (column < of_rank.x || column >= of_rank.y) continue;
              const float v = share[j / 2][2 * h + j % 2];
              mine[column] = row0 == begin ? v : mine[column] + v;
            }
          }
        }
      }
      tile = next;
      buffer ^= 1;
    }

    float* const mine = sums + (blockIdx.x * n + row0) * ranks + rank0;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = warp * kWarpRows + i * 16 + h * 8 + lane / 4;
        if (row0 + row >= end) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int rank = j * 8 + lane % 4 * 2;
          if (rank0 + rank < ranks)
            store_vector(mine + row * ranks + rank, Vector<float, 2>{sum[i][j][2 * h], sum[i][j][2 * h + 1]});
        }
      }
    unsigned* const arrived = arrivals + blockIdx.y * ((n + kRankRows - 1) / kRankRows) + row0 / kRankRows;
    __threadfence();
    __syncthreads();
    if (thread == 0) last = atomicAdd(arrived, 1u) + 1 == gridDim.x;
    __syncthreads();
    if (!last) continue;
    __threadfence();
#pragma unroll 1
    for (int i = thread; i < kRankRows * kRanksAtOnce / 4; i += kRankThreads) {
      const int64_t row = row0 + i / (kRanksAtOnce / 4);
      const int rank = rank0 + i % (kRanksAtOnce / 4) * 4;
      if (row >= end || rank >= ranks) continue;
      float total[4] = {};
#pragma unroll 4
      for (unsigned s = 0; s < gridDim.x; ++s) {
        const float4 v = __ldcg(reinterpret_cast<const float4*>(sums + (s * n + row) * ranks + rank));
        total[0] += v.x;
        total[1] += v.y;
        total[2] += v.z;
        total[3] += v.w;
      }
      to.store(row, rank, total);
    }
    if (thread == 0) *arrived = 0;
  }
}

// A block of lora_gradient_kernel: so many ranks and columns, so many rows at a time.
constexpr int kGradientRanks = 32, kGradientColumns = 64, kGradientDepth = 32, kGradientThreads = 128;

// Shares of dA: sums over a piece's rows of u[row, rank] * v[row, column] * rstd[row], left in `parts`
// (gridDim.z, ranks, columns), which lora_sum_kernel adds up. u = dz (n, ranks) is bf16, v (n, columns) f32
// (of a norm), bf16 or f16; rstd may be null; v * rstd is rounded once to bf16. A block owns 64 columns and
// 32 ranks of `rows` rows, warp w 16 columns. Two buffers of 32 rows in shared memory, one barrier each.
// columns is a multiple of 8, v and u of 16 bytes. grid: columns / 64, ranks / 32, pieces of `rows` rows, a
// multiple of 32. Traffic: v read once each 32 ranks, u once each 64 columns, parts written once. No two
// threads meet: deterministic.
template <typename T>
__global__ __launch_bounds__(kGradientThreads, std::is_same_v<T, float> ? 7 : 8) void lora_gradient_kernel(
    const __nv_bfloat16* __restrict__ u, const T* __restrict__ v, const float* __restrict__ rstd, int ranks,
    int64_t n, int64_t columns, int64_t rows, float* __restrict__ parts) {
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

  const int64_t begin = blockIdx.z * rows, end = min(begin + rows, n);
  const int row_u = thread / kAcrossU, chunk_u = thread % kAcrossU;
  const int row_v = thread / kAcross, chunk_v = thread % kAcross;
  const bool inside_u = rank0 + chunk_u * 8 < ranks, inside_v = column0 + chunk_v * kVector < columns;
  const __nv_bfloat16* from_u = u + (begin + row_u) * ranks + rank0 + chunk_u * 8;
  const T* from_v = v + (begin + row_v) * columns + column0 + chunk_v * kVector;
  // What was read for the next slice.
  Vector<uint32_t, 4> next_u, next_v[kTimes];
  float scale[kTimes];
  const auto read = [&](int64_t row) {
    next_u = {};
    if (inside_u && row + row_u < end) next_u = load_words(from_u);
    from_u += kDepth * ranks;
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

  float* const mine = parts + (static_cast<int64_t>(blockIdx.z) * ranks + rank0) * columns + column0;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int column = warp * 16 + j * 8 + lane % 4 * 2;
      if (column0 + column >= columns) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int rank = i * 16 + h * 8 + lane / 4;
        if (rank0 + rank < ranks)
          store_vector(mine + rank * columns + column,
                       Vector<float, 2>{sum[i][j][2 * h], sum[i][j][2 * h + 1]});
      }
    }
}

// What lora_sum_kernel adds up: shares (pieces, ranks, columns) of dB, where outputs are columns, or of dA.
struct AdapterShares {
  const float* parts;
  int pieces;
  int64_t columns;
};
// db and da +=, da times gain (of_a.columns), which may be null. A thread owns four ranks of a column, of dB
// first, and adds their shares up in order of pieces: deterministic. Grid: a thread for ranks / 4 of all
// columns of both; no shared memory. Traffic: shares read once where an adapter is, gradients read and
// written once.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void lora_sum_kernel(const AdapterPlaces places,
                                                            const AdapterShares of_b,
                                                            const AdapterShares of_a,
                                                            const float* __restrict__ gain) {
  const int quads = places.ranks / 4;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool is_b = i < of_b.columns * quads;
  if (!is_b) i -= of_b.columns * quads;
  const int64_t columns = is_b ? of_b.columns : of_a.columns;
  if (i >= columns * quads) return;
  const int64_t column = i % columns;
  const int rank = static_cast<int>(i / columns) * 4;
  float* to = nullptr;
  int64_t stride = 0;
  int count = 0;
#pragma unroll
  for (int p = 0; p < kMostAdapters; ++p) {
    const AdapterPlace& place = places.of[p];
    const int r = rank - place.offset;
    if (p >= places.count || r < 0 || r >= place.rank) continue;
    const int64_t o = column - place.first;
    if (is_b && (o < 0 || o >= place.outputs)) continue;
    to = is_b ? place.db + o * place.rank + r : place.da + r * columns + column;
    stride = is_b ? 1 : columns;
    count = min(4, place.rank - r);
  }
  if (!to) return;
  const float* part = (is_b ? of_b.parts : of_a.parts) + rank * columns + column;
  const int64_t step = places.ranks * columns;
  const int pieces = is_b ? of_b.pieces : of_a.pieces;
  float total[4] = {};
#pragma unroll 4
  for (int s = 0; s < pieces; ++s, part += step)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) total[j] += part[j * columns];
  const float factor = !is_b && gain ? gain[column] : 1.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < count) to[j * stride] += total[j] * factor;
}

}  // namespace gantrain::cuda
