// Matrix products on the f32 units: the f32 path, and any shape or alignment that the tensor-core kernel does
// not take.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// A block owns kRows x kCols of the product, a thread kOwnM x kOwnN of it: of four neighbours, then four more
// kThreadsM (kThreadsN) times four further; kBlocks blocks wanted on a multiprocessor.
template <int kRows_, int kCols_, int kOwnM_, int kOwnN_, int kBlocks_>
struct SimtTile {
  static constexpr int kRows = kRows_, kCols = kCols_, kOwnM = kOwnM_, kOwnN = kOwnN_, kBlocks = kBlocks_;
  static constexpr int kThreadsM = kRows / kOwnM, kThreadsN = kCols / kOwnN, kThreads = kThreadsM * kThreadsN;
  static_assert(kOwnM % 4 == 0 && kOwnN % 4 == 0 && kThreadsN >= 4);
};
using LargeSimtTile = SimtTile<64, 64, 8, 8, 4>;
using SmallSimtTile = SimtTile<16, 64, 4, 4, 8>;  // few rows
constexpr int kSimtDepth = 16;                    // of k in shared memory at a time

// One operand's slice, (kOuter, kSimtDepth) of a matrix that lies (outer, k), or (k, outer) with kAlongOuter;
// f32 in shared memory, laid out the same way, so that four values always travel as one. kThreads threads
// fill it; `lanes` of them, side by side, own kOwn rows each.
template <typename T, bool kAlongOuter, int kOuter, int kOwn, int kThreads>
struct SimtOperand {
  static constexpr int kWidth = kAlongOuter ? kOuter : kSimtDepth;  // of the dimension that is contiguous
  static constexpr int kStride =
      kAlongOuter ? kOuter : kSimtDepth + 4;  // so that eight rows lie in different banks
  static constexpr int kSize = kAlongOuter ? kSimtDepth * kStride : kOuter * kStride;
  static constexpr int kParts = kOuter * kSimtDepth / 4 / kThreads, kLanes = kOuter / kOwn;

  const T* from;
  int64_t stride, outer, depth;  // outer and k that are there
  int64_t first;                 // outer of the slice
  bool wide;                     // rows are aligned to four values and whole fours of them
  float part[kParts][4];         // of the slice that is on its way

  __device__ void fetch(int64_t k0) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int at = threadIdx.x + i * kThreads;
      const int64_t inner = (kAlongOuter ? first : k0) + at % (kWidth / 4) * 4,
                    other = (kAlongOuter ? k0 : first) + at / (kWidth / 4);
      const int64_t inner_end = kAlongOuter ? outer : depth, other_end = kAlongOuter ? depth : outer;
      const bool inside = other < other_end;
      if (wide) {
        Vector<T, 4> v{};
        if (inside && inner < inner_end) v = load_vector<4>(from + other * stride + inner);
#pragma unroll
        for (int j = 0; j < 4; ++j) part[i][j] = to_float(v.value[j]);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          part[i][j] = inside && inner + j < inner_end ? to_float(from[other * stride + inner + j]) : 0.0f;
      }
    }
  }
  __device__ void keep(float* shared) const {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int at = threadIdx.x + i * kThreads, inner = at % (kWidth / 4) * 4, other = at / (kWidth / 4);
      // The rows of one lane lie kLanes apart: neighbouring lanes read neighbouring rows.
      const int row =
          kAlongOuter ? other : (other / (4 * kLanes) * 4 + other % 4) * kLanes + other / 4 % kLanes;
      *reinterpret_cast<float4*>(shared + row * kStride + inner) =
          make_float4(part[i][0], part[i][1], part[i][2], part[i][3]);
    }
  }
  // What lane `lane` owns of four values of k from k0 on.
  static __device__ void read(const float* shared, int lane, int k0, float (&v)[kOwn][4]) {
    if constexpr (kAlongOuter) {
#pragma unroll
      for (int d = 0; d < 4; ++d)
#pragma unroll
        for (int h = 0; h < kOwn / 4; ++h) {
          const float4 x =
              *reinterpret_cast<const float4*>(shared + (k0 + d) * kStride + (h * kLanes + lane) * 4);
          v[4 * h][d] = x.x, v[4 * h + 1][d] = x.y, v[4 * h + 2][d] = x.z, v[4 * h + 3][d] = x.w;
        }
    } else {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const float4 x = *reinterpret_cast<const float4*>(shared + (j * kLanes + lane) * kStride + k0);
        v[j][0] = x.x, v[j][1] = x.y, v[j][2] = x.z, v[j][3] = x.w;
      }
    }
  }
};

// C (m, n) = A B, then `epilogue` (cuda/kernels/matmul_epilogue.cuh); A is (m, k), or (k, m) if kTransposeA;
// B is (k, n), or (n, k) if kTransposeB; all row-major. f32 accumulation over k in order: deterministic, and
// a row's result depends on neither m nor the tile. Traffic a block: k (kRows + kCols) read. grid (n / kCols,
// m / kRows); two slices of both operands in shared memory, one barrier a slice.
template <typename Tile, typename T, bool kTransposeA, bool kTransposeB, typename Epilogue>
__global__ __launch_bounds__(Tile::kThreads, Tile::kBlocks) void matmul_simt_kernel(
    const T* __restrict__ a, int64_t lda, bool wide_a, const T* __restrict__ b, int64_t ldb, bool wide_b,
    int64_t m, int64_t n, int64_t k, const Epilogue epilogue) {
  using A = SimtOperand<T, kTransposeA, Tile::kRows, Tile::kOwnM, Tile::kThreads>;
  using B = SimtOperand<T, !kTransposeB, Tile::kCols, Tile::kOwnN, Tile::kThreads>;
  __shared__ __align__(16) float shared_a[2][A::kSize], shared_b[2][B::kSize];
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * Tile::kRows,
                col0 = static_cast<int64_t>(blockIdx.x) * Tile::kCols;
  const int tx = threadIdx.x % Tile::kThreadsN, ty = threadIdx.x / Tile::kThreadsN;
  A next_a{.from = a, .stride = lda, .outer = m, .depth = k, .first = row0, .wide = wide_a, .part = {}};
  B next_b{.from = b, .stride = ldb, .outer = n, .depth = k, .first = col0, .wide = wide_b, .part = {}};
  float sum[Tile::kOwnM][Tile::kOwnN] = {};
  next_a.fetch(0);
  next_b.fetch(0);
  int buffer = 0;
  for (int64_t k0 = 0; k0 < k; k0 += kSimtDepth) {
    next_a.keep(shared_a[buffer]);
    next_b.keep(shared_b[buffer]);
    __syncthreads();
    if (k0 + kSimtDepth < k) {
      next_a.fetch(k0 + kSimtDepth);
      next_b.fetch(k0 + kSimtDepth);
    }
#pragma unroll
    for (int d = 0; d < kSimtDepth; d += 4) {
      float av[Tile::kOwnM][4], bv[Tile::kOwnN][4];
      A::read(shared_a[buffer], ty, d, av);
      B::read(shared_b[buffer], tx, d, bv);
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < Tile::kOwnM; ++i)
#pragma unroll
          for (int j = 0; j < Tile::kOwnN; ++j) sum[i][j] = fmaf(av[i][e], bv[j][e], sum[i][j]);
    }
    buffer = 1 - buffer;
  }
#pragma unroll
  for (int i = 0; i < Tile::kOwnM; ++i)
#pragma unroll
    for (int h = 0; h < Tile::kOwnN / 4; ++h) {
      const int64_t row = row0 + (i / 4 * Tile::kThreadsM + ty) * 4 + i % 4,
                    column = col0 + (h * Tile::kThreadsN + tx) * 4;
      float v[4] = {sum[i][4 * h], sum[i][4 * h + 1], sum[i][4 * h + 2], sum[i][4 * h + 3]};
      epilogue.store(row, column, v, row < m, epilogue.of_row(row, row < m));
    }
}

}  // namespace gantrain::cuda
