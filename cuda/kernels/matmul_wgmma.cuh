// Matrix products on Hopper's tensor cores (wgmma, copies by the tensor memory accelerator), bf16 in and f32
// sums, with the same epilogues as cuda/kernels/matmul_tensor.cuh: docs/kernels/matmul.md. Code for
// compute_90a alone; elsewhere the kernel is a trap that nobody launches.
#pragma once

#include "cuda/device/mbarrier.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/parts.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/tma.cuh"
#include "cuda/device/wgmma.cuh"

namespace gantrain::cuda {

// What a block owns at a time: a kRows x kCols tile of the product, 64 of k at a time; each warpgroup of four
// warps multiplies 64 rows, one warp more copies. kStages slices of both operands in shared memory, kBlocks
// blocks on a multiprocessor.
template <int kRows_, int kCols_, int kStages_, int kBlocks_>
struct WgmmaTile {
  static constexpr int kRows = kRows_, kCols = kCols_, kDepth = 64, kStages = kStages_, kBlocks = kBlocks_;
  static constexpr int kGroups = kRows / 64, kWarps = 4 * kGroups;  // that multiply
  // 128 sums a thread and what is done with them need more registers than three warps on a quarter of the
  // multiprocessor can have each: then the copying warp becomes a warpgroup, which can give registers away.
  static constexpr bool kGivesRegisters = kCols > 192;
  static constexpr int kThreads = (kWarps + (kGivesRegisters ? 4 : 1)) * kWarp;
  static constexpr int kBytesA = kRows * kDepth * 2, kBytesB = kCols * kDepth * 2;
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static constexpr int kSharedBytes = kStages * kStageBytes;  // dynamic; the mbarriers come on top
  // B (k, n) lies as kCols / kAcross boxes of 64 rows of k; a row of one is what the swizzle permutes.
  static constexpr int kAcross = kCols < 64 ? kCols : 64;
  static_assert(kStages >= 2 && kRows % 64 == 0 && kCols % kAcross == 0 && (kAcross == 32 || kAcross == 64));
};
// 64 x 256, 64 x 192 and 64 x 128 a warpgroup; the last for few rows, where the weight is read once and the
// measure is bytes under way.
using HopperLargeTile = WgmmaTile<128, 256, 4, 1>;
using HopperMiddleTile = WgmmaTile<128, 192, 5, 1>;
using HopperMediumTile = WgmmaTile<128, 128, 6, 1>;
using HopperSmallTile = WgmmaTile<64, 32, 8, 2>;
constexpr int kHopperGroup = 8;  // rows of tiles that run side by side: the second-level cache keeps their B

// How the columns of a paired product lie in tiles. The product's columns are `heads` of 2 * half; pair i of
// a head is its columns i and i + half. A tile of kCols has kCols / 2 slots for pairs, its first half the
// columns i, its second half the columns i + half of the same pairs, so that both come by one box each and
// lie in one lane. Of a tile's slots a head has `box`: all, or, where half is less, as few as hold it and
// divide them; a head takes `padded` slots, half rounded up to boxes. In slots past half nothing is stored.
struct PairedColumns {
  int half, box, padded;
  int heads;
};
// half is a multiple of four.
template <typename Tile>
constexpr PairedColumns paired_columns(int half, int heads) {
  constexpr int kSlots = Tile::kCols / 2;
  int box = 4;  // four neighbours lie in one box
  while (box < kSlots && (box < half || kSlots % box != 0)) box += 4;
  return {half, box, (half + box - 1) / box * box, heads};
}

// Of 16 columns, lane q of four has 2q, 2q + 1 of both groups of 8; afterwards the four neighbours from
// quad_column() on: lane q gives one pair to lane q ^ 1 and gets one.
__device__ inline void exchange_quad(float (&v)[4]) {
  const bool odd = threadIdx.x % 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float other = __shfl_xor_sync(kAllLanes, odd ? v[i] : v[2 + i], 1);
    v[2 + i] = odd ? v[2 + i] : other;
    v[i] = odd ? other : v[i];
  }
}
__device__ inline int quad_column() { return threadIdx.x % 2 * 8 + threadIdx.x % 4 / 2 * 4; }

// C (m, n) = A (m, k) B, then `epilogue`; B is (n, k) with kTransposeB, else (k, n), as the tensor maps say
// (cuda/ops/matmul_wgmma.cuh makes them): boxes of 64 of k. Behind the slices of k come those of `more_k`, by
// maps of their own: C = [A, more_a] [B; more_b]; 0: none. A block owns a tile at a time and takes every
// gridDim.x-th. One warp, the first past those that multiply, copies slices of A and B kStages ahead, over
// the ends of tiles; each other warp waits for a slice, multiplies, and says so when its multiplications have
// ended, one slice later. k is summed in steps of 16 in order, whatever the tile, and zeros past its end:
// deterministic, and a row's bits depend on neither m, nor the tile, nor the grid. Traffic a tile: k (kRows +
// kCols) bf16 read. Rows and columns outside arrive as zeros, and are not stored. grid: at most the tiles,
// kHopperGroup rows of tiles at a time, down before across; shared memory Tile::kSharedBytes. Epilogue:
// cuda/kernels/matmul_tensor.cuh's, `store(row, column, v[4], inside)` where lane q of four has the columns
// from quad_column() on of 16, or, paired, `store(row, pair, a[4], b[4], inside)`.
template <typename Tile, bool kTransposeB, typename Epilogue>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void matmul_wgmma_kernel(
    const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
    const __grid_constant__ CUtensorMap more_a, const __grid_constant__ CUtensorMap more_b, int m, int n,
    int k, int more_k, const PairedColumns paired, const Epilogue epilogue) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kPaired = Epilogue::kPaired;
  static_assert(kTransposeB || !kPaired);
  constexpr int kStages = Tile::kStages, kSlots = Tile::kCols / 2;
  [[maybe_unused]] constexpr int kPart = Tile::kCols % kPartWidth == 0 ? kPartWidth : kSmallPartWidth;
  // The swizzle permutes within 1024 bytes of the address.
  extern __shared__ __align__(1024) unsigned char slices_of_tiles[];
  __shared__ uint64_t barriers[2 * kStages];
  const uint32_t shared = shared_address(slices_of_tiles);
  const uint32_t full = shared_address(barriers), empty = full + kStages * kMbarrierBytes;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full + i * kMbarrierBytes, 1);
      mbarrier_init(empty + i * kMbarrierBytes, Tile::kWarps);
    }
    mbarrier_visible();
  }
  __syncthreads();

  const int rows = (m + Tile::kRows - 1) / Tile::kRows;
  const int columns = kPaired ? paired.heads * paired.padded * 2 : n;
  const int cols = (columns + Tile::kCols - 1) / Tile::kCols, of_k = (k + Tile::kDepth - 1) / Tile::kDepth,
            slices = of_k + (more_k + Tile::kDepth - 1) / Tile::kDepth;
  // The tile's place, in tiles.
  const auto place = [&](uint32_t tile, int* row, int* col) {
    const uint32_t group = tile / (kHopperGroup * cols), within = tile % (kHopperGroup * cols);
    const uint32_t in_group = min(rows - group * kHopperGroup, static_cast<uint32_t>(kHopperGroup));
    *row = static_cast<int>(group * kHopperGroup + within % in_group);
    *col = static_cast<int>(within / in_group);
  };
  const uint32_t tiles = static_cast<uint32_t>(rows) * static_cast<uint32_t>(cols);
  int stage = 0;
  uint32_t parity = 0;  // of the phase of this stage's barriers
  const auto next_stage = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (warp >= Tile::kWarps) {  // copies
    if constexpr (Tile::kGivesRegisters) give_registers<40>();
    if (warp > Tile::kWarps || lane != 0) return;
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      int row, col;
      place(tile, &row, &col);
#pragma unroll 1
      for (int slice = 0; slice < slices; ++slice) {
        mbarrier_wait(empty + stage * kMbarrierBytes, parity ^ 1);  // at once in the first round
        const uint32_t to_a = shared + stage * Tile::kStageBytes, to_b = to_a + Tile::kBytesA,
                       barrier = full + stage * kMbarrierBytes;
        const bool of_more = slice >= of_k;
        const CUtensorMap *const of_a = of_more ? &more_a : &map_a, *const of_b = of_more ? &more_b : &map_b;
        const int depth = (of_more ? slice - of_k : slice) * Tile::kDepth;
        mbarrier_arrive_expect(barrier, Tile::kStageBytes);
        tensor_load(to_a, of_a, depth, row * Tile::kRows, barrier);
        if constexpr (kPaired) {
          const int slot = col * kSlots, head = slot / paired.padded, pair = slot % paired.padded;
#pragma unroll
          for (int e = 0; e < 2; ++e)
            tensor_load(to_b + e * Tile::kBytesB / 2, of_b, depth, pair, e, head, barrier);
        } else if constexpr (kTransposeB) {
          tensor_load(to_b, of_b, depth, col * Tile::kCols, barrier);
        } else {
          constexpr int kBoxes = Tile::kCols / Tile::kAcross;
#pragma unroll
          for (int i = 0; i < kBoxes; ++i)
            tensor_load(to_b + i * Tile::kBytesB / kBoxes, of_b, col * Tile::kCols + i * Tile::kAcross, depth,
                        barrier);
        }
        next_stage();
      }
    }
    return;
  }

  if constexpr (Tile::kGivesRegisters) take_registers<232>();
  // B: k-major as A, or kAcross columns wide and 64 of k deep; and how far 16 of k are.
  constexpr int kSwizzleB = kTransposeB ? 128 : 2 * Tile::kAcross;
  constexpr uint32_t kStepB = kTransposeB ? 32 : 16 * kSwizzleB;
  const uint32_t rows_at = warp / 4 * 64 * Tile::kDepth * 2;
  for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sum[Tile::kCols / 2] = {};
    int before = 0;
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
      mbarrier_wait(full + stage * kMbarrierBytes, parity);
      const uint32_t at = shared + stage * Tile::kStageBytes;
      const uint64_t a = matrix_descriptor<128>(at + rows_at, 16, 8 * 128);
      const uint64_t b =
          matrix_descriptor<kSwizzleB>(at + Tile::kBytesA, Tile::kDepth * kSwizzleB, 8 * kSwizzleB);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < Tile::kDepth / 16; ++step)  // the address is the descriptor's low part
        warpgroup_multiply<!kTransposeB>(sum, a + step * 32 / 16, b + step * kStepB / 16);
      wgmma_commit();
      wgmma_wait<1>();
      if (slice > 0 && lane == 0) mbarrier_arrive(empty + before * kMbarrierBytes);
      before = stage;
      next_stage();
    }
    wgmma_wait<0>();
    wgmma_finished(sum);
    if (slices > 0 && lane == 0) mbarrier_arrive(empty + before * kMbarrierBytes);

    int tile_row, tile_col;
    place(tile, &tile_row, &tile_col);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = static_cast<int64_t>(tile_row) * Tile::kRows + warp * 16 + h * 8 + lane / 4;
      const auto quad = [&](float(&v)[4], int group) {  // columns of tile: 16 from 8 group on
        v[0] = sum[4 * group + 2 * h];
        v[1] = sum[4 * group + 2 * h + 1];
        v[2] = sum[4 * group + 4 + 2 * h];
        v[3] = sum[4 * group + 5 + 2 * h];
        exchange_quad(v);
      };
      if constexpr (kPaired) {
        const int slot = tile_col * kSlots, head = slot / paired.padded, first = slot % paired.padded;
#pragma unroll
        for (int j = 0; j < kSlots / 16; ++j) {
          float a[4], b[4];
          quad(a, 2 * j);
          quad(b, 2 * j + kSlots / 8);
          const uint32_t at = 16 * j + quad_column(), box = paired.box;
          const int in_head = first + static_cast<int>(at % box);
          const int64_t pair = static_cast<int64_t>(head + at / box) * paired.half + in_head;
          epilogue.store(row, pair, a, b, row < m && in_head < paired.half);
        }
      } else {
        const int64_t first = static_cast<int64_t>(tile_col) * Tile::kCols;
        [[maybe_unused]] float four[4] = {};
        const auto of_row = epilogue.of_row(row, row < m);
#pragma unroll
        for (int j = 0; j < Tile::kCols / 16; ++j) {
          float v[4];
          quad(v, 2 * j);
          if constexpr (Epilogue::kSums) {
            constexpr int kEach = kPart / 16;  // of these make a part
            four[j % kEach] = epilogue.store(row, first + j * 16 + quad_column(), v, row < m, of_row);
            const int64_t begin = first + j / kEach * kPart;
            if (epilogue.sums.to && j % kEach == kEach - 1 && lane % 4 == 0 && row < m && begin < n)
              epilogue.sums.parts[begin / kPart * parts_stride(m) + row] =
                  kEach == 1 ? four[0] : sum_of_four(four);
          } else {
            epilogue.store(row, first + j * 16 + quad_column(), v, row < m, of_row);
          }
        }
      }
    }
    if constexpr (Epilogue::kSums) {  // the last warp with these 16 rows adds up what all have left
      static_assert(kArrivalRows == 16);
      const int64_t first = static_cast<int64_t>(tile_row) * Tile::kRows + warp * kArrivalRows;
      if (epilogue.sums.to && first < m) {
        unsigned* const arrivals = epilogue.sums.arrivals + first / kArrivalRows;
        __threadfence();
        __syncwarp();
        unsigned before_it = 0;
        if (lane == 0) before_it = atomicAdd(arrivals, 1u);
        if (__shfl_sync(kAllLanes, before_it, 0) + 1 == static_cast<unsigned>(cols)) {
          __threadfence();
          if (lane < kArrivalRows && first + lane < m) finish_row<kPart>(epilogue.sums, first + lane, m, n);
          if (lane == 0) *arrivals = 0;
        }
      }
    }
  }
#else
  __trap();
#endif
}

}  // namespace gantrain::cuda
