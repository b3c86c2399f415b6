// Launches of Hopper's product with any epilogue: included by cuda/ops/matmul_tensor.cuh.
#pragma once

#include <algorithm>

#include "cuda/kernels/matmul_wgmma.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/runtime/tensor_map.h"

namespace gantrain::cuda {

// What matmul_tile needs to know of an epilogue: its half, and whether Hopper's kernel takes a product that
// matmul_on_tensor_cores takes: four neighbours of a half lie in one head. Does not depend on m.
template <typename Epilogue>
HopperColumns hopper_columns_of(const Matmul& a, const Epilogue& epilogue) {
  if constexpr (Epilogue::kPaired)
    return {.allowed = a.k > 0 && epilogue.half % 4 == 0, .half = epilogue.half};
  else
    return {.allowed = a.k > 0};
}

// Columns of a product in tiles, with those of paired halves that stay empty; half 0: not paired.
template <typename Tile>
int64_t hopper_columns(int64_t n, int64_t half) {
  if (half == 0) return n;
  const PairedColumns p = paired_columns<Tile>(static_cast<int>(half), static_cast<int>(n / (2 * half)));
  return int64_t{p.heads} * p.padded * 2;
}

template <typename Tile, bool kTransposeB, typename Epilogue>
void launch_wgmma_tile(const Context& context, const Matmul& a, const Epilogue& epilogue) {
  constexpr int64_t kLargest = int64_t{1} << 30;  // places are counted in 32 bits
  GT_CHECK(a.m <= kLargest && a.n <= kLargest && a.k <= kLargest, "a product of {} x {} x {}", a.m, a.n, a.k);
  PairedColumns paired{};
  int64_t columns = a.n;
  if constexpr (Epilogue::kPaired) {
    paired =
        paired_columns<Tile>(static_cast<int>(epilogue.half), static_cast<int>(a.n / (2 * epilogue.half)));
    columns = hopper_columns<Tile>(a.n, epilogue.half);
  }
  const auto map_a = [&](const void* of, int64_t k, int64_t stride) {
    return tensor_map(of, {.extent = {k, a.m}, .stride = {stride}, .box = {Tile::kDepth, Tile::kRows}});
  };
  const auto map_b = [&](const void* of, int64_t k, int64_t stride) {
    if constexpr (Epilogue::kPaired)
      return tensor_map(of, {.extent = {k, paired.half, 2, paired.heads},
                             .stride = {stride, paired.half * stride, 2 * paired.half * stride},
                             .box = {Tile::kDepth, paired.box, 1, Tile::kCols / 2 / paired.box}});
    else if constexpr (kTransposeB)
      return tensor_map(of, {.extent = {k, a.n}, .stride = {stride}, .box = {Tile::kDepth, Tile::kCols}});
    else
      return tensor_map(of, {.extent = {a.n, k}, .stride = {stride}, .box = {Tile::kAcross, Tile::kDepth}});
  };
  CUtensorMap more_a{}, more_b{};
  if (a.more.k > 0) {
    more_a = map_a(a.more.a, a.more.k, a.more.lda);
    more_b = map_b(a.more.b, a.more.k, a.more.ldb);
  }
  const int64_t tiles = int64_t{blocks_for(a.m, Tile::kRows)} * blocks_for(columns, Tile::kCols);
  launch(matmul_wgmma_kernel<Tile, kTransposeB, Epilogue>,
         static_cast<unsigned>(std::min(tiles, int64_t{context.processors} * Tile::kBlocks)), Tile::kThreads,
         Tile::kSharedBytes, context.stream, map_a(a.a, a.k, a.lda), map_b(a.b, a.k, a.ldb), more_a, more_b,
         static_cast<int>(a.m), static_cast<int>(a.n), static_cast<int>(a.k), static_cast<int>(a.more.k),
         paired, epilogue);
}

// A product that matmul_on_tensor_cores takes, with an epilogue that hopper_takes; `kernel` is one of
// Hopper's.
template <bool kTransposeB, typename Epilogue>
void launch_matmul_wgmma(const Context& context, const Matmul& a, MatmulKernel kernel,
                         const Epilogue& epilogue) {
  switch (kernel) {
    case MatmulKernel::kHopperLarge:
      return launch_wgmma_tile<HopperLargeTile, kTransposeB>(context, a, epilogue);
    case MatmulKernel::kHopperMiddle:
      return launch_wgmma_tile<HopperMiddleTile, kTransposeB>(context, a, epilogue);
    case MatmulKernel::kHopperMedium:
      return launch_wgmma_tile<HopperMediumTile, kTransposeB>(context, a, epilogue);
    default:
      return launch_wgmma_tile<HopperSmallTile, kTransposeB>(context, a, epilogue);
  }
}

}  // namespace gantrain::cuda
