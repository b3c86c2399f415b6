// Small f32 products inside one chunk of attention: C (m, n) = or += A (m, k) B (k, n), row-major, n a
// multiple of 16. Every output element is one chain of fused multiply-adds in order of k, whatever m is.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/registers.h"

namespace gantrain {

constexpr int64_t kBlockLanes = 16;
inline int64_t round_up_lanes(int64_t n) { return (n + kBlockLanes - 1) / kBlockLanes * kBlockLanes; }

namespace block_detail {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kRows = 8;
#else
constexpr int kWidth = 8, kRows = 6;  // 12 of 16 registers hold sums
#endif
typedef float Vec __attribute__((vector_size(kWidth * 4)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

template <int kM, int kN>
inline void tile(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                 bool accumulate) {
  Vec sum[kM][kN];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kN; ++j) sum[i][j] = accumulate ? load(c + i * ldc + j * kWidth) : Vec{};
  for (int64_t p = 0; p < k; ++p) {
    Vec row[kN];
#pragma GCC unroll 2
    for (int j = 0; j < kN; ++j) row[j] = in_register(load(b + p * ldb + j * kWidth));
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const float s = a[i * lda + p];
#pragma GCC unroll 2
      for (int j = 0; j < kN; ++j) sum[i][j] += s * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kN; ++j) store(c + i * ldc + j * kWidth, sum[i][j]);
}

template <int kN>
inline void columns(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                    int64_t ldc, bool accumulate) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows)
    tile<kRows, kN>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
  for (; i + 2 <= m; i += 2) tile<2, kN>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
  for (; i < m; ++i) tile<1, kN>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
}

}  // namespace block_detail

inline void block_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                          int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  using namespace block_detail;
  int64_t j = 0;
  for (; j + 2 * kWidth <= n; j += 2 * kWidth) columns<2>(m, k, a, lda, b + j, ldb, c + j, ldc, accumulate);
  for (; j < n; j += kWidth) columns<1>(m, k, a, lda, b + j, ldb, c + j, ldc, accumulate);
}

}  // namespace gantrain
