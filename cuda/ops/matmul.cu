#include "cuda/ops/matmul.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "cuda/kernels/matmul_epilogue.cuh"
#include "cuda/kernels/matmul_simt.cuh"
#include "cuda/ops/matmul_tensor.cuh"
#include "cuda/runtime/blaslt.h"
#include "cuda/runtime/gemm_choices.h"
#include "cuda/runtime/handle.h"

namespace gantrain::cuda {
namespace {

template <typename Out>
StoreEpilogue<Out> store_epilogue(const Context& context, const Matmul& a) {
  return {.c = static_cast<Out*>(a.c),
          .bias = a.bias,
          .addend = a.addend,
          .rounded = static_cast<__nv_bfloat16*>(a.rounded),
          .gain = a.rounded_gain,
          .ldc = a.ldc,
          .n = a.n,
          .width = common_width([&](int64_t values) {
            return a.n % values == 0 && a.ldc % values == 0 && side_by_side(values, a.c, sizeof(Out)) &&
                   side_by_side(values, a.rounded, 2) && aligned_to(16, a.bias, a.addend, a.rounded_gain);
          }),
          .sums = row_sums(context, a.m, a.rstd, a.parts, true, a.eps)};
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
           wide(a.b, a.ldb, a.transpose_b ? a.k : a.n), a.m, a.n, a.k, store_epilogue<Out>(context, a));
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
      launch_matmul_tensor<true>(context, a, store_epilogue<Out>(context, a));
    else
      launch_matmul_tensor<false>(context, a, store_epilogue<Out>(context, a));
  });
}

void matmul_own(const Context& context, const Matmul& a) {
  if (a.kernel != MatmulKernel::kSimt && matmul_on_tensor_cores(a))
    matmul_tensor(context, a);
  else
    matmul_simt(context, a);
}

bool matmul_library(const Context& context, const Matmul& a) {
  return context.library->multiply(context.stream, {.m = a.m,
                                                    .n = a.n,
                                                    .k = a.k,
                                                    .a = a.a,
                                                    .lda = a.lda,
                                                    .transpose_a = a.transpose_a,
                                                    .b = a.b,
                                                    .ldb = a.ldb,
                                                    .transpose_b = a.transpose_b,
                                                    .dtype = a.dtype,
                                                    .c = a.c,
                                                    .ldc = a.ldc,
                                                    .c_dtype = a.c_dtype,
                                                    .bias = a.bias,
                                                    .addend = a.addend});
}

// Milliseconds that f's work on the stream takes, the best of three after one for warming up.
template <typename F>
float milliseconds(cudaStream_t stream, F f) {
  const Event begin = make_event(), end = make_event();
  float best = 0;
  for (int i = 0; i < 4; ++i) {
    GT_CUDA(cudaEventRecord(begin.get(), stream));
    f();
    GT_CUDA(cudaEventRecord(end.get(), stream));
    GT_CUDA(cudaEventSynchronize(end.get()));
    float time = 0;
    GT_CUDA(cudaEventElapsedTime(&time, begin.get(), end.get()));
    if (i == 1 || (i > 1 && time < best)) best = time;
  }
  return best;
}

// Device memory of the stream's, each byte 0x3c: 0.0115 in f32 and in bf16.
class Scratch {
 public:
  Scratch(const Context& context, int64_t bytes) : context_(context) {
    GT_CUDA(cudaMallocAsync(&data_, static_cast<size_t>(bytes), context.stream));
    GT_CUDA(cudaMemsetAsync(data_, 0x3c, static_cast<size_t>(bytes), context.stream));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { (void)cudaFreeAsync(data_, context_.stream); }
  void* get() const { return data_; }

 private:
  const Context& context_;
  void* data_ = nullptr;
};

// Whether the library is faster, with the product's own b, an `a` of one value and a result that nobody
// reads. What follows a product of the library's in a pass of its own is put at a copy of c: as many bytes
// are read and written again.
bool time_library(const Context& context, Matmul a) {
  const int64_t bytes = a.m * a.ldc * dtype_size(a.c_dtype);
  const Scratch left(context, (a.transpose_a ? a.k : a.m) * a.lda * dtype_size(a.dtype)), c(context, bytes),
      more(context, a.fused || a.addend ? a.m * a.ldc * 4 : 1);
  a.a = left.get();
  a.c = c.get();
  if (a.addend) a.addend = static_cast<const float*>(more.get());
  a.rstd = nullptr;
  a.rounded = nullptr;
  if (!matmul_library(context, a)) return false;
  const float library = milliseconds(context.stream, [&] {
    (void)matmul_library(context, a);
    if (a.fused)
      GT_CUDA(cudaMemcpyAsync(more.get(), c.get(), static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                              context.stream));
  });
  return library < milliseconds(
                       context.stream, [&] { matmul_own(context, a); });
}

}  // namespace

int64_t row_parts(int64_t m, int64_t n) { return parts_of(n) * parts_stride(m); }

bool matmul_on_tensor_cores(const Matmul& a) {
  return a.dtype == DType::kBF16 && !a.transpose_a && a.k % 8 == 0 && a.lda % 8 == 0 && a.ldb % 8 == 0 &&
         (a.transpose_b || a.n % 8 == 0) && aligned_to(16, a.a, a.b);
}

bool matmul_by_library(const Context& context, const Matmul& a) {
  if (!context.library || a.kernel != MatmulKernel::kChosen || a.m == 0 || a.n == 0) return false;
  if (a.c_dtype == DType::kBF16 && (a.bias || a.addend)) return false;  // they would have to be bf16 too
  if (context.gemm == Gemm::kCublasLt) return true;
  // Rows by powers of two: their number changes from step to step.
  const GemmChoices::Key key = {static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(a.m))),
                                a.n,
                                a.k,
                                a.lda,
                                a.ldb,
                                a.ldc,
                                a.transpose_a | a.transpose_b << 1 | (a.dtype == DType::kF32) << 2 |
                                    (a.c_dtype == DType::kF32) << 3 | (a.bias != nullptr) << 4 |
                                    (a.addend != nullptr) << 5 | a.fused << 6};
  if (const auto found = context.choices->find(key)) return *found;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  GT_CUDA(cudaStreamIsCapturing(context.stream, &status));
  if (status != cudaStreamCaptureStatusNone) return false;
  const bool faster = time_library(context, a);
  context.choices->remember(key, faster);
  return faster;
}
bool matmul_fuses(const Context& context, const Matmul& a) {
  return matmul_on_tensor_cores(a) && !matmul_by_library(context, a);
}
bool matmul_always_fuses(const Context& context, const Matmul& a) {
  return matmul_on_tensor_cores(a) && !context.library;
}

namespace {

// A tile, and the time of the product by it: of whole waves of tiles over the multiprocessors. `speed` is
// what share of the largest tile's rate it is expected to reach (fewer multiplications for each byte it
// reads). Of tiles that need the same time the one that computes least.
struct TimedTile {
  MatmulKernel kernel;
  double time;
  int64_t values;
};
template <typename Tile>
TimedTile timed_tile(const Context& context, int64_t m, int64_t columns, double speed, MatmulKernel kernel) {
  const int64_t tiles = int64_t{blocks_for(m, Tile::kRows)} * blocks_for(columns, Tile::kCols);
  const int64_t area = int64_t{Tile::kRows} * Tile::kCols;
  return {kernel, static_cast<double>((tiles + context.processors - 1) / context.processors * area) / speed,
          tiles * area};
}
MatmulKernel fastest(std::initializer_list<TimedTile> tiles) {
  return std::min(tiles,
                  [](const TimedTile& a, const TimedTile& b) {
                    return std::pair(a.time, a.values) < std::pair(b.time, b.values);
                  })
      .kernel;
}

}  // namespace

MatmulKernel matmul_tile(const Context& context, const Matmul& a, const HopperColumns& hopper) {
  if (a.kernel != MatmulKernel::kChosen) return a.kernel;
  if (hopper.allowed && context.capability == 90) {
    const auto timed = [&]<typename Tile>(Tile, double speed, MatmulKernel kernel) {
      return timed_tile<Tile>(context, a.m, hopper_columns<Tile>(a.n, hopper.half), speed, kernel);
    };
    return fastest({timed(HopperLargeTile{}, 1.0, MatmulKernel::kHopperLarge),
                    timed(HopperMiddleTile{}, 0.95, MatmulKernel::kHopperMiddle),
                    timed(HopperMediumTile{}, 0.8, MatmulKernel::kHopperMedium),
                    timed(HopperSmallTile{}, 0.25, MatmulKernel::kHopperSmall)});
  }
  if (a.m <= SmallMatmulTile::kRows) return MatmulKernel::kSmall;
  const TimedTile large = timed_tile<LargeMatmulTile>(context, a.m, a.n, 1.0, MatmulKernel::kLarge),
                  small = timed_tile<SmallMatmulTile>(context, a.m, a.n, 0.15, MatmulKernel::kSmall);
  if (a.more.k > 0) return fastest({large, small});
  return fastest({large, timed_tile<MediumMatmulTile>(context, a.m, a.n, 0.9, MatmulKernel::kMedium),
                  timed_tile<NarrowMatmulTile>(context, a.m, a.n, 0.9, MatmulKernel::kNarrow), small});
}

void matmul(const Context& context, const Matmul& a) {
  if (a.m == 0 || a.n == 0) return;
  GT_CHECK(a.dtype == DType::kBF16 || a.c_dtype == DType::kF32, "the product of f32 matrices is f32, not {}",
           dtype_name(a.c_dtype));
  GT_CHECK(!(a.rstd || a.rounded) || (a.c_dtype == DType::kF32 && matmul_on_tensor_cores(a)),
           "a statistic or a second result of a product that does not fuse them");
  GT_CHECK(a.more.k == 0 || matmul_on_tensor_cores(a), "more of k of a product that is not on tensor cores");
  const bool library = !a.rstd && !a.rounded && a.more.k == 0 && matmul_by_library(context, a);
  if (!library || !matmul_library(context, a)) matmul_own(context, a);
}

}  // namespace gantrain::cuda
