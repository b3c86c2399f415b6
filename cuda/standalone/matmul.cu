// Matrix products: the tensor-core kernel with B as (n, k) and as (k, n), in its four tiles, with bias,
// addend and the next norm's statistic; and the kernel of the f32 units.
#include "cuda/kernels/matmul_epilogue.cuh"
#include "cuda/kernels/matmul_simt.cuh"
#include "cuda/kernels/matmul_tensor.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

namespace {

constexpr int kM = 141, kN = 264, kK = 136;
constexpr float kEps = 1e-5f;

struct Problem {
  std::vector<__nv_bfloat16> a = to_bf16(normal(size_t{kM} * kK, 1)), b = to_bf16(normal(size_t{kN} * kK, 2));
  std::vector<float> bias = normal(kN, 3), addend = normal(size_t{kM} * kN, 4);
  // b is (kN, kK) with `transposed`, else (kK, kN)
  std::vector<double> truth(bool transposed) const {
    const auto ad = to_double(a), bd = to_double(b);
    std::vector<double> c = to_double(addend);
    for (int i = 0; i < kM; ++i)
      for (int j = 0; j < kN; ++j) {
        double sum = double(bias[j]);
        for (int k = 0; k < kK; ++k)
          sum += ad[size_t(i) * kK + k] * bd[transposed ? size_t(j) * kK + k : size_t(k) * kN + j];
        c[size_t(i) * kN + j] += sum;
      }
    return c;
  }
};

template <typename Tile, bool kTransposeB>
void on_tensor_cores(const Problem& p, const char* name, Verdict& verdict) {
  Values<__nv_bfloat16> a(p.a), b(p.b);
  Values<float> bias(p.bias), addend(p.addend), c(size_t{kM} * kN), rstd(size_t{kM}),
      parts(static_cast<size_t>(parts_of(kN) * parts_stride(kM)));
  Values<unsigned> arrivals(size_t{kM / kArrivalRows + 1});
  const StoreEpilogue<float> epilogue{
      c, bias, addend, nullptr, nullptr, kN, kN, 8, {rstd, parts, arrivals, true, kEps}};
  auto* kernel = matmul_tensor_kernel<Tile, kTransposeB, StoreEpilogue<float>>;
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes),
       "cudaFuncSetAttribute");
  const int tiles = (kM + Tile::kRows - 1) / Tile::kRows * ((kN + Tile::kCols - 1) / Tile::kCols);
  // k in two pieces, where the tile may have them.
  constexpr int kFirst = Tile::kMore ? 72 : kK, kLdb = kTransposeB ? kK : kN;
  const MoreOfK more{a + kFirst, b + kFirst * (kTransposeB ? 1 : kN), kK, kLdb, kK - kFirst};
  kernel<<<tiles, Tile::kThreads, Tile::kSharedBytes>>>(a, kK, b, kLdb, kM, kN, kFirst, more, epilogue);
  finished(name);
  const auto want = p.truth(kTransposeB);
  std::vector<double> statistic(size_t{kM});
  for (size_t i = 0; i < want.size(); ++i) statistic[i / kN] += want[i] * want[i] / kN;
  for (double& s : statistic) s = 1 / std::sqrt(s + double(kEps));
  verdict.check(name, c.host(), want);
  verdict.check("  its statistic", rstd.host(), statistic);
}

template <bool kTransposeB>
void on_f32_units(const Problem& p, const char* name, Verdict& verdict) {
  using Tile = LargeSimtTile;
  Values<__nv_bfloat16> a(p.a), b(p.b);
  Values<float> bias(p.bias), addend(p.addend), c(size_t{kM} * kN);
  const StoreEpilogue<float> epilogue{c, bias, addend, nullptr, nullptr, kN, kN, 8, {}};
  const dim3 grid((kN + Tile::kCols - 1) / Tile::kCols, (kM + Tile::kRows - 1) / Tile::kRows);
  matmul_simt_kernel<Tile, __nv_bfloat16, false, kTransposeB, StoreEpilogue<float>>
      <<<grid, Tile::kThreads>>>(a, kK, true, b, kTransposeB ? kK : kN, true, kM, kN, kK, epilogue);
  finished(name);
  verdict.check(name, c.host(), p.truth(kTransposeB));
}

}  // namespace

int main() {
  const Problem p;
  Verdict verdict;
  on_tensor_cores<LargeMatmulTile, true>(p, "tensor cores, 128 x 128, B (n, k)", verdict);
  on_tensor_cores<LargeMatmulTile, false>(p, "tensor cores, 128 x 128, B (k, n)", verdict);
  on_tensor_cores<MediumMatmulTile, true>(p, "tensor cores, 64 x 128, B (n, k)", verdict);
  on_tensor_cores<NarrowMatmulTile, true>(p, "tensor cores, 128 x 64, B (n, k)", verdict);
  on_tensor_cores<SmallMatmulTile, false>(p, "tensor cores, 16 x 32, B (k, n)", verdict);
  on_f32_units<true>(p, "f32 units, B (n, k)", verdict);
  on_f32_units<false>(p, "f32 units, B (k, n)", verdict);
  return verdict.finish();
}
