#include "cpu/matmul.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <shared_mutex>
#include <tuple>
#include <vector>

#include "cpu/packed_weights.h"
#include "cpu/row_product.h"
#include "cpu/tile_product.h"

namespace gantrain {
namespace {

constexpr int64_t kTileM = 128, kTileN = 384;
constexpr int64_t kRowsOfTiles = 1024;  // rows a chunk, of cpu/tile_product.h: it orders b anew for each

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

dnnl::memory::data_type dnnl_type(DType t) {
  return t == DType::kBF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

// One compiled product: m, n, k, lda, ldb, ldc, transpose a, transpose b, input type, output type,
// accumulate.
using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, DType, DType, bool>;

struct Compiled {
  dnnl::memory::desc a, b, c, scratch;
  dnnl::matmul primitive;
};

std::unique_ptr<Compiled> compile(const Key& key) {
  const auto& [m, n, k, lda, ldb, ldc, ta, tb, in, out, accumulate] = key;
  auto made = std::make_unique<Compiled>();
  using Dims = dnnl::memory::dims;
  made->a = {Dims{m, k}, dnnl_type(in), ta ? Dims{1, lda} : Dims{lda, 1}};
  made->b = {Dims{k, n}, dnnl_type(in), tb ? Dims{1, ldb} : Dims{ldb, 1}};
  made->c = {Dims{m, n}, dnnl_type(out), Dims{ldc, 1}};
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // a compiled product is shared between threads
  if (accumulate) {
    dnnl::post_ops ops;
    ops.append_sum(1.0f);
    attr.set_post_ops(ops);
  }
  const dnnl::matmul::primitive_desc pd(dnnl::matmul::desc(made->a, made->b, made->c), attr, engine());
  made->scratch = pd.scratchpad_desc();
  made->primitive = dnnl::matmul(pd);
  return made;
}

const Compiled& compiled(const Key& key) {
  static std::shared_mutex mutex;
  static std::map<Key, std::unique_ptr<Compiled>> cache;
  {
    std::shared_lock lock(mutex);
    if (const auto it = cache.find(key); it != cache.end()) return *it->second;
  }
  std::unique_lock lock(mutex);
  auto& slot = cache[key];
  if (!slot) slot = compile(key);
  return *slot;
}

void run(const Key& key, const void* a, const void* b, void* c) {
  try {
    const Compiled& p = compiled(key);
    thread_local dnnl::stream stream(engine());
    thread_local std::vector<std::byte> scratch;
    if (scratch.size() < p.scratch.get_size() + 64) scratch.resize(p.scratch.get_size() + 64);
    void* aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    p.primitive.execute(stream, {{DNNL_ARG_SRC, {p.a, engine(), const_cast<void*>(a)}},
                                 {DNNL_ARG_WEIGHTS, {p.b, engine(), const_cast<void*>(b)}},
                                 {DNNL_ARG_DST, {p.c, engine(), c}},
                                 {DNNL_ARG_SCRATCHPAD, {p.scratch, engine(), aligned}}});
  } catch (const dnnl::error& e) {
    throw Error(fmt::format("oneDNN refused a product of ({}, {}) by ({}, {}): {}", std::get<0>(key),
                            std::get<2>(key), std::get<2>(key), std::get<1>(key), e.what()));
  }
}

// oneDNN's kernels take so many rows at a time, eight with AVX-512, six and four without. What is left over
// goes through another kernel with another order of sums, so a tile's rows are a multiple: none is left over.
bool by_eight() {
  static const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  return avx512;
}
int64_t tile_rows() { return by_eight() ? kTileM : kTileM / 12 * 12; }
// Rows of a tile, rounded up to one of few sizes: each size is compiled once.
int64_t padded_rows(int64_t m) {
  const int64_t step = by_eight() ? 8 : 12, rows = (m + step - 1) / step * step;
  return rows <= kTileM / 2 ? rows : tile_rows();
}

// Cuts n into equal tiles of at most kTileN, multiples of 16 but for the last.
int64_t tile_columns(int64_t n) {
  const int64_t tiles = (n + kTileN - 1) / kTileN;
  return ((n + tiles - 1) / tiles + 15) / 16 * 16;
}

// The same for cpu/tile_product.h: some 20 us a chunk, and four chunks at least.
int64_t tile_columns_on_tiles(const MatMul& p, int64_t k) {
  const int64_t fitting = 9'000'000 / (std::min(kRowsOfTiles, p.m) * k), most = (p.n + 3) / 4;
  return (std::clamp<int64_t>(fitting, std::min<int64_t>(64, most), std::min(most, kTileN)) + 31) / 32 * 32;
}

bool on_tiles(DType dtype) { return dtype == DType::kBF16 && has_tile_product(); }

struct Tile {
  int64_t m, n, k;
  const std::byte *a, *b;
  void* c;
  int64_t ldc;
  DType c_dtype;
  bool accumulate;
};

// bf16 inputs on a CPU without bf16 instructions: the same values in f32.
void run_converted(const MatMul& p, const Tile& t) {
  const int64_t b_rows = p.transpose_b ? t.n : t.k, b_cols = p.transpose_b ? t.k : t.n;
  float* a = thread_scratch(2, t.m * t.k);
  float* b = thread_scratch(3, b_rows * b_cols);
  for (int64_t i = 0; i < t.m; ++i)
    convert_to_f32(reinterpret_cast<const bf16*>(t.a) + i * p.lda, a + i * t.k, t.k);
  for (int64_t i = 0; i < b_rows; ++i)
    convert_to_f32(reinterpret_cast<const bf16*>(t.b) + i * p.ldb, b + i * b_cols, b_cols);
  if (t.c_dtype == DType::kF32) {
    run({t.m, t.n, t.k, t.k, b_cols, t.ldc, false, p.transpose_b, DType::kF32, DType::kF32, t.accumulate}, a,
        b, t.c);
    return;
  }
  float* c = thread_scratch(4, t.m * t.n);
  run({t.m, t.n, t.k, t.k, b_cols, t.n, false, p.transpose_b, DType::kF32, DType::kF32, false}, a, b, c);
  for (int64_t i = 0; i < t.m; ++i) convert_to_bf16(c + i * t.n, static_cast<bf16*>(t.c) + i * t.ldc, t.n);
}

void run_tile(const MatMul& p, const Tile& t) {
  static const bool fast_bf16 = cpu_has_bf16();
  if (p.dtype == DType::kBF16 && !fast_bf16) return run_converted(p, t);
  run({t.m, t.n, t.k, p.lda, p.ldb, t.ldc, false, p.transpose_b, p.dtype, t.c_dtype, t.accumulate}, t.a, t.b,
      t.c);
}

// A tile whose number of rows is not one of the compiled ones: padded with zeros in thread scratch.
void run_padded(const MatMul& p, const Tile& t, int64_t rows) {
  const int64_t size = dtype_size(p.dtype), c_size = dtype_size(t.c_dtype);
  auto* a = reinterpret_cast<std::byte*>(thread_scratch(0, rows * t.k));
  auto* c = reinterpret_cast<std::byte*>(thread_scratch(1, rows * t.n));
  for (int64_t i = 0; i < t.m; ++i)
    std::memcpy(a + i * t.k * size, t.a + i * p.lda * size, static_cast<size_t>(t.k * size));
  std::memset(a + t.m * t.k * size, 0, static_cast<size_t>((rows - t.m) * t.k * size));
  if (t.accumulate) {
    std::memset(c, 0, static_cast<size_t>(rows * t.n * c_size));
    for (int64_t i = 0; i < t.m; ++i)
      std::memcpy(c + i * t.n * c_size, static_cast<std::byte*>(t.c) + i * t.ldc * c_size,
                  static_cast<size_t>(t.n * c_size));
  }
  MatMul padded = p;
  padded.lda = t.k;
  run_tile(padded, {rows, t.n, t.k, a, t.b, c, t.n, t.c_dtype, t.accumulate});
  for (int64_t i = 0; i < t.m; ++i)
    std::memcpy(static_cast<std::byte*>(t.c) + i * t.ldc * c_size, c + i * t.n * c_size,
                static_cast<size_t>(t.n * c_size));
}

// Rows a tile of the kernel for weights as they lie: what it goes through again for every few columns stays
// in a cache of the thread's own. Multiples of what the kernel takes at a time.
int64_t tile_of_rows(const MatMul& p) {
  constexpr int64_t kCache = 320 << 10;
  return std::clamp<int64_t>(kCache / (p.k * dtype_size(p.dtype)) / 6 * 6, 24, 126);
}

// Forward products, where the kernel for weights as they lie does them: it is level with oneDNN on many rows
// and two to four times as fast on few. Its bits do not depend on the cut, so the cut suits the threads:
// some 60 us a tile where that makes sixteen of them, else some 20, and four tiles at least. Wide tiles,
// because a tile's rows may have to be turned first. Tiles of one row of tiles run one after the other.
void run_by_rows(ThreadPool& pool, const MatMul& p) {
  constexpr int64_t kShort = 2'400'000, kLong = 3 * kShort;  // multiply-adds
  const int64_t size = dtype_size(p.dtype), tile_m = tile_of_rows(p), rows = std::min(tile_m, p.m);
  const int64_t tiles_m = (p.m + tile_m - 1) / tile_m, most = (p.n + 3) / 4;
  const int64_t fitting = (p.m * p.n * p.k >= 16 * kLong ? kLong : kShort) / (rows * p.k);
  const int64_t width = (std::clamp<int64_t>(fitting, std::min<int64_t>(24, most), most) + 3) / 4 * 4;
  const int64_t tiles_n = (p.n + width - 1) / width;
  pool.parallel_for(tiles_m * tiles_n, [&](int64_t index) {
    const int64_t m0 = index / tiles_n * tile_m, n0 = index % tiles_n * width;
    row_product(p.dtype, std::min(tile_m, p.m - m0), std::min(width, p.n - n0), p.k,
                static_cast<const std::byte*>(p.a) + m0 * p.lda * size, p.lda,
                static_cast<const std::byte*>(p.b) + n0 * p.ldb * size, p.ldb,
                static_cast<float*>(p.c) + m0 * p.ldc + n0, p.ldc, p.accumulate);
  });
}

// The same against packed rows: a chunk expands some of them for itself, as many as its cache holds, and
// takes all rows of a past them.
void run_by_packed_rows(ThreadPool& pool, const MatMul& p) {
  const int64_t size = dtype_size(p.dtype), most = (p.n + 3) / 4 * 4;
  const int64_t width = std::min(most, std::clamp<int64_t>((1 << 17) / p.k, 8, 96) / 4 * 4);
  pool.parallel_for((p.n + width - 1) / width, [&](int64_t index) {
    const int64_t n0 = index * width, n = std::min(width, p.n - n0);
    auto* b = reinterpret_cast<std::byte*>(thread_scratch(5, n * p.k));
    for (int64_t i = 0; i < n; ++i) p.packed->expand_row(n0 + i, 0, p.k, b + i * p.k * size);
    if (on_tiles(p.dtype)) {
      tile_product(true, p.m, n, p.k, static_cast<const bf16*>(p.a), p.lda, reinterpret_cast<const bf16*>(b),
                   p.k, static_cast<float*>(p.c) + n0, p.ldc, DType::kF32, p.accumulate);
      return;
    }
    const int64_t tile_m = tile_of_rows(p);
    for (int64_t m0 = 0; m0 < p.m; m0 += tile_m)
      row_product(p.dtype, std::min(tile_m, p.m - m0), n, p.k,
                  static_cast<const std::byte*>(p.a) + m0 * p.lda * size, p.lda, b, p.k,
                  static_cast<float*>(p.c) + m0 * p.ldc + n0, p.ldc, p.accumulate);
  });
}

// What a tile reads of b: rows and columns are counted from its first ones.
struct Operand {
  const std::byte* data;
  int64_t ld, row, column;
};

}  // namespace

void matmul(ThreadPool& pool, const MatMul& p) {
  if (p.m == 0 || p.n == 0) return;
  GT_CHECK(p.k > 0, "a product needs k > 0, got {}", p.k);
  GT_CHECK(p.dtype == DType::kF32 || p.dtype == DType::kBF16, "matmul inputs are f32 or bf16, got {}",
           dtype_name(p.dtype));
  GT_CHECK(p.c_dtype == DType::kF32 || (p.c_dtype == DType::kBF16 && !p.accumulate && p.k_range == 0),
           "matmul output is f32, or bf16 without accumulation, got {}", dtype_name(p.c_dtype));
  const bool tiles = on_tiles(p.dtype);
  if (p.transpose_b && p.c_dtype == DType::kF32 && p.k_range == 0 && (tiles || has_row_product(p.dtype))) {
    if (p.packed) return run_by_packed_rows(pool, p);
    if (!tiles) return run_by_rows(pool, p);
  }
  const int64_t size = dtype_size(p.dtype), c_size = dtype_size(p.c_dtype);
  const int64_t k_range = p.k_range > 0 && p.k_range < p.k ? p.k_range : p.k;
  const int64_t ranges = (p.k + k_range - 1) / k_range;
  int64_t width = tiles ? tile_columns_on_tiles(p, k_range) : tile_columns(p.n);
  const int64_t tile_m = tiles ? kRowsOfTiles : tile_rows(), tiles_m = (p.m + tile_m - 1) / tile_m;
  // Tile tn of columns, of rows tm, over range `range` of k.
  const auto product = [&](int64_t tm, int64_t tn, int64_t range, const Operand& b) {
    const int64_t m0 = tm * tile_m, n0 = tn * width, k0 = range * k_range;
    const int64_t row = (p.transpose_b ? n0 : k0) - b.row, column = (p.transpose_b ? k0 : n0) - b.column;
    Tile t{std::min(tile_m, p.m - m0),
           std::min(width, p.n - n0),
           std::min(k_range, p.k - k0),
           static_cast<const std::byte*>(p.a) + (m0 * p.lda + k0) * size,
           b.data + (row * b.ld + column) * size,
           static_cast<std::byte*>(p.c) + (m0 * p.ldc + n0) * c_size,
           p.ldc,
           p.c_dtype,
           p.accumulate};
    if (ranges > 1) {
      t.c = p.partials + (range * p.m + m0) * p.n + n0;
      t.ldc = p.n;
      t.accumulate = false;
    }
    if (tiles) {
      tile_product(p.transpose_b, t.m, t.n, t.k, reinterpret_cast<const bf16*>(t.a), p.lda,
                   reinterpret_cast<const bf16*>(t.b), b.ld, t.c, t.ldc, t.c_dtype, t.accumulate);
      return;
    }
    MatMul by = p;
    by.ldb = b.ld;
    const int64_t rows = padded_rows(t.m);
    if (rows == t.m)
      run_tile(by, t);
    else
      run_padded(by, t, rows);
  };
  if (!p.packed) {
    const int64_t tiles_n = (p.n + width - 1) / width;
    // Tiles of one column of tiles run one after the other: they share the part of b that was last read.
    pool.parallel_for(tiles_m * tiles_n * ranges, [&](int64_t index) {
      product(index % tiles_m, index / tiles_m % tiles_n, index / tiles_m / tiles_n,
              {static_cast<const std::byte*>(p.b), p.ldb, 0, 0});
    });
  } else {
    GT_CHECK(!p.transpose_b || ranges == 1, "a packed, transposed product is not cut into ranges of k");
    // As many columns of tiles at a time as the expansion has room for; narrower tiles where it has none for
    // one.
    const int64_t depth = p.transpose_b ? p.k : k_range, room = p.packed->room() / (depth * size);
    const auto outward = [&](int64_t n0, int64_t n1) {  // columns, in whole blocks
      constexpr int64_t kColumns = PackedWeights::kColumns;
      if (p.transpose_b) return std::pair(n0, n1);
      return std::pair(n0 / kColumns * kColumns, std::min(p.n, (n1 + kColumns - 1) / kColumns * kColumns));
    };
    const auto fits = [&](int64_t n0, int64_t n1) {
      const auto [low, high] = outward(n0, n1);
      return high - low <= room;
    };
    if (!fits(0, p.n) && room < width + 2 * PackedWeights::kColumns) width = PackedWeights::kColumns;
    const int64_t tiles_n = (p.n + width - 1) / width;
    for (int64_t range = 0; range < ranges; ++range)
      for (int64_t first = 0; first < tiles_n;) {
        const auto columns_to = [&](int64_t tile) { return std::min(p.n, tile * width); };
        int64_t last = first + 1;
        while (last < tiles_n && fits(first * width, columns_to(last + 1))) ++last;
        const auto [low, high] = outward(first * width, columns_to(last));
        const int64_t k0 = range * k_range, depth_here = std::min(k_range, p.k - k0);
        Operand b{nullptr, high - low, k0, low};
        if (p.transpose_b) {
          b = {nullptr, p.k, low, 0};
          b.data = static_cast<const std::byte*>(p.packed->expand(pool, low, high - low, 0, p.k));
        } else {
          b.data = static_cast<const std::byte*>(p.packed->expand(pool, k0, depth_here, low, high));
        }
        const int64_t tiles = last - first;
        pool.parallel_for(tiles_m * tiles, [&](int64_t index) {
          product(index % tiles_m, first + index / tiles_m, range, b);
        });
        first = last;
      }
  }
  if (ranges == 1) return;
  pool.parallel_ranges(p.m, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* c = static_cast<float*>(p.c) + i * p.ldc;
      for (int64_t r = 0; r < ranges; ++r) {
        const float* from = p.partials + (r * p.m + i) * p.n;
        if (r == 0 && !p.accumulate)
          std::memcpy(c, from, static_cast<size_t>(p.n) * sizeof(float));
        else
          for (int64_t j = 0; j < p.n; ++j) c[j] += from[j];
      }
    }
  });
}

int64_t matmul_partials(const MatMul& p) {
  if (p.k_range <= 0 || p.k_range >= p.k) return 0;
  return (p.k + p.k_range - 1) / p.k_range * p.m * p.n;
}

void matmul_serial(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
                   int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  run({m, n, k, lda, ldb, ldc, transpose_a, transpose_b, DType::kF32, DType::kF32, accumulate}, a, b, c);
}

bool cpu_has_bf16() { return __builtin_cpu_supports("avx512bf16") != 0; }

void convert_to_f32(const bf16* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

void convert_to_bf16(const float* from, bf16* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t u = std::bit_cast<uint32_t>(from[i]);
    const uint32_t nan = (u >> 16) | 0x40u, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    to[i].bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
}

}  // namespace gantrain
