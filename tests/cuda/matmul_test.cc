// The matrix products behind the ops, kernel by kernel: the ops alone would choose one tile for most small
// shapes.
#include "cuda/ops/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>

#include "cuda/cuda_device.h"
#include "cuda/runtime/blaslt.h"
#include "cuda/runtime/gemm_choices.h"
#include "cuda/runtime/handle.h"
#include "tests/support/compare.h"
#include "tests/support/fill.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;
using namespace cuda;

// A piece of device memory that holds values of `type`.
class Array {
 public:
  Array(const std::vector<float>& values, DType type) : type_(type), count_(values.size()) {
    std::vector<bf16> rounded(values.begin(), values.end());
    GT_CUDA(cudaMalloc(&data_, bytes()));
    GT_CUDA(cudaMemcpy(data_, type == DType::kF32 ? static_cast<const void*>(values.data()) : rounded.data(),
                       bytes(), cudaMemcpyHostToDevice));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { (void)cudaFree(data_); }
  void* data() const { return data_; }
  std::vector<float> read() const {
    std::vector<float> out(count_);
    std::vector<bf16> rounded(count_);
    GT_CUDA(cudaMemcpy(type_ == DType::kF32 ? static_cast<void*>(out.data()) : rounded.data(), data_, bytes(),
                       cudaMemcpyDeviceToHost));
    for (size_t i = 0; type_ != DType::kF32 && i < count_; ++i) out[i] = static_cast<float>(rounded[i]);
    return out;
  }

 private:
  size_t bytes() const { return count_ * (type_ == DType::kF32 ? 4 : 2); }
  DType type_;
  size_t count_;
  void* data_ = nullptr;
};

struct Product {
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = true;
  DType type = DType::kBF16, out = DType::kF32;
  bool more = false;   // bias, addend, the next norm's statistic, a rounded copy and longer rows than needed
  int64_t longer = 0;  // c's rows, besides: where odd, no two neighbours may be taken at once
  bool bias = true, addend = true;  // of `more`
  int64_t first = 0;                // of k; the rest comes as more of it. 0: all at once
};
struct Result {
  std::vector<float> c, rstd, rounded;
};
constexpr float kEps = 1e-5f;

class CudaMatmul : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (!cuda_unavailable().empty()) GTEST_SKIP() << "no cuda device on this machine";
    stream_ = make_stream();
    context_.stream = stream_.get();
    context_.processors = 4;
    GT_CUDA(cudaMalloc(&arrivals_, kMostArrivals * sizeof(unsigned)));
    context_.arrivals = static_cast<unsigned*>(arrivals_);
    GT_CUDA(cudaMemset(arrivals_, 0, kMostArrivals * sizeof(unsigned)));
    int major = 0, minor = 0;
    GT_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    GT_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    device_capability_ = major * 10 + minor;
  }
  void TearDown() override { (void)cudaFree(arrivals_); }
  bool hopper() const { return device_capability_ == 90; }
  static int64_t extra(const Product& p) { return p.more ? 8 : 0; }
  static std::vector<float> matrix(const Product& p, bool transposed, int64_t outer, uint64_t seed) {
    return rounded_to(p.type,
                      random_normal(transposed ? p.k * (outer + extra(p)) : outer * (p.k + extra(p)), seed));
  }
  static std::vector<float> gain_of(const Product& p) { return random_uniform(p.n, 5, 0.5f, 2.0f); }
  Result run(const Product& p, MatmulKernel kernel) {
    const int64_t lda = (p.transpose_a ? p.m : p.k) + extra(p), ldb = (p.transpose_b ? p.k : p.n) + extra(p),
                  ldc = p.n + extra(p) + p.longer;
    const Array a(matrix(p, p.transpose_a, p.m, 1), p.type), b(matrix(p, !p.transpose_b, p.n, 2), p.type);
    const Array c(std::vector<float>(z(p.m * ldc), NAN), p.out), bias(random_normal(p.n, 3), DType::kF32),
        addend(random_normal(p.m * ldc, 4), DType::kF32), rstd(std::vector<float>(z(p.m), NAN), DType::kF32),
        parts(std::vector<float>(z(row_parts(p.m, p.n)), NAN), DType::kF32),
        rounded(std::vector<float>(z(p.m * p.n), NAN), DType::kBF16), gain(gain_of(p), DType::kF32);
    // The library's and those of the f32 units go without.
    const bool sums = p.more && p.out == DType::kF32 && p.type == DType::kBF16 && !p.transpose_a &&
                      !context_.library && kernel != MatmulKernel::kSimt;
    MatmulMore rest{};
    if (p.first > 0)
      rest = {.k = p.k - p.first,
              .a = static_cast<const bf16*>(a.data()) + p.first,
              .lda = lda,
              .b = static_cast<const bf16*>(b.data()) + p.first * (p.transpose_b ? 1 : ldb),
              .ldb = ldb};
    matmul(context_, {.m = p.m,
                      .n = p.n,
                      .k = p.first > 0 ? p.first : p.k,
                      .a = a.data(),
                      .lda = lda,
                      .transpose_a = p.transpose_a,
                      .b = b.data(),
                      .ldb = ldb,
                      .transpose_b = p.transpose_b,
                      .dtype = p.type,
                      .c = c.data(),
                      .ldc = ldc,
                      .c_dtype = p.out,
                      .bias = p.more && p.bias ? static_cast<const float*>(bias.data()) : nullptr,
                      .addend = p.more && p.addend ? static_cast<const float*>(addend.data()) : nullptr,
                      .rstd = sums ? static_cast<float*>(rstd.data()) : nullptr,
                      .eps = kEps,
                      .parts = static_cast<float*>(parts.data()),
                      .rounded = sums ? rounded.data() : nullptr,
                      .rounded_gain = p.m % 4 == 1 ? static_cast<const float*>(gain.data()) : nullptr,
                      .kernel = kernel,
                      .more = rest});
    GT_CUDA(cudaStreamSynchronize(context_.stream));
    Result r;
    const auto all = c.read();
    for (int64_t i = 0; i < p.m * ldc; ++i) {
      if (i % ldc < p.n)
        r.c.push_back(all[z(i)]);
      else
        EXPECT_TRUE(std::isnan(all[z(i)])) << "written behind a row's end, row " << i / ldc;
    }
    if (sums) r.rstd = rstd.read();
    if (sums) r.rounded = rounded.read();
    return r;
  }
  // Against the product in f64, and the statistic against that of what was stored.
  void check(const Product& p, MatmulKernel kernel, const std::string& what) {
    const Result got = run(p, kernel);
    const auto a = matrix(p, p.transpose_a, p.m, 1), b = matrix(p, !p.transpose_b, p.n, 2),
               bias = random_normal(p.n, 3), addend = random_normal(p.m * (p.n + extra(p) + p.longer), 4);
    const int64_t lda = (p.transpose_a ? p.m : p.k) + extra(p), ldb = (p.transpose_b ? p.k : p.n) + extra(p);
    std::vector<double> want, limits;
    const double unit = p.out == DType::kBF16 ? kUnitBF16 : 0.0, f32 = 0x1p-24;
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j) {
        double sum = 0, size = 0;
        for (int64_t d = 0; d < p.k; ++d) {
          const double term = static_cast<double>(a[z(p.transpose_a ? d * lda + i : i * lda + d)]) *
                              static_cast<double>(b[z(p.transpose_b ? j * ldb + d : d * ldb + j)]);
          sum += term;
          size += std::abs(term);
        }
        const float to_add[] = {p.bias ? bias[z(j)] : 0.0f,
                                p.addend ? addend[z(i * (p.n + extra(p) + p.longer) + j)] : 0.0f};
        for (const float v : to_add) {
          if (!p.more) break;
          sum += static_cast<double>(v);
          size += std::abs(static_cast<double>(v));
        }
        want.push_back(sum);
        limits.push_back(unit * std::abs(sum) + static_cast<double>(p.k + 3) * f32 * size);
      }
    EXPECT_TRUE(within("c", got.c, want, limits)) << what;
    if (p.out == DType::kBF16 && !context_.library) {  // the same sums, rounded once, to nearest
      Product f32 = p;
      f32.out = DType::kF32;
      EXPECT_TRUE(bitwise_equal("c", got.c, rounded_to(DType::kBF16, run(f32, kernel).c))) << what;
    }
    if (got.rstd.empty()) return;
    auto scaled = got.c;
    const auto gain = gain_of(p);
    for (int64_t i = 0; p.m % 4 == 1 && i < p.m * p.n; ++i) scaled[z(i)] *= gain[z(i % p.n)];
    EXPECT_TRUE(bitwise_equal("rounded", got.rounded, rounded_to(DType::kBF16, scaled))) << what;
    std::vector<double> rstd;
    for (int64_t i = 0; i < p.m; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < p.n; ++j) sum += std::pow(static_cast<double>(got.c[z(i * p.n + j)]), 2);
      rstd.push_back(1.0 / std::sqrt(sum / static_cast<double>(p.n) + static_cast<double>(kEps)));
    }
    // A chain of sums: four columns, then of 16, of 64, then one part after the other; half of it in the
    // root, which rounds itself, as do the quotients.
    std::vector<double> rstd_limits;
    for (const double r : rstd) rstd_limits.push_back((static_cast<double>(p.n / 64 + 8) / 2 + 4) * f32 * r);
    EXPECT_TRUE(within("rstd", got.rstd, rstd, rstd_limits)) << what;
  }

  // The first of the tiles against truth, the others against its bits.
  void tiles_agree(const Product& p, std::span<const MatmulKernel> tiles);

  bool open_library(Gemm gemm) {
    std::string why;
    library_ = BlasLt::open(size_t{1} << 20, &why);
    context_.gemm = gemm;
    context_.library = library_.get();
    context_.choices = &choices_;
    return library_ != nullptr;
  }

  Context context_;  // of compute capability 8.0, where a test does not say otherwise
  int device_capability_ = 0;
  void* arrivals_ = nullptr;
  std::unique_ptr<BlasLt> library_;
  GemmChoices choices_;

 private:
  Stream stream_;
};
INSTANTIATE_TEST_SUITE_P(On, CudaMatmul, testing::Values(0), [](const auto&) { return "cuda"; });

constexpr MatmulKernel kTiles[] = {MatmulKernel::kLarge, MatmulKernel::kMedium, MatmulKernel::kNarrow,
                                   MatmulKernel::kSmall};
constexpr MatmulKernel kHopperTiles[] = {MatmulKernel::kHopperLarge, MatmulKernel::kHopperMiddle,
                                         MatmulKernel::kHopperMedium, MatmulKernel::kHopperSmall};
const char* name(MatmulKernel k) {
  constexpr const char* kNames[] = {"chosen",        "simt",        "large",        "medium",
                                    "narrow",        "small",       "Hopper large", "Hopper middle",
                                    "Hopper medium", "Hopper small"};
  return kNames[static_cast<int>(k)];
}

void CudaMatmul::tiles_agree(const Product& p, std::span<const MatmulKernel> tiles) {
  const std::string what = fmt::format("{} {} {} {}", p.m, p.n, p.k, p.transpose_b ? "NT" : "NN");
  check(p, tiles[0], what + " " + name(tiles[0]));
  const Result first = run(p, tiles[0]);
  for (const MatmulKernel kernel : tiles.subspan(1)) {
    const Result other = run(p, kernel);
    EXPECT_TRUE(bitwise_equal("c", other.c, first.c)) << what << " " << name(kernel);
    EXPECT_TRUE(bitwise_equal("rstd", other.rstd, first.rstd)) << what << " " << name(kernel);
  }
}

// Rests of rows, columns and k in every tile, both ways that B may lie, more and fewer slices than stages.
constexpr Product kRests[] = {{1, 8, 8},      {7, 40, 24},   {128, 128, 64}, {257, 152, 104}, {3, 16, 576},
                              {33, 264, 200}, {2, 24, 1536}, {150, 45, 96},  {131, 520, 72}};
TEST_P(CudaMatmul, TensorCoreTilesMatchTruthAndEachOther) {
  for (const bool transpose_b : {true, false})
    for (const DType out : {DType::kF32, DType::kBF16})
      for (Product p : kRests) {
        if (!transpose_b && p.n % 8 != 0) continue;
        p.transpose_b = transpose_b;
        p.out = out;
        p.more = p.m % 2 == 1;
        tiles_agree(p, kTiles);
      }
}
TEST_P(CudaMatmul, HopperTilesMatchTruthAndEachOther) {
  if (!hopper()) GTEST_SKIP() << "wgmma is of compute capability 9.0";
  for (const bool transpose_b : {true, false})
    for (const DType out : {DType::kF32, DType::kBF16})
      for (Product p : kRests) {
        if (!transpose_b && p.n % 8 != 0) continue;
        p.transpose_b = transpose_b;
        p.out = out;
        p.more = p.m % 2 == 1;
        tiles_agree(p, kHopperTiles);
      }
}

// k in two pieces, each with a rest and without, of fewer and more slices than stages, in every tile that may
// have more of k; more tiles than blocks.
TEST_P(CudaMatmul, MoreOfKGoesOnWhereKEnds) {
  constexpr MatmulKernel kMore[] = {MatmulKernel::kLarge, MatmulKernel::kSmall};
  std::vector<std::span<const MatmulKernel>> kinds{kMore};
  if (hopper()) kinds.emplace_back(kHopperTiles);
  for (const auto& tiles : kinds)
    for (const bool transpose_b : {true, false}) {
      for (const auto& [first, rest] :
           {std::pair<int64_t, int64_t>{8, 8}, {24, 40}, {104, 8}, {64, 32}, {576, 16}, {8, 584}})
        tiles_agree({.m = 5,
                     .n = 40,
                     .k = first + rest,
                     .transpose_b = transpose_b,
                     .out = first % 16 == 0 ? DType::kF32 : DType::kBF16,
                     .more = true,
                     .first = first},
                    tiles);
      tiles_agree({.m = 131, .n = 264, .k = 48, .transpose_b = transpose_b, .first = 40}, tiles);
    }
}

// The last column at every place of a tile, in all of its rows; and every place stored alone, where c's rows
// are so long that no two neighbours are aligned.
TEST_P(CudaMatmul, ATileMayEndAtAnyColumn) {
  const auto columns = [](MatmulKernel kernel) -> int64_t {
    if (kernel == MatmulKernel::kHopperLarge) return 256;
    if (kernel == MatmulKernel::kHopperMiddle) return 192;
    return kernel == MatmulKernel::kSmall || kernel == MatmulKernel::kHopperSmall ? 32 : 128;
  };
  std::vector<MatmulKernel> tiles(std::begin(kTiles), std::end(kTiles));
  if (hopper()) tiles.assign(std::begin(kHopperTiles), std::end(kHopperTiles));
  for (const MatmulKernel kernel : tiles)
    for (const DType out : {DType::kF32, DType::kBF16}) {
      const bool wide = columns(kernel) > 128;  // each lane's columns come again every 16
      for (int64_t n = 1; n <= columns(kernel); n += wide && n % 16 == 8 ? 9 : 1)
        check({.m = 65, .n = n, .k = 8, .out = out, .more = true}, kernel,
              fmt::format("{} {}", n, name(kernel)));
      for (const bool transpose_b : {false, true}) {
        Product p{.m = 65, .n = 0, .k = 8, .transpose_b = transpose_b, .out = out, .more = true, .longer = 1};
        for (const auto& [bias, addend] :
             {std::pair{true, true}, {false, true}, {true, false}, {false, false}}) {
          p.bias = bias, p.addend = addend;
          for (p.n = 8; p.n <= columns(kernel); p.n += 8)
            check(p, kernel, fmt::format("{} {}", p.n, name(kernel)));
        }
      }
    }
}
// The last row at every group of eight that a lane has one of, in all columns.
TEST_P(CudaMatmul, ATileMayEndAtAnyRow) {
  std::vector<MatmulKernel> tiles(std::begin(kTiles), std::end(kTiles));
  if (hopper()) tiles.assign(std::begin(kHopperTiles), std::end(kHopperTiles));
  for (const MatmulKernel kernel : tiles)
    for (const DType out : {DType::kF32, DType::kBF16})
      for (const bool transpose_b : {false, true})
        for (int64_t m = 5; m <= 128; m += 8)
          check({.m = m, .n = 128, .k = 8, .transpose_b = transpose_b, .out = out, .more = true}, kernel,
                fmt::format("{} {}", m, name(kernel)));
}

// Many rows of tiles: more than one group of them, the last one not full; and more tiles than blocks.
TEST_P(CudaMatmul, EveryTileIsVisited) {
  check({1160, 136, 8}, MatmulKernel::kLarge, "large");
  check({1160, 136, 8}, MatmulKernel::kMedium, "medium");
  check({1160, 136, 8}, MatmulKernel::kNarrow, "narrow");
  check({150, 40, 8}, MatmulKernel::kSmall, "small");
  if (!hopper()) return;
  for (const bool transpose_b : {true, false}) {
    check({.m = 1160, .n = 264, .k = 136, .transpose_b = transpose_b}, MatmulKernel::kHopperLarge,
          "Hopper large");
    check({.m = 1160, .n = 200, .k = 72, .transpose_b = transpose_b}, MatmulKernel::kHopperMiddle,
          "Hopper middle");
    check({.m = 1160, .n = 136, .k = 136, .transpose_b = transpose_b}, MatmulKernel::kHopperMedium,
          "Hopper medium");
    check({.m = 600, .n = 72, .k = 72, .transpose_b = transpose_b}, MatmulKernel::kHopperSmall,
          "Hopper small");
  }
}

TEST_P(CudaMatmul, TheF32UnitsMatchTruth) {
  for (const DType type : {DType::kF32, DType::kBF16})
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true})
        for (Product p : {Product{1, 1, 1}, Product{5, 68, 20}, Product{33, 7, 35}, Product{70, 130, 12},
                          Product{65, 64, 100}, Product{67, 131, 8}}) {
          p.transpose_a = transpose_a;
          p.transpose_b = transpose_b;
          p.type = type;
          p.out = type == DType::kBF16 && p.n % 2 == 0 ? DType::kBF16 : DType::kF32;
          p.more = p.m % 2 == 1;
          for (const auto& [bias, addend] : {std::pair{true, true}, {false, true}, {true, false}}) {
            if (!p.more && !(bias && addend)) continue;
            p.bias = bias, p.addend = addend;
            check(p, MatmulKernel::kSimt,
                  fmt::format("{} {} {} {} {}{}", dtype_name(type), p.m, p.n, p.k, transpose_a, transpose_b));
          }
        }
}

// A row's bits: a few rows, which other tiles take, and many.
TEST_P(CudaMatmul, ARowDoesNotDependOnTheNumberOfRows) {
  for (const int capability : {80, device_capability_})
    for (const DType type : {DType::kF32, DType::kBF16}) {
      context_.capability = capability;
      Product p{300, 264, 152};
      p.type = type;
      p.more = true;
      const Result all = run(p, MatmulKernel::kChosen);
      for (const int64_t m : {1, 16, 17, 64, 65}) {
        Product few = p;
        few.m = m;
        const Result got = run(few, MatmulKernel::kChosen);
        const auto rows = [&](const std::vector<float>& x, int64_t width) {
          return std::vector<float>(x.begin(), x.begin() + m * width);
        };
        EXPECT_TRUE(bitwise_equal("c", got.c, rows(all.c, p.n))) << capability << " " << m;
        EXPECT_TRUE(bitwise_equal("rstd", got.rstd, rows(all.rstd, all.rstd.empty() ? 0 : 1)))
            << capability << " " << m;
      }
    }
}

// Hopper's kernels where, and only where, the device is one; never by the number of rows. And the tile whose
// waves take least time.
TEST_P(CudaMatmul, TheTileIsOfTheDevice) {
  const auto tile = [&](int64_t m, int64_t n, const HopperColumns& columns) {
    return matmul_tile(
        context_,
        {.m = m, .n = n, .k = 64, .a = nullptr, .lda = 64, .b = nullptr, .ldb = 64, .c = nullptr, .ldc = n},
        columns);
  };
  for (const int capability : {80, 90, 100, 120})
    for (const int64_t m : {1, 16, 100, 5000}) {
      context_.capability = capability;
      EXPECT_EQ(tile(m, 512, {.allowed = true}) >= MatmulKernel::kHopperLarge, capability == 90) << m;
      EXPECT_LT(tile(m, 512, {.allowed = false}), MatmulKernel::kHopperLarge) << m;
    }
  context_.capability = 90;
  context_.processors = 132;
  EXPECT_EQ(tile(8192, 4096, {.allowed = true}), MatmulKernel::kHopperLarge);
  EXPECT_EQ(tile(8192, 576, {.allowed = true}), MatmulKernel::kHopperMiddle);  // three columns of tiles
  // Heads of 2 x 64 pairs leave a third of a tile of 192 empty, not of one of 128.
  EXPECT_EQ(tile(128 * 132, 128, {.allowed = true, .half = 64}), MatmulKernel::kHopperMedium);
  EXPECT_EQ(tile(1, 4096, {.allowed = true}), MatmulKernel::kHopperSmall);
}

TEST_P(CudaMatmul, TheLibraryMatchesTruth) {
  if (!open_library(Gemm::kCublasLt)) GTEST_SKIP() << "no cuBLASLt on this machine";
  for (const DType type : {DType::kF32, DType::kBF16})
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true})
        for (Product p : {Product{1, 40, 24}, Product{33, 7, 35}, Product{70, 24, 64}}) {
          p.transpose_a = transpose_a;
          p.transpose_b = transpose_b;
          p.type = type;
          p.more = p.m % 2 == 1;
          p.out = type == DType::kBF16 && !p.more ? DType::kBF16 : DType::kF32;
          check(p, MatmulKernel::kChosen,
                fmt::format("{} {} {} {} {}{}", dtype_name(type), p.m, p.n, p.k, transpose_a, transpose_b));
        }
}

// Timed once for a shape (rows by powers of two), into memory of its own; never while the stream is captured.
TEST_P(CudaMatmul, AutoTimesEachShapeOnce) {
  if (!open_library(Gemm::kAuto)) GTEST_SKIP() << "no cuBLASLt on this machine";
  const Product p{.m = 33, .n = 40, .k = 24, .more = true};
  check(p, MatmulKernel::kChosen, "first");
  check({.m = 60, .n = 40, .k = 24, .more = true}, MatmulKernel::kChosen, "as many rows, nearly");
  EXPECT_EQ(choices_.size(), 1u);
  check({.m = 65, .n = 40, .k = 24, .more = true}, MatmulKernel::kChosen, "more rows");
  EXPECT_EQ(choices_.size(), 2u);
  const Matmul other{
      .m = 8, .n = 8, .k = 8, .a = nullptr, .lda = 8, .b = nullptr, .ldb = 8, .c = nullptr, .ldc = 8};
  GT_CUDA(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal));
  EXPECT_FALSE(matmul_by_library(context_, other));
  cudaGraph_t graph = nullptr;
  GT_CUDA(cudaStreamEndCapture(context_.stream, &graph));
  const Graph owned(graph);
  EXPECT_EQ(choices_.size(), 2u);
}

TEST(GemmOption, IsCheckedAndNamed) {
  EXPECT_EQ(parse_gemm("auto", "GANTRAIN_GEMM"), Gemm::kAuto);
  try {
    (void)parse_gemm("cublas", "GANTRAIN_GEMM");
    FAIL() << "took an unknown name";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("GANTRAIN_GEMM: 'cublas', expected own, cublaslt or auto"),
              std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace gantrain
