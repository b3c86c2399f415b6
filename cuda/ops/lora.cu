#include "cuda/ops/lora.h"

#include <algorithm>

#include "cuda/kernels/lora.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"

namespace gantrain::cuda {

namespace {

void scale(const Context& context, float* x, float factor, int64_t count) {
  constexpr int kThreads = 256;
  const bool wide = count % 4 == 0 && aligned_to(16, x);
  launch(wide ? scale_kernel<4, kThreads> : scale_kernel<1, kThreads>,
         blocks_for(count, wide ? 4 * kThreads : kThreads), kThreads, 0, context.stream, x, factor, count);
}

// to = or += what dropout leaves of from (n, width), divided by 1 - dropout.
template <bool kAdd, typename Part>
void drop(const Context& context, const Part& p, int64_t n, int64_t width, const float* from, float* to) {
  constexpr int kThreads = 64;
  const bool wide = width % 4 == 0 && aligned_to(16, from, to);
  launch(wide ? dropout_kernel<kAdd, 4, kThreads> : dropout_kernel<kAdd, 1, kThreads>,
         dim3(blocks_for(n, 1), blocks_for(width, 4 * kThreads)), kThreads, 0, context.stream, from, to,
         p.key, dropout_bound(p.dropout), 1.0f / (1.0f - p.dropout), static_cast<int>(width));
}

// Ranks of all adapters side by side, each from a multiple of eight on.
int64_t ranks_of(const auto& p) { return (p.a.dim(0) + 7) / 8 * 8; }
template <typename Part>
int64_t all_ranks(std::span<const Part> parts) {
  int64_t ranks = 0;
  for (const Part& p : parts) ranks += ranks_of(p);
  return ranks;
}
template <typename Part>
AdapterPlaces places_of(std::span<const Part> parts) {
  AdapterPlaces all{};
  for (const Part& p : parts) {
    AdapterPlace& place = all.of[all.count++];
    place = {.offset = all.ranks,
             .rank = static_cast<int>(p.a.dim(0)),
             .first = p.first,
             .outputs = p.b.dim(0),
             .scale = p.scale,
             .a = raw<float>(p.a),
             .b = raw<float>(p.b),
             .z = nullptr,
             .to = nullptr,
             .da = nullptr,
             .db = nullptr};
    if constexpr (std::is_same_v<Part, LoraPart>) {
      place.to = raw<float>(p.z);
    } else {
      place.z = raw<float>(p.z);
      place.da = raw<float>(p.da);
      place.db = raw<float>(p.db);
    }
    all.ranks += static_cast<int>(ranks_of(p));
  }
  return all;
}
template <typename Part>
bool fuses(const Context& context, std::span<const Part> parts, const Matmul& product) {
  return !parts.empty() && parts.size() <= kMostAdapters && matmul_always_fuses(context, product) &&
         std::all_of(parts.begin(), parts.end(), [](const Part& p) { return p.dropout == 0.0f; });
}
void pack(const Context& context, const AdapterPlaces& places, const LoraPieces& s, __nv_bfloat16* z,
          int64_t in, int64_t out, int64_t n) {
  constexpr int kThreads = 256;
  launch(lora_pack_kernel<kThreads>, blocks_for(places.ranks * (in + out + (z ? n : 0)) / 8, kThreads),
         kThreads, 0, context.stream, places, s.a, s.b, z, in, out, n);
}
// The blocks of lora_ranks_kernel: at most 16 splits of the columns, of two tiles at least, by the width
// alone, so that any number of rows gives the same z; at most 32 pieces of the rows.
struct RanksGrid {
  dim3 grid;
  int64_t rows;         // of a piece
  int tiles;            // of a split
  int64_t sums, parts;  // floats
};
RanksGrid ranks_grid(int64_t n, int64_t ranks, int64_t width) {
  constexpr int64_t kSplits = 16, kLeastTiles = 2, kPieces = 32;
  const int64_t all = blocks_for(width, kRankColumns);
  const int64_t tiles = std::max(kLeastTiles, int64_t{blocks_for(all, kSplits)});
  const int64_t rows = std::max<int64_t>(1, blocks_for(blocks_for(n, kRankRows), kPieces)) * kRankRows;
  const dim3 grid(blocks_for(all, tiles), blocks_for(ranks, kRanksAtOnce), blocks_for(n, rows));
  return {grid, rows, static_cast<int>(tiles), int64_t{grid.x} * n * ranks, int64_t{grid.z} * ranks * width};
}
// All adapters' z of product.a, or dz and the shares of dB.
template <bool kBackward>
void ranks_of_rows(const Context& context, const AdapterPlaces& places, const Matmul& product,
                   const LoraPieces& s, const float* row_scale) {
  const RanksGrid g = ranks_grid(product.m, places.ranks, product.k);
  const int64_t arrivals = int64_t{g.grid.y} * blocks_for(product.m, kRankRows);
  GT_CHECK(arrivals <= kMostArrivals, "adapters of {} ranks on {} rows", places.ranks, product.m);
  bool wide = true;
  for (int i = 0; i < places.count; ++i) wide &= aligned_to(16, places.of[i].to);
  launch(lora_ranks_kernel<kBackward>, g.grid, kRankThreads, lora_ranks_shared(kBackward), context.stream,
         LoraRows{.places = places,
                  .packed = kBackward ? s.dz : s.z,
                  .row_scale = row_scale,
                  .keeps = !kBackward,
                  .wide = wide},
         static_cast<const __nv_bfloat16*>(product.a), product.lda, kBackward ? s.b : s.a,
         kBackward ? s.z : nullptr, product.m, product.k, g.rows, g.tiles, s.sums, s.parts_b,
         context.arrivals);
}

// The blocks of lora_gradient_kernel, by shapes alone: as many pieces of the rows as make a thousand blocks,
// at most 16, of 256 rows at least.
struct GradientGrid {
  dim3 grid;
  int64_t rows;   // of a piece
  int64_t parts;  // floats
};
GradientGrid gradient_grid(int64_t n, int64_t ranks, int64_t columns) {
  constexpr int64_t kBlocks = 1024, kPieces = 16, kLeast = 256;
  const unsigned across = blocks_for(columns, kGradientColumns), down = blocks_for(ranks, kGradientRanks);
  const int64_t pieces = std::min(kPieces, int64_t{blocks_for(kBlocks, int64_t{across} * down)});
  const int64_t rows =
      std::max(kLeast, int64_t{blocks_for(blocks_for(n, pieces), kGradientDepth)} * int64_t{kGradientDepth});
  const dim3 grid(across, down, blocks_for(n, rows));
  return {grid, rows, int64_t{grid.z} * ranks * columns};
}

}  // namespace

bool lora_fuses(const Context& context, std::span<const LoraPart> parts, const Matmul& product) {
  return fuses(context, parts, product);
}
bool lora_fuses(const Context& context, std::span<const LoraPartBackward> parts, const Matmul& product,
                const void* x) {
  return fuses(context, parts, product) && aligned_to(16, x);
}

LoraPieces lora_pieces(Pieces& p, std::span<const LoraPart> parts, int64_t n, int64_t in, int64_t out) {
  const int64_t ranks = all_ranks(parts);
  return {.a = p.take<__nv_bfloat16>(ranks * in),
          .b = p.take<__nv_bfloat16>(out * ranks),
          .z = p.take<__nv_bfloat16>(n * ranks),
          .dz = nullptr,
          .sums = p.take<float>(ranks_grid(n, ranks, in).sums),
          .parts_a = nullptr,
          .parts_b = nullptr};
}
LoraPieces lora_pieces(Pieces& p, std::span<const LoraPartBackward> parts, int64_t n, int64_t in,
                       int64_t out) {
  const int64_t ranks = all_ranks(parts);
  const RanksGrid g = ranks_grid(n, ranks, out);
  return {.a = p.take<__nv_bfloat16>(ranks * in),
          .b = p.take<__nv_bfloat16>(out * ranks),
          .z = p.take<__nv_bfloat16>(n * ranks),
          .dz = p.take<__nv_bfloat16>(n * ranks),
          .sums = p.take<float>(g.sums),
          .parts_a = p.take<float>(gradient_grid(n, ranks, in).parts),
          .parts_b = p.take<float>(g.parts)};
}

void lora_extend(const Context& context, std::span<const LoraPart> parts, const LoraPieces& s,
                 const float* row_scale, Matmul* product) {
  const AdapterPlaces places = places_of(parts);
  pack(context, places, s, nullptr, product->k, product->n, product->m);
  ranks_of_rows<false>(context, places, *product, s, row_scale);
  product->more = {.k = places.ranks, .a = s.z, .lda = places.ranks, .b = s.b, .ldb = places.ranks};
}
void lora_extend(const Context& context, std::span<const LoraPartBackward> parts, const LoraPieces& s,
                 Matmul* product) {
  const AdapterPlaces places = places_of(parts);
  pack(context, places, s, s.z, product->n, product->k, product->m);
  ranks_of_rows<true>(context, places, *product, s, nullptr);
  product->more = {.k = places.ranks, .a = s.dz, .lda = places.ranks, .b = s.a, .ldb = product->n};
}
void lora_gradients(const Context& context, std::span<const LoraPartBackward> parts, const LoraPieces& s,
                    const Matmul& product, const LoraInput& input) {
  constexpr int kThreads = 128;
  const AdapterPlaces places = places_of(parts);
  const int64_t n = product.m, in = product.n, out = product.k;
  const GradientGrid g = gradient_grid(n, places.ranks, in);
  with_type(input.type, [&]<typename T>(Tag<T>) {
    launch(lora_gradient_kernel<T>, g.grid, kGradientThreads, 0, context.stream, s.dz,
           static_cast<const T*>(input.x), input.rstd, places.ranks, n, in, g.rows, s.parts_a);
  });
  const AdapterShares of_b{.parts = s.parts_b,
                           .pieces = static_cast<int>(ranks_grid(n, places.ranks, out).grid.z),
                           .columns = out};
  const AdapterShares of_a{.parts = s.parts_a, .pieces = static_cast<int>(g.grid.z), .columns = in};
  launch(lora_sum_kernel<kThreads>, blocks_for(places.ranks / 4 * (in + out), kThreads), kThreads, 0,
         context.stream, places, of_b, of_a, input.gain);
}

int64_t lora_ranks(std::span<const LoraPartBackward> parts) {
  int64_t rank = 0;
  for (const LoraPartBackward& p : parts) rank = std::max(rank, p.a.dim(0));
  return rank;
}

void lora_forward(const Context& context, std::span<const LoraPart> parts, int64_t n, const float* x,
                  float* y, int64_t ldy, float* masked) {
  for (const LoraPart& p : parts) {
    const int64_t r = p.a.dim(0), in = p.a.dim(1), o = p.b.dim(0);
    float *z = raw<float>(p.z), *to = y + p.first;
    if (p.dropout > 0.0f) drop<false>(context, p, n, in, x, masked);
    matmul(context, {.m = n,
                     .n = r,
                     .k = in,
                     .a = p.dropout > 0.0f ? masked : x,
                     .lda = in,
                     .b = p.a.raw(),
                     .ldb = in,
                     .transpose_b = true,
                     .c = z,
                     .ldc = r});
    scale(context, z, p.scale, n * r);
    matmul(context, {.m = n,
                     .n = o,
                     .k = r,
                     .a = z,
                     .lda = r,
                     .b = p.b.raw(),
                     .ldb = r,
                     .transpose_b = true,
                     .c = to,
                     .ldc = ldy,
                     .addend = to});
  }
}

void lora_backward(const Context& context, std::span<const LoraPartBackward> parts, int64_t n, const float* x,
                   const float* dy, int64_t ldy, float* dx, float* dz, float* masked) {
  for (const LoraPartBackward& p : parts) {
    const int64_t r = p.a.dim(0), in = p.a.dim(1), o = p.b.dim(0);
    const float* from = dy + p.first;
    float *da = raw<float>(p.da), *db = raw<float>(p.db);
    matmul(context,
           {.m = n, .n = r, .k = o, .a = from, .lda = ldy, .b = p.b.raw(), .ldb = r, .c = dz, .ldc = r});
    scale(context, dz, p.scale, n * r);
    const bool dropout = p.dropout > 0.0f;
    if (dropout) drop<false>(context, p, n, in, x, masked);
    matmul(context, {.m = r,
                     .n = in,
                     .k = n,
                     .a = dz,
                     .lda = r,
                     .transpose_a = true,
                     .b = dropout ? masked : x,
                     .ldb = in,
                     .c = da,
                     .ldc = in,
                     .addend = da});
    matmul(context, {.m = n,
                     .n = in,
                     .k = r,
                     .a = dz,
                     .lda = r,
                     .b = p.a.raw(),
                     .ldb = in,
                     .c = dropout ? masked : dx,
                     .ldc = in,
                     .addend = dropout ? nullptr : dx});
    if (dropout) drop<true>(context, p, n, in, masked, dx);
    matmul(context, {.m = o,
                     .n = r,
                     .k = n,
                     .a = from,
                     .lda = ldy,
                     .transpose_a = true,
                     .b = p.z.raw(),
                     .ldb = r,
                     .c = db,
                     .ldc = r,
                     .addend = db});
  }
}

}  // namespace gantrain::cuda
