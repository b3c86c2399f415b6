#include "cpu/row_product.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "cpu/parallel.h"
#include "cpu/registers.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#define GANTRAIN_ROW_PRODUCT 1
#include <immintrin.h>
#endif

namespace gantrain {

#if defined(GANTRAIN_ROW_PRODUCT)
namespace {

constexpr int kColumns = 4;

// The sums over the lanes of four vectors, and what an instruction set does with a vector of floats. Shuffles
// by the compiler's own means: g++ 12 warns about the headers of AVX-512's intrinsics (GCC bug 105593).
typedef float Vec4 __attribute__((vector_size(16)));
#if defined(__AVX512F__)
using Floats = __m512;
constexpr int kRows = 6;  // 24 of 32 registers hold sums
constexpr int64_t kLanes = 16;
typedef float Vec16 __attribute__((vector_size(64)));
inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline Floats add_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
inline Vec4 lane_sums(Floats a, Floats b, Floats c, Floats d) {
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
#else
using Floats = __m256;
constexpr int kRows = 3;  // 12 of 16 registers hold sums
constexpr int64_t kLanes = 8;
typedef float Vec8 __attribute__((vector_size(32)));
inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline Floats add_product(Floats sum, Floats a, Floats b) { return _mm256_fmadd_ps(a, b, sum); }
inline Vec4 lane_sums(Floats a, Floats b, Floats c, Floats d) {
  const Vec8 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return __builtin_shufflevector(all, all, 0, 1, 2, 3) + __builtin_shufflevector(all, all, 4, 5, 6, 7);
}
#endif

// How a type's values are multiplied. A step takes kStep values of k in kParts loads; what load<part>() gives
// for a row and for a column is multiplied lane by lane. Turned: the type whose loads, one after the other,
// give the same vectors once these were stored.
struct F32 {
  using Value = float;
  using Vector = Floats;
  using Turned = F32;
  static constexpr int64_t kStep = kLanes;
  static constexpr int kParts = 1;
  template <int>
  static Vector load(const float* p) {
    return load_floats(p);
  }
  static Floats add(Floats sum, Vector a, Vector b) { return add_product(sum, a, b); }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
// Pairs of neighbours are multiplied and added at once.
struct Bf16 {
  using Value = bf16;
  using Vector = __m512i;
  using Turned = Bf16;
  static constexpr int64_t kStep = 2 * kLanes;
  static constexpr int kParts = 1;
  template <int>
  static Vector load(const bf16* p) {
    return _mm512_loadu_si512(p);
  }
  static Floats add(Floats sum, Vector a, Vector b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#else
// Without such instructions: the values as floats, first those at even places of a step, then those at odd
// ones, which takes one instruction each.
struct Bf16 {
  using Value = bf16;
  using Vector = Floats;
  using Turned = F32;
  static constexpr int64_t kStep = 2 * kLanes;
  static constexpr int kParts = 2;
  template <int kPart>
  static Vector load(const bf16* p) {
    typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
    Words pair;
    std::memcpy(&pair, p, sizeof pair);
    return reinterpret_cast<Floats>(kPart == 0 ? pair << 16 : pair & 0xffff0000u);
  }
  static Floats add(Floats sum, Vector a, Vector b) { return add_product(sum, a, b); }
};
#endif

// kM rows of a by four columns: rows of b, of which the last of the matrix may stand in for missing ones.
template <typename T, int kM>
inline void block(int64_t k, const typename T::Value* a, int64_t lda, const typename T::Value* const* b,
                  float* c, int64_t ldc, int64_t columns, bool accumulate) {
  Floats sum[kM][kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) sum[i][j] = zero();
  // The fewer of rows and columns stay in registers.
  const auto part = [&]<int kPart>(std::integral_constant<int, kPart>, const auto& row, const auto& column)
      __attribute__((always_inline)) {
    if constexpr (kM < kColumns) {
      typename T::Vector held[kM];
#pragma GCC unroll 8
      for (int i = 0; i < kM; ++i) held[i] = in_register(T::template load<kPart>(row(i)));
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) {
        const typename T::Vector y = in_register(T::template load<kPart>(column(j)));
#pragma GCC unroll 8
        for (int i = 0; i < kM; ++i) sum[i][j] = T::add(sum[i][j], held[i], y);
      }
    } else {
      typename T::Vector held[kColumns];
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) held[j] = T::template load<kPart>(column(j));
#pragma GCC unroll 8
      for (int i = 0; i < kM; ++i) {
        const typename T::Vector x = T::template load<kPart>(row(i));
#pragma GCC unroll 4
        for (int j = 0; j < kColumns; ++j) sum[i][j] = T::add(sum[i][j], x, held[j]);
      }
    }
  };
  const auto step = [&](const auto& row, const auto& column) __attribute__((always_inline)) {
    part(std::integral_constant<int, 0>(), row, column);
    if constexpr (T::kParts == 2) part(std::integral_constant<int, 1>(), row, column);
  };
  int64_t p = 0;
  for (; p + T::kStep <= k; p += T::kStep)
    step(
        [ a, lda, p ](int i) __attribute__((always_inline)) { return a + i * lda + p; },
        [ b, p ](int j) __attribute__((always_inline)) { return b[j] + p; });
  if (p < k) {
    typename T::Value rows[kM][T::kStep] = {}, ends[kColumns][T::kStep] = {};
    const auto bytes = static_cast<size_t>(k - p) * sizeof(typename T::Value);
    for (int i = 0; i < kM; ++i) std::memcpy(rows[i], a + i * lda + p, bytes);
    for (int j = 0; j < kColumns; ++j) std::memcpy(ends[j], b[j] + p, bytes);
    step(
        [&rows](int i) __attribute__((always_inline)) { return rows[i]; },
        [&ends](int j) __attribute__((always_inline)) { return ends[j]; });
  }
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i) {
    const Vec4 y = lane_sums(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    float* to = c + i * ldc;
    if (columns == kColumns) {
      Vec4 all = y;
      if (accumulate) {
        std::memcpy(&all, to, sizeof all);
        all += y;
      }
      std::memcpy(to, &all, sizeof all);
    } else {
      for (int64_t j = 0; j < columns; ++j) to[j] = accumulate ? to[j] + y[j] : y[j];
    }
  }
}

// All rows by four columns.
template <typename T>
void column_block(int64_t m, int64_t k, const typename T::Value* a, int64_t lda,
                  const typename T::Value* const* b, float* c, int64_t ldc, int64_t columns,
                  bool accumulate) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows)
    block<T, kRows>(k, a + i * lda, lda, b, c + i * ldc, ldc, columns, accumulate);
  const auto rest = [&]<int kM>(std::integral_constant<int, kM>) {
    if constexpr (kM < kRows) block<T, kM>(k, a + i * lda, lda, b, c + i * ldc, ldc, columns, accumulate);
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

// A row of k values as T loads it, stored for T::Turned; the end of the last step is zero.
template <typename T>
void turn(int64_t k, const typename T::Value* row, typename T::Turned::Value* to) {
  using Value = typename T::Value;
  auto* out = reinterpret_cast<std::byte*>(to);
  for (int64_t p = 0; p < k; p += T::kStep) {
    const Value* from = row + p;
    Value end[T::kStep] = {};
    if (p + T::kStep > k) {
      std::memcpy(end, from, static_cast<size_t>(k - p) * sizeof(Value));
      from = end;
    }
    const auto store = [&]<int kPart>(std::integral_constant<int, kPart>) {
      const typename T::Vector part = T::template load<kPart>(from);
      std::memcpy(out, &part, sizeof part);
      out += sizeof part;
    };
    store(std::integral_constant<int, 0>());
    if constexpr (T::kParts == 2) store(std::integral_constant<int, 1>());
  }
}

template <typename T>
void product(int64_t m, int64_t n, int64_t k, const typename T::Value* a, int64_t lda,
             const typename T::Value* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  using Value = typename T::Value;
  using Turned = typename T::Turned;
  constexpr bool other = !std::is_same_v<Turned, T>;
  constexpr auto size = static_cast<int64_t>(sizeof(Value));
  const auto each = [&](const auto& four) {
    for (int64_t j = 0; j < n; j += kColumns) {
      const int64_t columns = std::min<int64_t>(kColumns, n - j);
      const Value* rows[kColumns];
      for (int64_t i = 0; i < kColumns; ++i) rows[i] = b + (j + std::min(i, columns - 1)) * ldb;
      four(j, columns, rows);
    }
  };
  // Many rows: what is multiplied as another type is turned once. And weights in a mapped file lie anywhere:
  // a vector on two cache lines costs two loads each time.
  if (m > kRows && (other || reinterpret_cast<uintptr_t>(b) % 64 != 0 || ldb * size % 64 != 0)) {
    const int64_t width = (k + T::kStep - 1) / T::kStep * T::kStep, rows = kColumns + (other ? m : 0);
    auto* turned = reinterpret_cast<typename Turned::Value*>(
        thread_scratch(7, rows * width * static_cast<int64_t>(sizeof(typename Turned::Value)) / 4));
    if constexpr (other) {
      typename Turned::Value* all = turned + kColumns * width;
      for (int64_t i = 0; i < m; ++i) turn<T>(k, a + i * lda, all + i * width);
    }
    each([&](int64_t j, int64_t columns, const Value* const* from) {
      const typename Turned::Value* held[kColumns];
      for (int64_t i = 0; i < kColumns; ++i) {
        turn<T>(k, from[i], turned + i * width);
        held[i] = turned + i * width;
      }
      if constexpr (other)
        column_block<Turned>(m, width, turned + kColumns * width, width, held, c + j, ldc, columns,
                             accumulate);
      else
        column_block<T>(m, k, a, lda, held, c + j, ldc, columns, accumulate);
    });
    return;
  }
  each([&](int64_t j, int64_t columns, const Value* const* rows) {
    // Few rows wait for memory: ask for the next weights while these are multiplied.
    if (m <= kRows && j + 2 * kColumns <= n) {
      const char* next = reinterpret_cast<const char*>(b + (j + kColumns) * ldb);
      for (int64_t at = 0; at < kColumns * ldb * size; at += 64) _mm_prefetch(next + at, _MM_HINT_T0);
    }
    column_block<T>(m, k, a, lda, rows, c + j, ldc, columns, accumulate);
  });
}

}  // namespace
#endif

bool has_row_product([[maybe_unused]] DType dtype) {
#if defined(GANTRAIN_ROW_PRODUCT)
  return dtype == DType::kF32 || dtype == DType::kBF16;
#else
  return false;
#endif
}

void row_product(DType dtype, [[maybe_unused]] int64_t m, [[maybe_unused]] int64_t n,
                 [[maybe_unused]] int64_t k, [[maybe_unused]] const void* a, [[maybe_unused]] int64_t lda,
                 [[maybe_unused]] const void* b, [[maybe_unused]] int64_t ldb, [[maybe_unused]] float* c,
                 [[maybe_unused]] int64_t ldc, [[maybe_unused]] bool accumulate) {
  GT_CHECK(has_row_product(dtype), "no row product for {} in this build", dtype_name(dtype));
#if defined(GANTRAIN_ROW_PRODUCT)
  if (dtype == DType::kF32)
    product<F32>(m, n, k, static_cast<const float*>(a), lda, static_cast<const float*>(b), ldb, c, ldc,
                 accumulate);
  else
    product<Bf16>(m, n, k, static_cast<const bf16*>(a), lda, static_cast<const bf16*>(b), ldb, c, ldc,
                  accumulate);
#endif
}

}  // namespace gantrain
