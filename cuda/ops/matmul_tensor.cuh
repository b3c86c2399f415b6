// Launches of the tensor-core product with any epilogue: included where one is instantiated.
#pragma once

#include <algorithm>

#include "cuda/kernels/matmul_epilogue.cuh"
#include "cuda/kernels/matmul_tensor.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/ops/matmul_wgmma.cuh"

namespace gantrain::cuda {

// How many values of an epilogue's tensors lie side by side and aligned: 8, 4 or 1, by `fits(values)`.
template <typename Fits>
int common_width(Fits fits) {
  return fits(8) ? 8 : fits(4) ? 4 : 1;
}
// Whether `values` neighbours of `size` bytes each can be moved at once, or 16 bytes at a time.
inline bool side_by_side(int64_t values, const void* p, size_t size) {
  return aligned_to(std::min<uintptr_t>(static_cast<uintptr_t>(values) * size, 16), p);
}

// Sums over m rows into `to`, or none where that is null; with a statistic see RowSums.
inline RowSums row_sums(const Context& context, int64_t m, float* to, float* parts, bool statistic = false,
                        float eps = 0) {
  GT_CHECK(!to || m <= kMostArrivals * kArrivalRows, "sums over {} rows, expected at most {}", m,
           kMostArrivals * kArrivalRows);
  return {.to = to, .parts = parts, .arrivals = context.arrivals, .statistic = statistic, .eps = eps};
}

template <typename Tile, bool kTransposeB, typename Epilogue>
void launch_matmul_tile(const Context& context, const Matmul& a, const Epilogue& epilogue) {
  GT_CHECK(Tile::kMore || a.more.k == 0, "more of k in a tile of {} x {}", Tile::kRows, Tile::kCols);
  launch(matmul_tensor_kernel<Tile, kTransposeB, Epilogue>,
         blocks_for(a.m, Tile::kRows) * blocks_for(a.n, Tile::kCols), Tile::kThreads, Tile::kSharedBytes,
         context.stream, static_cast<const __nv_bfloat16*>(a.a), a.lda,
         static_cast<const __nv_bfloat16*>(a.b), a.ldb, a.m, a.n, a.k,
         MoreOfK{.a = static_cast<const __nv_bfloat16*>(a.more.a),
                 .b = static_cast<const __nv_bfloat16*>(a.more.b),
                 .lda = a.more.lda,
                 .ldb = a.more.ldb,
                 .k = static_cast<int>(a.more.k)},
         epilogue);
}

// A product that matmul_on_tensor_cores takes; c, bias and addend are the epilogue's.
template <bool kTransposeB, typename Epilogue>
void launch_matmul_tensor(const Context& context, const Matmul& a, const Epilogue& epilogue) {
  const MatmulKernel kernel = matmul_tile(context, a, hopper_columns_of(a, epilogue));
  switch (kernel) {
    case MatmulKernel::kHopperLarge:
    case MatmulKernel::kHopperMiddle:
    case MatmulKernel::kHopperMedium:
    case MatmulKernel::kHopperSmall:
      return launch_matmul_wgmma<kTransposeB>(context, a, kernel, epilogue);
    case MatmulKernel::kLarge:
      return launch_matmul_tile<LargeMatmulTile, kTransposeB>(context, a, epilogue);
    case MatmulKernel::kMedium:
      return launch_matmul_tile<MediumMatmulTile, kTransposeB>(context, a, epilogue);
    case MatmulKernel::kNarrow:
      return launch_matmul_tile<NarrowMatmulTile, kTransposeB>(context, a, epilogue);
    default:
      return launch_matmul_tile<SmallMatmulTile, kTransposeB>(context, a, epilogue);
  }
}

}  // namespace gantrain::cuda
