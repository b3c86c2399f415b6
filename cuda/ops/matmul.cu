#include "cuda/ops/matmul.h"

#include "cuda/kernels/matmul_epilogue.cuh"
#include "cuda/kernels/matmul_simt.cuh"
#include "cuda/ops/matmul_tensor.cuh"

namespace gantrain::cuda {
namespace {

template <typename Out>
StoreEpilogue<Out> store_epilogue(const Matmul& a) {
  return {.c = static_cast<Out*>(a.c),
          .bias = a.bias,
          .addend = a.addend,
          .squares = a.squares,
          .ldc = a.ldc,
          .n = a.n,
          .wide = a.n % 4 == 0 && a.ldc % 4 == 0 && aligned_to(4 * sizeof(Out), a.c) &&
                  aligned_to(16, a.bias, a.addend)};
}

template <typename Tile, typename T, typename Out>
void matmul_simt(const Context& context, const Matmul& a) {
  const dim3 grid(blocks_for(a.n, Tile::kCols), blocks_for(a.m, Tile::kRows));
  const auto wide = [](const void* p, int64_t stride, int64_t width) {
    return stride % 4 == 0 && width % 4 == 0 && aligned_to(4 * sizeof(T), p);
  };
  const auto run = [&](auto kernel) {
    launch(kernel, grid, Tile::kThreads, 0, context.stream, static_cast<const T*>(a.a), a.lda,
           wide(a.a, a.lda, a.transpose_a ? a.m : a.k), static_cast<const T*>(a.b), a.ldb,
           wide(a.b, a.ldb, a.transpose_b ? a.k : a.n), a.m, a.n, a.k, store_epilogue<Out>(a));
  };
  using Epilogue = StoreEpilogue<Out>;
  if (a.transpose_a)
    run(a.transpose_b ? matmul_simt_kernel<Tile, T, true, true, Epilogue>
                      : matmul_simt_kernel<Tile, T, true, false, Epilogue>);
  else
    run(a.transpose_b ? matmul_simt_kernel<Tile, T, false, true, Epilogue>
                      : matmul_simt_kernel<Tile, T, false, false, Epilogue>);
}
template <typename T, typename Out>
void matmul_simt(const Context& context, const Matmul& a) {
  if (a.m <= 2 * SmallSimtTile::kRows)
    matmul_simt<SmallSimtTile, T, Out>(context, a);
  else
    matmul_simt<LargeSimtTile, T, Out>(context, a);
}
void matmul_simt(const Context& context, const Matmul& a) {
  if (a.dtype == DType::kF32)
    matmul_simt<float, float>(context, a);
  else if (a.c_dtype == DType::kF32)
    matmul_simt<__nv_bfloat16, float>(context, a);
  else
    matmul_simt<__nv_bfloat16, __nv_bfloat16>(context, a);
}

void matmul_tensor(const Context& context, const Matmul& a) {
  with_weights(a.c_dtype, [&]<typename Out>(Tag<Out>) {
    if (a.transpose_b)
      launch_matmul_tensor<true>(context, a, store_epilogue<Out>(a));
    else
      launch_matmul_tensor<false>(context, a, store_epilogue<Out>(a));
  });
}

}  // namespace

bool matmul_on_tensor_cores(const Matmul& a) {
  return a.dtype == DType::kBF16 && !a.transpose_a && a.k % 8 == 0 && a.lda % 8 == 0 && a.ldb % 8 == 0 &&
         (a.transpose_b || a.n % 8 == 0) && aligned_to(16, a.a, a.b);
}

bool matmul_fuses(const Context&, const Matmul& a) { return matmul_on_tensor_cores(a); }
bool matmul_always_fuses(const Context&, const Matmul& a) { return matmul_on_tensor_cores(a); }

MatmulKernel matmul_tile(const Context& context, const Matmul& a) {
  if (a.kernel != MatmulKernel::kChosen) return a.kernel;
  if (a.m <= SmallMatmulTile::kRows) return MatmulKernel::kSmall;
  // Time of a wave of tiles over the multiprocessors; `speed` is what share of the large tile's rate a
  // smaller one is expected to reach (fewer multiplications for each byte it reads).
  const auto time = [&]<typename Tile>(Tile, double speed) {
    const int64_t tiles = int64_t{blocks_for(a.m, Tile::kRows)} * blocks_for(a.n, Tile::kCols);
    return static_cast<double>((tiles + context.processors - 1) / context.processors * Tile::kRows *
                               Tile::kCols) /
           speed;
  };
  const double large = time(LargeMatmulTile{}, 1.0), medium = time(MediumMatmulTile{}, 0.9),
               small = time(SmallMatmulTile{}, 0.15);
  if (small < large && small < medium) return MatmulKernel::kSmall;
  return medium < large ? MatmulKernel::kMedium : MatmulKernel::kLarge;
}

void matmul(const Context& context, const Matmul& a) {
  if (a.m == 0 || a.n == 0) return;
  GT_CHECK(a.dtype == DType::kBF16 || a.c_dtype == DType::kF32, "the product of f32 matrices is f32, not {}",
           dtype_name(a.c_dtype));
  if (a.kernel != MatmulKernel::kSimt && matmul_on_tensor_cores(a))
    matmul_tensor(context, a);
  else
    matmul_simt(context, a);
}

}  // namespace gantrain::cuda
