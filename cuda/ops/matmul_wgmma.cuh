// Launches of Hopper's product with any epilogue: included by cuda/ops/matmul_tensor.cuh.
#pragma once

#include <algorithm>
#include <bit>

#include "cuda/kernels/matmul_wgmma.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/runtime/tensor_map.h"

namespace gantrain::cuda {

// Whether Hopper's kernel takes a product that matmul_on_tensor_cores takes: four neighbours of a half lie in
// one head. Does not depend on m.
template <typename Epilogue>
bool hopper_takes(const Matmul& a, const Epilogue& epilogue) {
  if constexpr (Epilogue::kPaired)
    return a.k > 0 && epilogue.half % 4 == 0;
  else
    return a.k > 0;
}

template <typename Tile, bool kTransposeB, typename Epilogue>
void launch_wgmma_tile(const Context& context, const Matmul& a, const Epilogue& epilogue) {
  constexpr int64_t kLargest = int64_t{1} << 30;  // places are counted in 32 bits
  GT_CHECK(a.m <= kLargest && a.n <= kLargest && a.k <= kLargest, "a product of {} x {} x {}", a.m, a.n, a.k);
  const CUtensorMap map_a =
      tensor_map(a.a, {.extent = {a.k, a.m}, .stride = {a.lda}, .box = {Tile::kDepth, Tile::kRows}});
  PairedColumns paired{};
  CUtensorMap map_b;
  int64_t columns = a.n;
  if constexpr (Epilogue::kPaired) {
    constexpr int64_t kSlots = Tile::kCols / 2;
    const int64_t half = epilogue.half,
                  box = std::min(kSlots, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(half))));
    paired = {.half = static_cast<int>(half),
              .padded = static_cast<int>((half + box - 1) / box * box),
              .log2_box = std::countr_zero(static_cast<uint64_t>(box)),
              .heads = static_cast<int>(a.n / (2 * half))};
    columns = int64_t{paired.heads} * paired.padded * 2;
    map_b = tensor_map(a.b, {.extent = {a.k, half, 2, paired.heads},
                             .stride = {a.ldb, half * a.ldb, 2 * half * a.ldb},
                             .box = {Tile::kDepth, box, 1, kSlots / box}});
  } else if constexpr (kTransposeB) {
    map_b = tensor_map(a.b, {.extent = {a.k, a.n}, .stride = {a.ldb}, .box = {Tile::kDepth, Tile::kCols}});
  } else {
    map_b = tensor_map(a.b, {.extent = {a.n, a.k}, .stride = {a.ldb}, .box = {Tile::kAcross, Tile::kDepth}});
  }
  const int64_t tiles = int64_t{blocks_for(a.m, Tile::kRows)} * blocks_for(columns, Tile::kCols);
  launch(matmul_wgmma_kernel<Tile, kTransposeB, Epilogue>,
         static_cast<unsigned>(std::min(tiles, int64_t{context.processors} * Tile::kBlocks)), Tile::kThreads,
         Tile::kSharedBytes, context.stream, map_a, map_b, static_cast<int>(a.m), static_cast<int>(a.n),
         static_cast<int>(a.k), paired, epilogue);
}

// A product that matmul_on_tensor_cores takes, with an epilogue that hopper_takes; `kernel` is one of
// Hopper's.
template <bool kTransposeB, typename Epilogue>
void launch_matmul_wgmma(const Context& context, const Matmul& a, MatmulKernel kernel,
                         const Epilogue& epilogue) {
  switch (kernel) {
    case MatmulKernel::kHopperLarge:
      return launch_wgmma_tile<HopperLargeTile, kTransposeB>(context, a, epilogue);
    case MatmulKernel::kHopperMedium:
      return launch_wgmma_tile<HopperMediumTile, kTransposeB>(context, a, epilogue);
    default:
      return launch_wgmma_tile<HopperSmallTile, kTransposeB>(context, a, epilogue);
  }
}

}  // namespace gantrain::cuda
