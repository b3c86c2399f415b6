// The CPU's own kernels for products, each against a sum in f64. A machine with matrix tiles never meets the
// row kernel for bf16 in the tests of ops, nor the other way round.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "core/rng.h"
#include "cpu/row_product.h"
#include "cpu/tile_product.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;

struct Shape3 {
  int64_t m, n, k;
};
// Around a tile, a panel, a step of k, the few rows that are turned, and several panels at a time.
constexpr Shape3 kShapes[] = {{1, 1, 1},     {1, 257, 33},   {7, 32, 31},    {16, 16, 32},  {31, 33, 64},
                              {32, 32, 576}, {33, 100, 65},  {128, 40, 96},  {128, 129, 7}, {129, 130, 40},
                              {160, 31, 64}, {257, 160, 77}, {70, 20, 3100}, {6, 1000, 576}};

std::vector<bf16> in_bf16(const std::vector<float>& values) {
  std::vector<bf16> out;
  for (const float v : values) out.emplace_back(v);
  return out;
}

struct Operands {
  std::vector<bf16> a, b;
  std::vector<float> c;
  int64_t lda, ldb, ldc;
  bool transpose_b;
  double a_at(int64_t i, int64_t p) const { return static_cast<float>(a[z(i * lda + p)]); }
  double b_at(int64_t p, int64_t j) const {
    return static_cast<float>(b[z(transpose_b ? j * ldb + p : p * ldb + j)]);
  }
};
// Rows lie further apart than they are long.
Operands make(const Shape3& s, bool transpose_b) {
  Operands o{{}, {}, {}, s.k + 3, (transpose_b ? s.k : s.n) + 5, s.n + 2, transpose_b};
  o.a = in_bf16(random_normal(s.m * o.lda, 1));
  o.b = in_bf16(random_normal((transpose_b ? s.n : s.k) * o.ldb, 2));
  o.c = random_normal(s.m * o.ldc, 3);
  return o;
}

using Kernel = std::function<void(const Shape3&, const Operands&, void* c, DType, bool accumulate)>;

void check(const Shape3& s, const Operands& o, bool accumulate, const Kernel& kernel) {
  SCOPED_TRACE(fmt::format("({}, {}) by {}, b {}, {}", s.m, s.n, s.k,
                           o.transpose_b ? "transposed" : "as it is", accumulate ? "added" : "set"));
  std::vector<float> got = o.c;
  kernel(s, o, got.data(), DType::kF32, accumulate);
  std::vector<double> want(o.c.begin(), o.c.end()), limits(want.size(), 0.0);
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t j = 0; j < s.n; ++j) {
      const size_t at = z(i * o.ldc + j);
      double sum = accumulate ? want[at] : 0.0, terms = std::abs(sum);
      for (int64_t p = 0; p < s.k; ++p) {
        sum += o.a_at(i, p) * o.b_at(p, j);
        terms += std::abs(o.a_at(i, p) * o.b_at(p, j));
      }
      want[at] = sum;
      limits[at] = static_cast<double>(s.k + 2) * kUnitF32 * terms;
    }
  EXPECT_TRUE(within("c, and what lies between its rows", got, want, limits));
}

TEST(CpuProduct, OnTilesMatchesTruth) {
  if (!has_tile_product()) GTEST_SKIP() << "this processor has no matrix tiles";
  const Kernel tiles = [](const Shape3& s, const Operands& o, void* c, DType type, bool accumulate) {
    tile_product(o.transpose_b, s.m, s.n, s.k, o.a.data(), o.lda, o.b.data(), o.ldb, c, o.ldc, type,
                 accumulate);
  };
  for (const Shape3& s : kShapes)
    for (const bool transpose_b : {true, false}) {
      const Operands o = make(s, transpose_b);
      for (const bool accumulate : {false, true}) check(s, o, accumulate, tiles);
      // In bf16: the f32 result rounded to nearest even.
      std::vector<float> sums = o.c;
      tiles(s, o, sums.data(), DType::kF32, false);
      std::vector<bf16> want = in_bf16(o.c), got = want;
      for (int64_t i = 0; i < s.m; ++i)
        for (int64_t j = 0; j < s.n; ++j) want[z(i * o.ldc + j)] = bf16(sums[z(i * o.ldc + j)]);
      tiles(s, o, got.data(), DType::kBF16, false);
      EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * 2), 0)
          << s.m << " x " << s.n << " x " << s.k;
    }
}

TEST(CpuProduct, OnTilesARowDoesNotDependOnTheOthersOrTheCut) {
  if (!has_tile_product()) GTEST_SKIP() << "this processor has no matrix tiles";
  for (const Shape3& s : {Shape3{150, 300, 77}, Shape3{300, 150, 576}}) {
    const Operands o = make(s, true);
    std::vector<float> all(z(s.m * s.n)), row(z(s.n));
    tile_product(true, s.m, s.n, s.k, o.a.data(), o.lda, o.b.data(), o.ldb, all.data(), s.n, DType::kF32,
                 false);
    for (const int64_t i : {int64_t{0}, int64_t{100}, s.m - 1}) {
      for (int64_t j = 0; j < s.n; j += 50)
        tile_product(true, 1, 50, s.k, o.a.data() + i * o.lda, o.lda, o.b.data() + j * o.ldb, o.ldb,
                     row.data() + j, s.n, DType::kF32, false);
      EXPECT_TRUE(bitwise_equal("row", row, {all.begin() + i * s.n, all.begin() + (i + 1) * s.n}));
    }
  }
}

TEST(CpuProduct, RowsMatchTruth) {
  if (!has_row_product(DType::kBF16)) GTEST_SKIP() << "this build has neither AVX2 nor AVX-512";
  for (const Shape3& s : kShapes) {
    const Operands o = make(s, true);
    std::vector<float> a, b;  // the same values in f32
    for (const bf16 v : o.a) a.push_back(static_cast<float>(v));
    for (const bf16 v : o.b) b.push_back(static_cast<float>(v));
    for (const bool accumulate : {false, true})
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        SCOPED_TRACE(dtype_name(dtype));
        check(s, o, accumulate, [&](const Shape3& t, const Operands& x, void* c, DType, bool add) {
          const bool f32 = dtype == DType::kF32;
          row_product(dtype, t.m, t.n, t.k, f32 ? static_cast<const void*>(a.data()) : x.a.data(), x.lda,
                      f32 ? static_cast<const void*>(b.data()) : x.b.data(), x.ldb, static_cast<float*>(c),
                      x.ldc, add);
        });
      }
  }
}

TEST(CpuProduct, OfRowsARowDoesNotDependOnTheOthersOrTheCut) {
  if (!has_row_product(DType::kBF16)) GTEST_SKIP() << "this build has neither AVX2 nor AVX-512";
  for (const Shape3& s : {Shape3{41, 30, 77}, Shape3{40, 33, 576}}) {
    const Operands o = make(s, true);
    std::vector<float> all(z(s.m * s.n)), row(z(s.n));
    row_product(DType::kBF16, s.m, s.n, s.k, o.a.data(), o.lda, o.b.data(), o.ldb, all.data(), s.n, false);
    for (int64_t i = 0; i < s.m; ++i) {
      for (int64_t j = 0; j < s.n; j += 7)
        row_product(DType::kBF16, 1, std::min<int64_t>(7, s.n - j), s.k, o.a.data() + i * o.lda, o.lda,
                    o.b.data() + j * o.ldb, o.ldb, row.data() + j, s.n, false);
      EXPECT_TRUE(bitwise_equal("row", row, {all.begin() + i * s.n, all.begin() + (i + 1) * s.n}));
    }
  }
}

}  // namespace
}  // namespace gantrain
