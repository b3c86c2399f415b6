// Matrix products on Hopper's tensor cores (wgmma, copies by the tensor memory accelerator): B as (n, k) and
// as (k, n) in three tiles, with bias, addend and the next norm's statistic; rotated q, k, v and SwiGLU at
// the end of the product. It needs compute capability 9.0.
//
// Built for compute_90a
#include "cuda/kernels/matmul_epilogue.cuh"
#include "cuda/kernels/matmul_wgmma.cuh"
#include "cuda/kernels/mlp.cuh"
#include "cuda/kernels/qkv.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

namespace {

// The engine's tiles with as many stages as fit into 96 KB.
using Large = WgmmaTile<128, 256, 2, 1>;
using Middle = WgmmaTile<128, 192, 2, 1>;
using Medium = WgmmaTile<128, 128, 3, 1>;
using Small = HopperSmallTile;

constexpr int kM = 141, kK = 136, kBlocks = 3;

CUtensorMap tensor_map(const __nv_bfloat16* data, std::vector<cuuint64_t> extents,
                       std::vector<cuuint64_t> strides, std::vector<cuuint32_t> box) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  must(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
      "cudaGetDriverEntryPointByVersion");
  const std::vector<cuuint32_t> every(box.size(), 1);
  for (cuuint64_t& s : strides) s *= 2;
  CUtensorMap map{};
  const bool made =
      function && reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
                      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(extents.size()),
                      const_cast<__nv_bfloat16*>(data), extents.data(), strides.data(), box.data(),
                      every.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                      box[0] == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                      CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  must(made ? cudaSuccess : cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
  return map;
}

template <typename Tile, bool kTransposeB, typename Epilogue>
void run(const __nv_bfloat16* a, const CUtensorMap& map_b, int n, const PairedColumns& paired,
         const Epilogue& epilogue, const char* name) {
  auto* kernel = matmul_wgmma_kernel<Tile, kTransposeB, Epilogue>;
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes),
       "cudaFuncSetAttribute");
  const CUtensorMap map_a = tensor_map(a, {kK, kM}, {kK}, {64, Tile::kRows});
  kernel<<<kBlocks, Tile::kThreads, Tile::kSharedBytes>>>(map_a, map_b, map_a, map_b, kM, n, kK, 0, paired,
                                                          epilogue);
  finished(name);
}

// a (kM, kK) times b, (n, kK) with `transposed`, else (kK, n)
std::vector<double> product(const std::vector<__nv_bfloat16>& a, const std::vector<__nv_bfloat16>& b, int n,
                            bool transposed) {
  const auto ad = to_double(a), bd = to_double(b);
  std::vector<double> c(size_t{kM} * n);
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int k = 0; k < kK; ++k)
        sum += ad[size_t(i) * kK + k] * bd[transposed ? size_t(j) * kK + k : size_t(k) * n + j];
      c[size_t(i) * n + j] = sum;
    }
  return c;
}

template <typename Tile, bool kTransposeB>
void stored(const char* name, Verdict& verdict) {
  constexpr int kN = 264;
  constexpr float kEps = 1e-5f;
  const auto a_host = to_bf16(normal(size_t{kM} * kK, 1)), b_host = to_bf16(normal(size_t{kN} * kK, 2));
  const auto bias_host = normal(kN, 3), addend_host = normal(size_t{kM} * kN, 4);
  Values<__nv_bfloat16> a(a_host), b(b_host);
  Values<float> bias(bias_host), addend(addend_host), c(size_t{kM} * kN), rstd(size_t{kM}),
      parts(static_cast<size_t>(parts_of(kN) * parts_stride(kM)));
  Values<unsigned> arrivals(size_t{kM / kArrivalRows + 1});
  const CUtensorMap map_b = kTransposeB ? tensor_map(b, {kK, kN}, {kK}, {64, Tile::kCols})
                                        : tensor_map(b, {kN, kK}, {kN}, {Tile::kAcross, 64});
  run<Tile, kTransposeB>(
      a, map_b, kN, PairedColumns{},
      StoreEpilogue<float>{c, bias, addend, nullptr, nullptr, kN, kN, 8, {rstd, parts, arrivals, true, kEps}},
      name);
  auto want = product(a_host, b_host, kN, kTransposeB);
  std::vector<double> statistic(size_t{kM});
  for (size_t i = 0; i < want.size(); ++i) {
    want[i] += double(bias_host[i % kN]) + double(addend_host[i]);
    statistic[i / kN] += want[i] * want[i] / kN;
  }
  for (double& s : statistic) s = 1 / std::sqrt(s + double(kEps));
  verdict.check(name, c.host(), want);
  verdict.check("  its statistic", rstd.host(), statistic);
}

// How the engine makes them (cuda/ops/matmul_wgmma.cuh).
struct Paired {
  PairedColumns columns;
  CUtensorMap map;
};
template <typename Tile>
Paired paired(const __nv_bfloat16* b, int half, int heads) {
  const PairedColumns p = paired_columns<Tile>(half, heads);
  return {p, tensor_map(b, {kK, cuuint64_t(half), 2, cuuint64_t(heads)},
                        {kK, cuuint64_t(half) * kK, cuuint64_t(2 * half) * kK},
                        {64, cuuint32_t(p.box), 1, cuuint32_t(Tile::kCols / 2 / p.box)})};
}

template <typename Tile>
void rotated(int half, const char* name, Verdict& verdict) {
  constexpr int kHeads = 3, kKv = 2, kAll = kHeads + 2 * kKv;
  const int d = 2 * half, n = kAll * d;
  const auto a_host = to_bf16(normal(size_t{kM} * kK, 5)), b_host = to_bf16(normal(size_t(n) * kK, 6));
  const auto bias_host = normal(n, 7);
  std::vector<float> table_host;  // (kM, D): cos, then sin
  for (int row = 0; row < kM; ++row)
    for (int i = 0; i < d; ++i) {
      const double angle = row * std::pow(10000.0, -double(i % half) / half);
      table_host.push_back(float(i < half ? std::cos(angle) : std::sin(angle)));
    }
  Values<__nv_bfloat16> a(a_host), b(b_host);
  Values<float> bias(bias_host), table(table_host), q(size_t{kM} * kHeads * d), k(size_t{kM} * kKv * d),
      v(size_t{kM} * kKv * d);
  const Paired p = paired<Tile>(b, half, kAll);
  run<Tile, true>(a, p.map, n, p.columns,
                  RotaryEpilogue<float>{{q, k, v, kHeads, kKv, half}, table, nullptr, bias, half, 4}, name);
  const auto c = product(a_host, b_host, n, true);
  std::vector<double> want[3];
  for (int row = 0; row < kM; ++row)
    for (int head = 0; head < kAll; ++head)
      for (int i = 0; i < d; ++i) {
        const auto at = [&](int j) {
          return c[size_t(row) * n + head * d + j] + double(bias_host[head * d + j]);
        };
        const double cosine = double(table_host[size_t(row) * d + i % half]),
                     sine = double(table_host[size_t(row) * d + half + i % half]);
        const bool turns = head < kHeads + kKv;
        want[head < kHeads ? 0
             : turns       ? 1
                           : 2]
            .push_back(!turns     ? at(i)
                       : i < half ? at(i) * cosine - at(i + half) * sine
                                  : at(i) * cosine + at(i - half) * sine);
      }
  verdict.check(name, q.host(), want[0]);
  verdict.check("  k", k.host(), want[1]);
  verdict.check("  v", v.host(), want[2]);
}

template <typename Tile>
void gated(int f, const char* name, Verdict& verdict) {
  const auto a_host = to_bf16(normal(size_t{kM} * kK, 8)),
             b_host = to_bf16(normal(size_t(2 * f) * kK, 9, 0.1f));
  const auto bias_host = normal(2 * f, 10);
  Values<__nv_bfloat16> a(a_host), b(b_host);
  Values<float> bias(bias_host), gate(size_t{kM} * f), up(size_t{kM} * f), out(size_t{kM} * f);
  const Paired p = paired<Tile>(b, f, 1);
  run<Tile, true>(a, p.map, 2 * f, p.columns,
                  SwigluEpilogue<float, float>{gate, up, out, nullptr, bias, f, 4}, name);
  const auto c = product(a_host, b_host, 2 * f, true);
  std::vector<double> gates, ups, want;
  for (int row = 0; row < kM; ++row)
    for (int j = 0; j < f; ++j) {
      const double g = c[size_t(row) * 2 * f + j] + double(bias_host[j]),
                   u = c[size_t(row) * 2 * f + f + j] + double(bias_host[f + j]);
      gates.push_back(g);
      ups.push_back(u);
      want.push_back(g / (1 + std::exp(-g)) * u);
    }
  verdict.check(name, out.host(), want);
  verdict.check("  its gate", gate.host(), gates);
  verdict.check("  its up", up.host(), ups);
}

}  // namespace

int main() {
  cudaDeviceProp device{};
  must(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  if (device.major != 9 || device.minor != 0) {
    std::printf("SKIP: wgmma needs compute capability 9.0, this is %d.%d\n", device.major, device.minor);
    return 77;
  }
  Verdict verdict;
  stored<Large, true>("128 x 256, B (n, k)", verdict);
  stored<Large, false>("128 x 256, B (k, n)", verdict);
  stored<Middle, true>("128 x 192, B (n, k)", verdict);
  stored<Middle, false>("128 x 192, B (k, n)", verdict);
  stored<Medium, true>("128 x 128, B (n, k)", verdict);
  stored<Medium, false>("128 x 128, B (k, n)", verdict);
  stored<Small, true>("64 x 32, B (n, k)", verdict);
  stored<Small, false>("64 x 32, B (k, n)", verdict);
  rotated<Large>(32, "128 x 256, rotated, half heads of 32", verdict);
  rotated<Large>(192, "128 x 256, rotated, half heads of 192", verdict);
  rotated<Middle>(32, "128 x 192, rotated, half heads of 32", verdict);
  rotated<Middle>(20, "128 x 192, rotated, half heads of 20", verdict);
  rotated<Medium>(12, "128 x 128, rotated, half heads of 12", verdict);
  rotated<Small>(64, "64 x 32, rotated, half heads of 64", verdict);
  rotated<Small>(20, "64 x 32, rotated, half heads of 20", verdict);
  gated<Large>(200, "128 x 256, SwiGLU", verdict);
  gated<Middle>(200, "128 x 192, SwiGLU", verdict);
  gated<Medium>(96, "128 x 128, SwiGLU", verdict);
  gated<Small>(44, "64 x 32, SwiGLU", verdict);
  return verdict.finish();
}
