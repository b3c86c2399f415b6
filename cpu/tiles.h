// What is done with the processor's matrix tiles (AMX), 16 rows of 64 bytes each: a tile of a is 16 rows of
// 32 values of k, one of b holds pairs of k of 16 columns, one of sums is 16 x 16 f32. A panel is two tiles
// of b side by side, 32 columns, for every step of k.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/dtype.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__AVX512BF16__) && \
    defined(__linux__)
#define GANTRAIN_TILES 1
#include <immintrin.h>

namespace gantrain::tiles {

constexpr int64_t kSide = 16;          // rows of a tile, and f32 columns
constexpr int64_t kDepth = 32;         // of k in a tile
constexpr int64_t kPanel = 2 * kSide;  // columns of b at a time, rows of a at a time
constexpr int64_t kTile = kSide * kDepth;

// All eight tiles at their full size.
inline void configure() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = kSide;
  _tile_loadconfig(&config);
}

typedef int32_t Vec16i __attribute__((vector_size(64)));
typedef int16_t Vec32s __attribute__((vector_size(64)));

// 16 x 16 values of 32 bits, rows `ld` and `to_ld` bytes apart, transposed. Shuffles by the compiler's own
// means (cpu/row_product.cc).
inline void transpose16(const void* source, int64_t ld, void* target, int64_t to_ld) {
  const auto* from = static_cast<const std::byte*>(source);
  auto* to = static_cast<std::byte*>(target);
  Vec16i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) std::memcpy(&r[i], from + i * ld, 64);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    t[i + 1] =
        __builtin_shufflevector(r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    for (int h = 0; h < 2; ++h) {
      r[i + 2 * h] = __builtin_shufflevector(t[i + h], t[i + 2 + h], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25,
                                             12, 13, 28, 29);
      r[i + 2 * h + 1] = __builtin_shufflevector(t[i + h], t[i + 2 + h], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11,
                                                 26, 27, 14, 15, 30, 31);
    }
  }
  // r[4 g + j] holds column 4 q + j of rows 4 g .. 4 g + 3 in its quarter q.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec16i a =
        __builtin_shufflevector(r[j], r[4 + j], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const Vec16i b =
        __builtin_shufflevector(r[j], r[4 + j], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const Vec16i c =
        __builtin_shufflevector(r[8 + j], r[12 + j], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const Vec16i d = __builtin_shufflevector(r[8 + j], r[12 + j], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14,
                                             15, 28, 29, 30, 31);
    t[j] = __builtin_shufflevector(a, c, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    t[4 + j] = __builtin_shufflevector(a, c, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    t[8 + j] = __builtin_shufflevector(b, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    t[12 + j] = __builtin_shufflevector(b, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) std::memcpy(to + i * to_ld, &t[i], 64);
}

// Columns [0, n) of b, n <= 16, and `depth` of k, at most 32, as a tile: row p holds pairs (2 p, 2 p + 1) of
// k of all columns. What is missing is zero.
inline void pack_rows(const bf16* b, int64_t ldb, int64_t n, int64_t depth, bf16* to) {
  if (n == kSide && depth == kDepth) {
    transpose16(b, ldb * 2, to, 64);
    return;
  }
  alignas(64) bf16 full[kTile] = {};
  for (int64_t i = 0; i < n; ++i) std::memcpy(full + i * kDepth, b + i * ldb, static_cast<size_t>(depth) * 2);
  transpose16(full, kDepth * 2, to, 64);
}
// The same of b (K, N), both tiles of a panel at once: neighbouring rows of b are interleaved.
inline void pack_columns(const bf16* b, int64_t ldb, int64_t n, int64_t depth, bf16* to) {
  for (int64_t p = 0; p < kSide; ++p) {
    Vec32s x{}, y{};
    const auto load = [&](int64_t row, Vec32s& v) {
      if (row < depth) std::memcpy(&v, b + row * ldb, static_cast<size_t>(n) * 2);
    };
    if (n == kPanel && 2 * p + 1 < depth) {
      std::memcpy(&x, b + 2 * p * ldb, 64);
      std::memcpy(&y, b + (2 * p + 1) * ldb, 64);
    } else {
      load(2 * p, x);
      load(2 * p + 1, y);
    }
    const Vec32s low = __builtin_shufflevector(x, y, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
                                               8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
    const Vec32s high =
        __builtin_shufflevector(x, y, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56,
                                25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
    std::memcpy(static_cast<void*>(to + p * kDepth), &low, 64);
    std::memcpy(static_cast<void*>(to + kTile + p * kDepth), &high, 64);
  }
}

// a (32, 32 steps), rows `lda` apart, times a panel of as many steps.
struct Term {
  const bf16* a;
  int64_t lda;
  const bf16* panel;
  int64_t steps;
};
// c (32, 16 kColumns) = or += the terms' sum, one chain in their order. kColumns is 2, or 1.
template <int kColumns = 2>
inline void chain(const Term* terms, int count, bool accumulate, float* c, int64_t ldc) {
  float *right = c + kSide, *low = c + kSide * ldc, *corner = low + kSide;
  if (accumulate) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(2, low, ldc * 4);
    if constexpr (kColumns == 2) {
      _tile_loadd(1, right, ldc * 4);
      _tile_loadd(3, corner, ldc * 4);
    }
  } else {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (kColumns == 2) {
      _tile_zero(1);
      _tile_zero(3);
    }
  }
  for (const Term* t = terms; t < terms + count; ++t) {
    const int64_t ld = t->lda * 2, steps = t->steps;
    const bf16 *a = t->a, *under = a + kSide * t->lda, *b = t->panel;
    for (int64_t s = 0; s < steps; ++s, a += kDepth, under += kDepth, b += 2 * kTile) {
      _tile_loadd(4, a, ld);
      _tile_loadd(6, b, kDepth * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, under, ld);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColumns == 2) {
        _tile_loadd(7, b + kTile, kDepth * 2);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(2, low, ldc * 4);
  if constexpr (kColumns == 2) {
    _tile_stored(1, right, ldc * 4);
    _tile_stored(3, corner, ldc * 4);
  }
}

}  // namespace gantrain::tiles
#endif
