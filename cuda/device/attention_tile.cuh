// Tiles of rows in shared memory for attention on tensor cores: copied, read as fragments, and written back.
// A tile of bf16 rows of kD values keeps 16-byte piece c of row r at piece c ^ (r % 8), so that the eight
// rows of an 8 x 8 matrix lie in different banks. Tiles begin at multiples of 256 bytes, so that a step along
// a row is an xor of the address with a constant, and a step of eight rows or more an offset that the
// instruction holds.
#pragma once

#include "cuda/device/async_copy.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/quads.cuh"
#include "cuda/device/rotary.cuh"

namespace gantrain::cuda {

constexpr float kLog2E = 1.44269504088896341f;

// 2^x, one instruction; results below 2^-126 are 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same value, of which the compiler does not know where it comes from: it stays in its register through a
// loop instead of being computed again there.
__device__ inline uint32_t opaque(uint32_t x) { return __shfl_sync(kAllLanes, x, threadIdx.x % kWarp); }

// The address of row `index` of rows of `bytes` bytes from `base` on, one instruction; and one `bytes` away
// from another.
__device__ inline const void* row_address(const void* base, int index, int bytes) {
  uint64_t at;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(at) : "r"(index), "r"(bytes), "l"(base));
  return reinterpret_cast<const void*>(at);
}
__device__ inline const void* away(const void* from, int64_t bytes) {
  return reinterpret_cast<const void*>(reinterpret_cast<int64_t>(from) + bytes);
}
__device__ inline int64_t distance(const void* from, const void* to) {
  return reinterpret_cast<int64_t>(to) - reinterpret_cast<int64_t>(from);
}
// Four values of shared memory; the address is a multiple of 16.
__device__ inline void load_shared(float (&x)[4], uint32_t at) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(at)
               : "memory");
}

template <int kD>
constexpr int kRowBytes = 2 * kD;

// Where 16-byte piece `piece` of row `row` lies from the tile's beginning.
template <int kD>
__device__ inline uint32_t piece_offset(int row, int piece) {
  return static_cast<uint32_t>(row * kRowBytes<kD> + (piece ^ (row & 7)) * 16);
}

// How a group of kThreads threads copies tiles of kRows rows: a thread copies one piece of kPasses rows that
// follow each other, so that their places are read at once.
template <int kD, int kRows, int kThreads>
struct TileCopy {
  static constexpr int kPieces = kD / 8, kPasses = kRows * kPieces / kThreads;
  static_assert(kPasses >= 1 && kPasses <= 8 && (kPasses & (kPasses - 1)) == 0);
  int row, piece;  // the thread's first row, and its piece
  uint32_t at;     // of the first row's piece
  __device__ explicit TileCopy(int thread)
      : row(thread / kPieces * kPasses), piece(thread % kPieces), at(piece_offset<kD>(row, piece)) {}
  // The place of row `row + i` in a tile.
  __device__ uint32_t to(uint32_t tile, int i) const {
    return ((tile + at) ^ static_cast<uint32_t>(i * 16)) + static_cast<uint32_t>(i * kRowBytes<kD>);
  }
};
// Starts copying rows [0, count) of a tile, the rest zeros: row(r) is the place of row r in units of kD.
template <int kD, int kRows, int kThreads, typename Row>
__device__ inline void copy_rows(uint32_t tile, const __nv_bfloat16* from, int thread, int count, Row row) {
  const TileCopy<kD, kRows, kThreads> copy(thread);
#pragma unroll
  for (int i = 0; i < copy.kPasses; ++i) {
    const int r = copy.row + i;
    const bool valid = r < count;
    copy_async(copy.to(tile, i), from + (valid ? row(r) : 0) * kD + copy.piece * 8, valid);
  }
}

// Where a lane reads: fragments of A of rows [0, 16), and of B where the product runs down the rows of a
// tile.
template <int kD>
__device__ inline uint32_t down_offset() {
  const int lane = threadIdx.x % kWarp;
  return piece_offset<kD>(lane % 16, lane / 16);
}
// Fragments of B where the product runs along the rows of a tile.
template <int kD>
__device__ inline uint32_t along_offset() {
  const int lane = threadIdx.x % kWarp;
  return piece_offset<kD>(lane % 8 + 8 * (lane / 16), lane / 8 % 2);
}

// The fragment of A of k-step `step`, 16 columns; at = tile + first row + down_offset.
__device__ inline void load_a(uint32_t (&a)[4], uint32_t at, int step) {
  load_matrices(a, at ^ static_cast<uint32_t>(step * 32));
}
// acc (16, kN) = c + A (16, 16) B^T, B being 16 columns of a tile of kN rows; at = tile + along_offset. c(j)
// gives the start of columns 8 j .. 8 j + 7.
template <int kD, int kN, typename Start>
__device__ inline void multiply_rows(float (&acc)[kN / 8][4], const uint32_t (&a)[4], uint32_t at, int step,
                                     Start c) {
  const uint32_t from = at ^ static_cast<uint32_t>(step * 32);
#pragma unroll
  for (int j = 0; j < kN / 16; ++j) {
    uint32_t b[4];
    load_matrices(b, from + static_cast<uint32_t>(j * 16 * kRowBytes<kD>));
    multiply_add(acc[2 * j], a, b[0], b[1], c(2 * j));
    multiply_add(acc[2 * j + 1], a, b[2], b[3], c(2 * j + 1));
  }
}
// The same, added to what is there.
template <int kD, int kN>
__device__ inline void multiply_rows(float (&acc)[kN / 8][4], const uint32_t (&a)[4], uint32_t at, int step) {
  multiply_rows<kD, kN>(acc, a, at, step, [&](int j) -> const float(&)[4] { return acc[j]; });
}
// acc (16, kD) += P (16, kN) B with B a tile of kN rows, of which the first `groups` of 16 count; P is what
// multiply_rows left, rounded to bf16; at = tile + down_offset.
template <int kD, int kN>
__device__ inline void multiply_columns(float (&acc)[kD / 8][4], const float (&p)[kN / 8][4], uint32_t at,
                                        int groups = kN / 16) {
#pragma unroll
  for (int j = 0; j < kN / 16; ++j) {
    if (j >= groups) break;
    const uint32_t a[4] = {pack_bf16(p[2 * j][0], p[2 * j][1]), pack_bf16(p[2 * j][2], p[2 * j][3]),
                           pack_bf16(p[2 * j + 1][0], p[2 * j + 1][1]),
                           pack_bf16(p[2 * j + 1][2], p[2 * j + 1][3])};
#pragma unroll
    for (int t = 0; t < kD / 16; ++t) {
      uint32_t b[4];
      load_matrices_transposed(
          b, (at ^ static_cast<uint32_t>(t * 32)) + static_cast<uint32_t>(j * 16 * kRowBytes<kD>));
      multiply_add(acc[2 * t], a, b[0], b[1]);
      multiply_add(acc[2 * t + 1], a, b[2], b[3]);
    }
  }
}
// Writes a warp's rows [row0, row0 + 16) of factor * acc through the tile (whose own 16 rows are free) in
// 16-byte stores. factor[i] belongs to rows lane / 4 + 8 i; to(r): where row r < rows goes.
template <int kD, typename To>
__device__ inline void store_rows(const float (&acc)[kD / 8][4], const float (&factor)[2], char* shared,
                                  int row0, int rows, To to) {
  constexpr int kPieces = kD / 8;
  const int lane = threadIdx.x % kWarp, group = lane / 4, pair = lane % 4;
  __syncwarp();  // the other lanes have read what lay here
#pragma unroll
  for (int t = 0; t < kPieces; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t at = piece_offset<kD>(row0 + group + 8 * i, t) + 4 * pair;
      *reinterpret_cast<uint32_t*>(shared + at) =
          pack_bf16(acc[t][2 * i] * factor[i], acc[t][2 * i + 1] * factor[i]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16 * kPieces / kWarp; ++i) {
    const int at = i * kWarp + lane, r = row0 + at / kPieces, piece = at % kPieces;
    if (r < rows)
      *reinterpret_cast<int4*>(to(r) + piece * 8) =
          *reinterpret_cast<const int4*>(shared + piece_offset<kD>(r, piece));
  }
}

// Of acc's rows lane / 4 + 8 i, the lane's columns times those of rows [row0, row0 + 16) of a tile, added to
// sum[i] in order.
template <int kD>
__device__ inline void add_row_products(const float (&acc)[kD / 8][4], const char* shared, int row0,
                                        float (&sum)[2]) {
  const int lane = threadIdx.x % kWarp, group = lane / 4, pair = lane % 4;
#pragma unroll
  for (int t = 0; t < kD / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t at = piece_offset<kD>(row0 + group + 8 * i, t) + 4 * pair;
      const float2 x = unpack_pair<__nv_bfloat16>(*reinterpret_cast<const uint32_t*>(shared + at));
      sum[i] = fmaf(acc[t][2 * i + 1], x.y, fmaf(acc[t][2 * i], x.x, sum[i]));
    }
  }
}
// Rotates row lane / 4 + 8 i of acc back by the angles of a row of the table: kD / 2 cosines, then sines.
template <int kD>
__device__ inline void rotate_back(float (&acc)[kD / 8][4], int i, const float* __restrict__ table) {
  table += 2 * (threadIdx.x % 4);
#pragma unroll
  for (int t = 0; t < kD / 16; ++t) {
    float cosine[2], sine[2];
    load_constant_floats(table + 8 * t, cosine);
    load_constant_floats(table + kD / 2 + 8 * t, sine);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float &a = acc[t][2 * i + e], &b = acc[t + kD / 16][2 * i + e];
      const RotatedPair pair = rotate(a, b, cosine[e], -sine[e]);
      a = pair.first;
      b = pair.second;
    }
  }
}

// The heads of one key head that a block takes: all, or a slice where they are more than its rows.
struct HeadSlice {
  int head, first, width;
};
__device__ inline HeadSlice head_slice(int y, int blocks, int heads, int kv_heads) {
  const int group = heads / kv_heads, slices = blocks / kv_heads, size = (group + slices - 1) / slices;
  const int head = y / slices, in_group = y % slices * size;
  return {head, head * group + in_group, min(size, group - in_group)};
}

// The online softmax of one tile of scores, two rows a lane: max is of this warp's rows so far, in base 2,
// and sum what this lane has added up of it; p = 2^(score * factor - max), and acc is scaled along. seen(row
// half, column) masks.
template <int kD, int kN, typename Seen>
__device__ inline void softmax_tile(float (&p)[kN / 8][4], float (&acc)[kD / 8][4], float (&max)[2],
                                    float (&sum)[2], float factor, Seen seen) {
  const int pair = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float m = max[i];
#pragma unroll
    for (int t = 0; t < kN / 8; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = p[t][2 * i + c];
        x = seen(i, 8 * t + pair + c) ? x * factor : -INFINITY;
        m = fmaxf(m, x);
      }
    }
    m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, 1));
    m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, 2));
    const float shift = m == -INFINITY ? 0.0f : m;  // nothing seen so far
    const float correction = exp2_fast(max[i] - shift);
    float total = 0;
#pragma unroll
    for (int t = 0; t < kN / 8; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = p[t][2 * i + c];
        x = exp2_fast(x - shift);
        total += x;
      }
    }
    sum[i] = sum[i] * correction + total;
    max[i] = m;
#pragma unroll
    for (int t = 0; t < kD / 8; ++t) {
      acc[t][2 * i] *= correction;
      acc[t][2 * i + 1] *= correction;
    }
  }
}
// Weights against the maximum of earlier tiles, which stays: nothing is rescaled. False, with sum as it was,
// where the sum becomes too large for that or no number: the caller then takes softmax_tile, from the scores
// again. Any shift gives the same quotient, so the bound only keeps f32 in range.
template <int kN>
__device__ inline bool softmax_tile_lazily(float (&p)[kN / 8][4], const float (&max)[2], float (&sum)[2],
                                           float factor) {
  constexpr float kMost = 4294967296.0f;  // 2^32; f32 holds 2^127
  float total[2] = {sum[0], sum[1]};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int t = 0; t < kN / 8; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = p[t][2 * i + c];
        x = exp2_fast(fmaf(x, factor, -max[i]));
        total[i] += x;
      }
    }
  }
  if (!__all_sync(kAllLanes, total[0] + total[1] <= kMost)) return false;
  sum[0] = total[0];
  sum[1] = total[1];
  return true;
}

}  // namespace gantrain::cuda
