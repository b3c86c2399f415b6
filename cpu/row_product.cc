#include "cpu/row_product.h"

#include <algorithm>

#include "core/check.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace gantrain {

#if defined(__AVX512F__)
namespace {

constexpr int kRows = 6, kColumns = 4;  // 24 of 32 registers hold sums

struct F32 {
  using Value = float;
  using Vector = __m512;
  static constexpr int64_t kLanes = 16;
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector load_tail(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static __m512 add_product(__m512 sum, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, sum); }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
// Pairs of neighbours are multiplied and added at once.
struct Bf16 {
  using Value = bf16;
  using Vector = __m512i;
  static constexpr int64_t kLanes = 32;
  static Vector load(const bf16* p) { return _mm512_loadu_si512(p); }
  static Vector load_tail(const bf16* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p);
  }
  static __m512 add_product(__m512 sum, Vector a, Vector b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

// The sums over the lanes of four vectors. Shuffles by the compiler's own means: g++ 12 warns about the
// intrinsics' headers (GCC bug 105593).
typedef float Vec16 __attribute__((vector_size(64)));
typedef float Vec4 __attribute__((vector_size(16)));
inline __m128 lane_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
  // In every group of four lanes: a0 b0 a1 b1 + a2 b2 a3 b3, and so on.
  const auto low = [](Vec16 x, Vec16 y) {
    return __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
  };
  const auto high = [](Vec16 x, Vec16 y) {
    return __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  };
  const Vec16 ab = low(a, b) + high(a, b), cd = low(c, d) + high(c, d);
  const Vec16 all =
      __builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
      __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  const Vec4 q0 = __builtin_shufflevector(all, all, 0, 1, 2, 3),
             q1 = __builtin_shufflevector(all, all, 4, 5, 6, 7),
             q2 = __builtin_shufflevector(all, all, 8, 9, 10, 11),
             q3 = __builtin_shufflevector(all, all, 12, 13, 14, 15);
  return (q0 + q2) + (q1 + q3);
}

// kM rows of a by four rows of b, of which the last of the matrix may stand in for missing ones.
template <typename T, int kM>
inline void block(int64_t k, const typename T::Value* a, int64_t lda, const typename T::Value* const* b,
                  float* c, int64_t ldc, int64_t columns, bool accumulate) {
  __m512 sum[kM][kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) sum[i][j] = _mm512_setzero_ps();
  const auto step = [&](auto load) __attribute__((always_inline)) {
    typename T::Vector column[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) column[j] = load(b[j]);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const typename T::Vector row = load(a + i * lda);
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) sum[i][j] = T::add_product(sum[i][j], row, column[j]);
    }
  };
  int64_t p = 0;
  for (; p + T::kLanes <= k; p += T::kLanes)
    step([p](const typename T::Value* x) __attribute__((always_inline)) { return T::load(x + p); });
  if (p < k)
    step([ p, k ](const typename T::Value* x)
             __attribute__((always_inline)) { return T::load_tail(x + p, k - p); });
  const __mmask8 mask = static_cast<__mmask8>((1u << columns) - 1);
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) {
    __m128 y = lane_sums(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    if (accumulate) y = _mm_add_ps(_mm_maskz_loadu_ps(mask, c + i * ldc), y);
    _mm_mask_storeu_ps(c + i * ldc, mask, y);
  }
}

template <typename T>
void product(int64_t m, int64_t n, int64_t k, const typename T::Value* a, int64_t lda,
             const typename T::Value* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  using Value = typename T::Value;
  for (int64_t j = 0; j < n; j += kColumns) {
    const int64_t columns = std::min<int64_t>(kColumns, n - j);
    const Value* rows[kColumns];
    for (int64_t i = 0; i < kColumns; ++i) rows[i] = b + (j + std::min(i, columns - 1)) * ldb;
    // Few rows wait for memory: ask for the next weights while these are multiplied.
    if (m <= kRows && j + 2 * kColumns <= n) {
      const char* next = reinterpret_cast<const char*>(b + (j + kColumns) * ldb);
      const int64_t bytes = kColumns * ldb * static_cast<int64_t>(sizeof(Value));
      for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(next + at, _MM_HINT_T0);
    }
    int64_t i = 0;
    for (; i + kRows <= m; i += kRows)
      block<T, kRows>(k, a + i * lda, lda, rows, c + i * ldc + j, ldc, columns, accumulate);
    const auto rest = [&](auto size) {
      block<T, size()>(k, a + i * lda, lda, rows, c + i * ldc + j, ldc, columns, accumulate);
    };
    switch (m - i) {
      case 1:
        rest(std::integral_constant<int, 1>());
        break;
      case 2:
        rest(std::integral_constant<int, 2>());
        break;
      case 3:
        rest(std::integral_constant<int, 3>());
        break;
      case 4:
        rest(std::integral_constant<int, 4>());
        break;
      case 5:
        rest(std::integral_constant<int, 5>());
        break;
      default:
        break;
    }
  }
}

}  // namespace
#endif

bool has_row_product([[maybe_unused]] DType dtype) {
#if defined(__AVX512F__)
  if (dtype == DType::kF32) return true;
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  if (dtype == DType::kBF16) return true;
#endif
#endif
  return false;
}

void row_product(DType dtype, [[maybe_unused]] int64_t m, [[maybe_unused]] int64_t n,
                 [[maybe_unused]] int64_t k, [[maybe_unused]] const void* a, [[maybe_unused]] int64_t lda,
                 [[maybe_unused]] const void* b, [[maybe_unused]] int64_t ldb, [[maybe_unused]] float* c,
                 [[maybe_unused]] int64_t ldc, [[maybe_unused]] bool accumulate) {
  GT_CHECK(has_row_product(dtype), "no row product for {} in this build", dtype_name(dtype));
#if defined(__AVX512F__)
  if (dtype == DType::kF32) {
    product<F32>(m, n, k, static_cast<const float*>(a), lda, static_cast<const float*>(b), ldb, c, ldc,
                 accumulate);
    return;
  }
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  product<Bf16>(m, n, k, static_cast<const bf16*>(a), lda, static_cast<const bf16*>(b), ldb, c, ldc,
                accumulate);
#endif
#endif
}

}  // namespace gantrain
