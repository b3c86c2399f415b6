// Matrix products on the tensor cores, bf16 in and f32 sums, with what follows the product fused into the
// kernel's end: cuda/kernels/matmul_epilogue.cuh and docs/kernels/matmul.md.
#pragma once

#include "cuda/device/async_copy.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/parts.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/swizzle.cuh"

namespace gantrain::cuda {

// What a block owns: a kRows x kCols tile of the product, kDepth of k at a time, by kWarpsM x kWarpsN warps;
// kStages slices of both operands in shared memory, kBlocks blocks wanted on a multiprocessor.
template <int kRows_, int kCols_, int kDepth_, int kWarpsM_, int kWarpsN_, int kStages_, int kBlocks_>
struct MatmulTile {
  static constexpr int kRows = kRows_, kCols = kCols_, kDepth = kDepth_, kStages = kStages_,
                       kBlocks = kBlocks_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kWarpRows = kRows / kWarpsM, kWarpCols = kCols / kWarpsN;
  static constexpr int kBytesA = kRows * kDepth * 2, kBytesB = kCols * kDepth * 2;
  static constexpr int kStageBytes = kBytesA + kBytesB, kSharedBytes = kStages * kStageBytes;
  // Whether a product may have more of k. Two warps of 64 x 64 have no registers left for it: with half as
  // many threads each copies twice as many pieces of a slice.
  static constexpr bool kMore = kWarpsM * kWarpsN > 2 || kWarpRows < 64;
  static_assert(kWarpRows % 16 == 0 && kWarpCols % 16 == 0 && kDepth % 32 == 0);
};
// 64 x 64 a warp in the tiles for many rows: four mma for each ldmatrix. The last is for decoding, where the
// weights are read once and little is computed: small tiles, many bytes under way.
using LargeMatmulTile = MatmulTile<128, 128, 32, 2, 2, 3, 2>;
using MediumMatmulTile = MatmulTile<64, 128, 32, 1, 2, 3, 4>;
using NarrowMatmulTile = MatmulTile<128, 64, 32, 2, 1, 3, 4>;  // for columns that are no multiple of 128
using SmallMatmulTile = MatmulTile<16, 32, 64, 1, 2, 6, 4>;
constexpr int kMatmulGroup =
    8;  // rows of tiles that run side by side, so that the second-level cache keeps their B

// In which order the columns of the product lie in a tile, for B (n, k), whose rows may be taken in any
// order. An mma leaves lane q of four with columns 2q, 2q + 1 of each group of 8. So that a lane owns 2 *
// kGroups neighbours, column (group t, 2q + e) of kGroups groups is column 2 kGroups q + 2t + e of them.
// Paired: halves of heads of 2 * half columns, as RoPE and SwiGLU take them: e is the half, and kGroups
// groups give a lane kGroups neighbouring pairs.
template <bool kPaired, int kGroups>
__device__ inline int64_t column_of(int64_t first, int at, int64_t half) {
  const int group = at / 8, q = at % 8 / 2, e = at % 2;
  if constexpr (!kPaired)
    return first + group / kGroups * 8 * kGroups + 2 * kGroups * q + 2 * (group % kGroups) + e;
  const int64_t pair = first / 2 + group / kGroups * 4 * kGroups + kGroups * q + group % kGroups;
  return pair / half * 2 * half + pair % half + e * half;
}

// Of 16 columns, lane q of four has 2q, 2q + 1 of both groups of 8, in v[at ..]; afterwards 4q .. 4q + 3.
template <int kCount>
__device__ inline void gather_quad(float (&v)[kCount], int at) {
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int i = at; i < at + 2; ++i) {
    const float other = __shfl_xor_sync(kAllLanes, q < 2 ? v[2 + i] : v[i], 2);
    // Now lanes 0, 1 hold columns 2q and 2q + 4, lanes 2, 3 columns 2q + 4 and 2q + 8 of 16.
    float low = q < 2 ? v[i] : other, high = q < 2 ? other : v[2 + i];
    const float swapped = __shfl_xor_sync(kAllLanes, q % 2 ? low : high, 1);
    v[i] = q % 2 ? swapped : low;
    v[2 + i] = q % 2 ? high : swapped;
  }
}

// Of 32 columns, lane q of four has 2q, 2q + 1 of each of four groups of 8; afterwards group q: pairs are
// transposed among the four lanes.
__device__ inline void gather_eight(float (&v)[8]) {
  const bool high = threadIdx.x / 2 % 2, odd = threadIdx.x % 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float other = __shfl_xor_sync(kAllLanes, high ? v[i] : v[4 + i], 2);
    v[i] = high ? other : v[i];
    v[4 + i] = high ? v[4 + i] : other;
  }
#pragma unroll
  for (int half = 0; half < 8; half += 4)
#pragma unroll
    for (int i = half; i < half + 2; ++i) {
      const float other = __shfl_xor_sync(kAllLanes, odd ? v[i] : v[2 + i], 1);
      v[i] = odd ? other : v[i];
      v[2 + i] = odd ? v[2 + i] : other;
    }
}

// More of k: a second A (m, k) and a second B, that lie like the first ones; k 0: none.
struct MoreOfK {
  const __nv_bfloat16 *a, *b;
  int64_t lda, ldb;
  int k;
};

// C (m, n) = A (m, k) B, then `epilogue`; B is (n, k) with kTransposeB, else (k, n), all row-major bf16. k,
// lda, ldb and, without kTransposeB, n are multiples of 8; both addresses of 16. `more` goes on where k ends:
// C = [A, more.a] [B; more.b], in whole slices of each, where Tile::kMore. A block owns one tile of C;
// its threads copy slices of A and B into shared memory kStages - 1 ahead, one barrier a slice. Rows and
// columns outside are copies of the last one, or zeros, and never stored; past k both are zero. k is summed
// in steps of 16 in order, whatever the tile: deterministic, and a row's bits depend on neither m nor the
// tile. Traffic a block: k (kRows + kCols) bf16 read. grid: tiles, kMatmulGroup rows of tiles at a time;
// shared memory Tile::kSharedBytes. Epilogue: cuda/kernels/matmul_epilogue.cuh; a lane has 8 neighbours or
// two quads (Small: 4 neighbours), or 8 pairs (2).
template <typename Tile, bool kTransposeB, typename Epilogue>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void matmul_tensor_kernel(
    const __nv_bfloat16* __restrict__ a, int64_t lda, const __nv_bfloat16* __restrict__ b, int64_t ldb,
    int64_t m, int64_t n, int64_t k, const MoreOfK more, const Epilogue epilogue) {
  constexpr bool kPaired = Epilogue::kPaired;
  static_assert(kTransposeB || !kPaired);
  constexpr int kDepth = Tile::kDepth, kSteps = kDepth / 16, kStages = Tile::kStages,
                kThreads = Tile::kThreads;
  constexpr int kChunksA = kDepth / 8, kChunksB = kTransposeB ? kDepth / 8 : Tile::kCols / 8;
  constexpr int kRowsB = kTransposeB ? Tile::kCols : kDepth;  // of a slice as it lies
  // Eight rows at least are copied at once, so that what a thread copies next lies a fixed distance further.
  constexpr int kAcrossB = kChunksB < kThreads / 8 ? kChunksB : kThreads / 8;
  constexpr int kPassA = kThreads / kChunksA, kPassB = kThreads / kAcrossB;
  constexpr int kCopiesA = Tile::kRows / kPassA, kCopiesB = kRowsB / kPassB, kTimesB = kChunksB / kAcrossB;
  constexpr int kTilesM = Tile::kWarpRows / 16,
                kTilesN = Tile::kWarpCols / 16;  // of a warp; a lane's B is 16 wide
  // Of 8 columns, that give a lane its neighbours: see column_of; and that are handed over at once.
  constexpr bool kTwoQuads = Epilogue::kQuads && kTilesN >= 2;
  constexpr int kGroups = kTilesN < 2 || kTwoQuads ? 2 : kPaired ? 8 : 4, kStep = kTwoQuads ? 4 : kGroups;
  static_assert(2 * kTilesN % kStep == 0 && !(kPaired && Epilogue::kQuads));
  static_assert(kPassA % 8 == 0 && kPassB % 8 == 0 && (kTimesB == 1 || kAcrossB % 8 == 0));
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t shared_a = shared_address(shared), shared_b = shared_a + Tile::kBytesA;

  // Which tile: kMatmulGroup rows of tiles first, down before across.
  const uint32_t rows = static_cast<uint32_t>((m + Tile::kRows - 1) / Tile::kRows),
                 cols = static_cast<uint32_t>((n + Tile::kCols - 1) / Tile::kCols);
  const uint32_t group = blockIdx.x / (kMatmulGroup * cols), within = blockIdx.x % (kMatmulGroup * cols);
  const uint32_t in_group = min(rows - group * kMatmulGroup, static_cast<uint32_t>(kMatmulGroup));
  const int64_t row0 = static_cast<int64_t>(group * kMatmulGroup + within % in_group) * Tile::kRows,
                col0 = static_cast<int64_t>(within / in_group) * Tile::kCols;

  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int warp_row = warp / Tile::kWarpsN * Tile::kWarpRows,
            warp_col = warp % Tile::kWarpsN * Tile::kWarpCols;

  // Where this thread's copies come from, and go to in the first slice.
  const __nv_bfloat16 *from_a[kCopiesA], *from_b[kCopiesB];
  const int chunk_a = thread % kChunksA, chunk_b = thread % kAcrossB;
  const int first_a = thread / kChunksA, first_b = thread / kAcrossB;
  const uint32_t to_a = shared_a + swizzled<kChunksA>(first_a, chunk_a),
                 to_b = shared_b + swizzled<kChunksB>(first_b, chunk_b);
  int left, left_b[kTimesB];  // of k, from the slice that is copied next; none in columns past n
  int64_t step_b;             // from a slice of B to the next
  const auto copy_from = [&](const __nv_bfloat16* whole_a, int64_t stride_a, const __nv_bfloat16* whole_b,
                             int64_t stride_b, int depth) {
    int64_t half = 0;
    if constexpr (kPaired) half = epilogue.half;
#pragma unroll
    for (int i = 0; i < kCopiesA; ++i)
      from_a[i] = whole_a + min(row0 + first_a + i * kPassA, m - 1) * stride_a + chunk_a * 8;
#pragma unroll
    for (int i = 0; i < kCopiesB; ++i) {
      const int row = first_b + i * kPassB;
      if constexpr (kTransposeB)
        from_b[i] =
            whole_b + min(column_of<kPaired, kGroups>(col0, row, half), n - 1) * stride_b + chunk_b * 8;
      else
        from_b[i] = whole_b + row * stride_b + col0 + chunk_b * 8;
    }
    step_b = kTransposeB ? kDepth : kDepth * stride_b;
    left = depth;
#pragma unroll
    for (int j = 0; j < kTimesB; ++j) left_b[j] = col0 + (chunk_b + j * kAcrossB) * 8 < n ? left : 0;
  };
  copy_from(a, lda, b, ldb, static_cast<int>(k));
  // Also of slices past k, as zeros and without reading: inside a condition the compiler would work out
  // again, in each turn of the loop, whatever is used there alone, and the loop below would be longer by up
  // to a quarter.
  const auto copy_slice = [&](uint32_t stage) {
#pragma unroll
    for (int i = 0; i < kCopiesA; ++i) {
      copy_async(to_a + stage + i * kPassA * kChunksA * 16, from_a[i], chunk_a * 8 < left);
      from_a[i] += kDepth;
    }
#pragma unroll
    for (int i = 0; i < kCopiesB; ++i) {
#pragma unroll
      for (int j = 0; j < kTimesB; ++j)
        copy_async(to_b + stage + (i * kPassB * kChunksB + j * kAcrossB) * 16, from_b[i] + j * kAcrossB * 8,
                   kTransposeB ? chunk_b * 8 < left : first_b + i * kPassB < left_b[j]);
      from_b[i] += step_b;
    }
    left -= kDepth;
#pragma unroll
    for (int j = 0; j < kTimesB; ++j) left_b[j] -= kTransposeB ? 0 : kDepth;
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    copy_slice(s * Tile::kStageBytes);
    copy_commit();
  }

  // Where this lane's fragments lie in the first slice.
  uint32_t at_a[kSteps], at_b[kTransposeB ? kSteps : kTilesN];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    at_a[s] = shared_a + swizzled<kChunksA>(warp_row + lane % 16, 2 * s + lane / 16);
  if constexpr (kTransposeB) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      at_b[s] = shared_b + swizzled<kChunksB>(warp_col + lane % 8 + lane / 16 * 8, 2 * s + lane / 8 % 2);
  } else {
#pragma unroll
    for (int j = 0; j < kTilesN; ++j)
      at_b[j] = shared_b + swizzled<kChunksB>(lane % 16, warp_col / 8 + 2 * j + lane / 16);
  }
  uint32_t part_a[2][kTilesM][4], part_b[2][kTilesN][4];
  const auto load_parts = [&](int buffer, uint32_t stage, int step) {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
      load_matrices(part_a[buffer][i], at_a[step] + stage + i * 16 * kChunksA * 16);
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
      if constexpr (kTransposeB)
        load_matrices(part_b[buffer][j], at_b[step] + stage + j * 16 * kChunksB * 16);
      else
        load_matrices_transposed(part_b[buffer][j], at_b[j] + stage + step * 16 * kChunksB * 16);
    }
  };

  float sum[kTilesM][2 * kTilesN][4] = {};
  copy_wait<kStages - 2>();
  __syncthreads();
  load_parts(0, 0, 0);
  const auto following = [](uint32_t stage) {
    return stage == (kStages - 1) * Tile::kStageBytes ? 0 : stage + Tile::kStageBytes;
  };
  uint32_t stage = 0, to_stage = (kStages - 1) * Tile::kStageBytes;  // bytes from the first slice's place
  // Copies are kStages - 1 slices ahead: those of `more` begin so long before its slices do.
  int slices = static_cast<int>((k + kDepth - 1) / kDepth), until = slices, slice = 0;
  if (Tile::kMore && more.k > 0) {
    until = max(slices - (kStages - 1), 0);  // with zeros behind k, where it is so short
    slices = until + kStages - 1 + (more.k + kDepth - 1) / kDepth;
  }
#pragma unroll 1
  for (bool of_more = !Tile::kMore || more.k == 0;; of_more = true) {
#pragma unroll 1
    for (; slice < until; ++slice) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t next = stage;
        if (step == kSteps - 1) {  // the next slice has come, and all have left the one before this
          copy_wait<kStages - 2>();
          __syncthreads();
          next = following(stage);
        }
        load_parts((step + 1) % 2, next, (step + 1) % kSteps);
        if (step == 0) {
          copy_slice(to_stage);
          copy_commit();
          to_stage = following(to_stage);
        }
#pragma unroll
        for (int i = 0; i < kTilesM; ++i)
#pragma unroll
          for (int j = 0; j < 2 * kTilesN; ++j)
            multiply_add(sum[i][j], part_a[step % 2][i], part_b[step % 2][j / 2][j % 2 * 2],
                         part_b[step % 2][j / 2][j % 2 * 2 + 1]);
        stage = next;
      }
    }
    if (!Tile::kMore || of_more) break;
    copy_from(more.a, more.lda, more.b, more.ldb, more.k);
    until = slices;
  }
  copy_wait<0>();  // nothing that lies past k is under way when the block ends

#pragma unroll
  for (int i = 0; i < kTilesM; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = row0 + warp_row + i * 16 + h * 8 + lane / 4;
      if constexpr (kPaired) {
#pragma unroll
        for (int j = 0; j < 2 * kTilesN; j += kGroups) {
          float first[kGroups], second[kGroups];
#pragma unroll
          for (int t = 0; t < kGroups; ++t) {
            first[t] = sum[i][j + t][2 * h];
            second[t] = sum[i][j + t][2 * h + 1];
          }
          const int64_t pair = (col0 + warp_col + j * 8) / 2 + lane % 4 * kGroups;
          epilogue.store(row, pair, first, second, row < m);
        }
      } else {
        float part = 0;
        const auto of_row = epilogue.of_row(row, row < m);
#pragma unroll
        for (int j = 0; j < 2 * kTilesN; j += kStep) {
          float v[2 * kStep];
#pragma unroll
          for (int t = 0; t < kStep; ++t) {
            v[2 * t] = sum[i][j + t][2 * h];
            v[2 * t + 1] = sum[i][j + t][2 * h + 1];
          }
          if constexpr (!kTransposeB) {
            if constexpr (kGroups == 2) {
              gather_quad(v, 0);
              if constexpr (kTwoQuads) gather_quad(v, 4);
            } else {
              gather_eight(v);
            }
          }
          const int64_t column = col0 + warp_col + j * 8 + lane % 4 * 2 * kGroups;
          if constexpr (Epilogue::kSums) {
            const float more = epilogue.store(row, column, v, row < m, of_row);
            part = j == 0 ? more : part + more;
          } else {
            epilogue.store(row, column, v, row < m, of_row);
          }
        }
        if constexpr (Epilogue::kSums)
          if (epilogue.sums.to && lane % 4 == 0 && row < m && col0 + warp_col < n)
            epilogue.sums.parts[(col0 + warp_col) / Tile::kWarpCols * parts_stride(m) + row] = part;
      }
    }

  if constexpr (Epilogue::kSums) {
    static_assert(Tile::kWarpCols == kPartWidth || Tile::kWarpCols == kSmallPartWidth);
    if (!epilogue.sums.to) return;
    __shared__ bool last;  // of the tiles of these rows
    unsigned* const arrivals = epilogue.sums.arrivals + row0 / Tile::kRows;
    __threadfence();
    __syncthreads();
    if (thread == 0) last = atomicAdd(arrivals, 1u) + 1 == cols;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int r = thread; r < Tile::kRows && row0 + r < m; r += kThreads)
      finish_row<Tile::kWarpCols>(epilogue.sums, row0 + r, m, n);
    if (thread == 0) *arrivals = 0;
  }
}

}  // namespace gantrain::cuda
