#include "cpu/tile_product.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "cpu/matmul.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"

#if defined(GANTRAIN_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gantrain {

#if defined(GANTRAIN_TILES)
namespace {

using namespace tiles;

constexpr int64_t kFewRows = 4 * kPanel;  // up to here weights are not put into the order of the tiles

bool may_use_tiles() {
  if (!__builtin_cpu_supports("avx512bw")) return false;
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  constexpr long kRequest = 0x1023, kTileData = 18;    // ARCH_REQ_XCOMP_PERM
  return ::syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// store(i, j, rows, columns, sums) for every block of at most 32 x 32 sums of a b, which lie 32 apart; a
// block that is whole goes where direct(i, j) says, rows `direct_ld` apart, if it says so.
template <typename Direct, typename Store>
void product(bool transpose_b, int64_t m, int64_t n, int64_t k, const bf16* a, int64_t lda, const bf16* b,
             int64_t ldb, Direct direct, int64_t direct_ld, Store store) {
  const int64_t steps = (k + kDepth - 1) / kDepth, rest = k - (steps - 1) * kDepth;
  // Panels that lie ready at a time, some 200 KB; the last step of a where k is no multiple of 32; the last
  // rows of a where m is none.
  const int64_t panel_size = steps * 2 * kTile, whole_rows = m / kPanel * kPanel, rest_rows = m - whole_rows;
  const int64_t at_once = std::min(std::clamp<int64_t>(96 / steps, 1, 4), (n + kPanel - 1) / kPanel);
  const int64_t tails = rest < kDepth ? whole_rows * kDepth : 0;
  const int64_t last_size = rest_rows > 0 ? kPanel * steps * kDepth : 0;
  auto* panels = reinterpret_cast<bf16*>(thread_scratch(6, (at_once * panel_size + tails + last_size) / 2));
  bf16 *tail = panels + at_once * panel_size, *last = tail + tails;
  if (tails > 0) {
    std::memset(static_cast<void*>(tail), 0, static_cast<size_t>(tails) * 2);
    for (int64_t i = 0; i < whole_rows; ++i)
      std::memcpy(tail + i * kDepth, a + i * lda + (steps - 1) * kDepth, static_cast<size_t>(rest) * 2);
  }
  if (rest_rows > 0) {
    std::memset(static_cast<void*>(last), 0, static_cast<size_t>(last_size) * 2);
    for (int64_t i = 0; i < rest_rows; ++i)
      std::memcpy(last + i * steps * kDepth, a + (whole_rows + i) * lda, static_cast<size_t>(k) * 2);
  }
  configure();
  for (int64_t j0 = 0; j0 < n; j0 += at_once * kPanel) {
    const int64_t j1 = std::min(n, j0 + at_once * kPanel);
    for (int64_t j = j0; j < j1; j += kPanel) {
      const int64_t columns = std::min(kPanel, n - j);
      for (int64_t s = 0; s < steps; ++s) {
        const int64_t depth = s + 1 < steps ? kDepth : rest;
        bf16* to = panels + (j - j0) / kPanel * panel_size + s * 2 * kTile;
        if (!transpose_b) {
          pack_columns(b + s * kDepth * ldb + j, ldb, columns, depth, to);
          continue;
        }
        const bf16* from = b + j * ldb + s * kDepth;
        pack_rows(from, ldb, std::min(kSide, columns), depth, to);
        if (columns > kSide) pack_rows(from + kSide * ldb, ldb, columns - kSide, depth, to + kTile);
      }
    }
    for (int64_t i = 0; i < m; i += kPanel) {
      const bool inside = i < whole_rows;
      const bf16* rows = inside ? a + i * lda : last;
      const int64_t ld = inside ? lda : steps * kDepth, count = std::min(kPanel, m - i);
      const bf16* end = inside && tails > 0 ? tail + i * kDepth : nullptr;
      for (int64_t j = j0; j < j1; j += kPanel) {
        const bf16* panel = panels + (j - j0) / kPanel * panel_size;
        const int64_t columns = std::min(kPanel, n - j);
        const int64_t whole = end ? steps - 1 : steps;
        const Term terms[] = {{rows, ld, panel, whole}, {end, kDepth, panel + whole * 2 * kTile, 1}};
        const int count_of_terms = end ? 2 : 1;
        float* to = inside && columns == kPanel ? direct(i, j) : nullptr;
        if (to) {
          chain(terms, count_of_terms, false, to, direct_ld);
          continue;
        }
        alignas(64) float sums[kPanel * kPanel];
        if (columns > kSide)
          chain(terms, count_of_terms, false, sums, kPanel);
        else
          chain<1>(terms, count_of_terms, false, sums, kPanel);
        store(i, j, count, columns, sums);
      }
    }
  }
  _tile_release();
}

}  // namespace
#endif

bool has_tile_product() {
#if defined(GANTRAIN_TILES)
  static const bool may = may_use_tiles();
  return may;
#else
  return false;
#endif
}

void tile_product([[maybe_unused]] bool transpose_b, [[maybe_unused]] int64_t m, [[maybe_unused]] int64_t n,
                  [[maybe_unused]] int64_t k, [[maybe_unused]] const bf16* a, [[maybe_unused]] int64_t lda,
                  [[maybe_unused]] const bf16* b, [[maybe_unused]] int64_t ldb, [[maybe_unused]] void* c,
                  [[maybe_unused]] int64_t ldc, [[maybe_unused]] DType c_dtype,
                  [[maybe_unused]] bool accumulate) {
  GT_CHECK(has_tile_product(), "no product on tiles in this build or on this machine");
#if defined(GANTRAIN_TILES)
  const auto put = [&](int64_t i, int64_t j, const float* from, int64_t columns) {
    if (c_dtype == DType::kBF16) {
      bf16* to = static_cast<bf16*>(c) + i * ldc + j;
      if (columns == kPanel) {  // no sum here is so small that the instruction would make it zero
        const auto rounded = _mm512_cvtne2ps_pbh(_mm512_load_ps(from + kSide), _mm512_load_ps(from));
        std::memcpy(static_cast<void*>(to), &rounded, sizeof rounded);
      } else {
        convert_to_bf16(from, to, columns);
      }
      return;
    }
    float* to = static_cast<float*>(c) + i * ldc + j;
    if (accumulate)
      for (int64_t l = 0; l < columns; ++l) to[l] += from[l];
    else
      std::memcpy(to, from, static_cast<size_t>(columns) * 4);
  };
  if (transpose_b && m <= kFewRows && n > m) {
    // The weights' rows as they lie, and the few rows in the order of the tiles: c comes out transposed.
    product(
        true, n, m, k, b, ldb, a, lda, [](int64_t, int64_t) { return nullptr; }, 0,
        [&](int64_t j, int64_t i, int64_t columns, int64_t rows, const float* sums) {
          alignas(64) float turned[kPanel * kPanel];
          for (int64_t x = 0; x < rows; x += kSide)
            for (int64_t y = 0; y < columns; y += kSide)
              transpose16(sums + y * kPanel + x, kPanel * 4, turned + x * kPanel + y, kPanel * 4);
          for (int64_t r = 0; r < rows; ++r) put(i + r, j, turned + r * kPanel, columns);
        });
    return;
  }
  const bool plain = c_dtype == DType::kF32 && !accumulate;
  product(
      transpose_b, m, n, k, a, lda, b, ldb,
      [&](int64_t i, int64_t j) { return plain ? static_cast<float*>(c) + i * ldc + j : nullptr; }, ldc,
      [&](int64_t i, int64_t j, int64_t rows, int64_t columns, const float* sums) {
        for (int64_t r = 0; r < rows; ++r) put(i + r, j, sums + r * kPanel, columns);
      });
#endif
}

}  // namespace gantrain
