#include "cpu/lora.h"

#include <algorithm>
#include <cstring>

namespace gantrain {
namespace {

// The whole of a rank fits where the frozen product would take a thousand columns, so these are loops over
// rows that the compiler vectorises, not calls of a library.

// y[j] += sum_p z[p] w[p, j], p in order, four at a time.
void expand_row(const float* z, int64_t rank, const float* w, int64_t n, float* y) {
  int64_t p = 0;
  for (; p + 4 <= rank; p += 4) {
    const float z0 = z[p], z1 = z[p + 1], z2 = z[p + 2], z3 = z[p + 3];
    const float *w0 = w + p * n, *w1 = w0 + n, *w2 = w1 + n, *w3 = w2 + n;
    for (int64_t j = 0; j < n; ++j) y[j] += (z0 * w0[j] + z1 * w1[j]) + (z2 * w2[j] + z3 * w3[j]);
  }
  for (; p < rank; ++p)
    for (int64_t j = 0; j < n; ++j) y[j] += z[p] * w[p * n + j];
}

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
typedef float Lanes __attribute__((vector_size(kLanes * 4)));

// sums[p, j .. j + kLanes) = sum over rows, in order, of u[row, p] * x[row, j ..], for kRanks values of p.
template <int kRanks>
void sum_rows(int64_t rows, const float* u, int64_t ldu, const float* x, int64_t ldx, float* sums,
              int64_t lds) {
  Lanes sum[kRanks] = {};
  for (int64_t i = 0; i < rows; ++i) {
    Lanes v;
    std::memcpy(&v, x + i * ldx, sizeof v);
#pragma GCC unroll 8
    for (int p = 0; p < kRanks; ++p) sum[p] += u[i * ldu + p] * v;
  }
  for (int p = 0; p < kRanks; ++p) std::memcpy(sums + p * lds, &sum[p], sizeof sum[p]);
}

// to(p, j, sum over rows of u[row, p] * x[row, j]): u (rows, rank), x (rows, ldx) of n columns. A chunk owns
// some columns; each sum has one order whatever the chunks are.
template <typename To>
void outer_sums(ThreadPool& pool, int64_t rows, int64_t rank, int64_t n, const float* u, const float* x,
                int64_t ldx, To to) {
  constexpr int64_t kColumns = 2 * kLanes;  // two cache lines of a row
  pool.parallel_ranges(n, kColumns, [&](int64_t begin, int64_t end) {
    float sums[8 * kLanes];
    for (int64_t j = begin; j < end; j += kLanes) {
      const int64_t count = std::min(kLanes, end - j);
      for (int64_t p = 0; p < rank;) {
        const int64_t ranks = rank - p >= 8 ? 8 : rank - p >= 4 ? 4 : 1;
        if (count == kLanes) {
          if (ranks == 8)
            sum_rows<8>(rows, u + p, rank, x + j, ldx, sums, kLanes);
          else if (ranks == 4)
            sum_rows<4>(rows, u + p, rank, x + j, ldx, sums, kLanes);
          else
            sum_rows<1>(rows, u + p, rank, x + j, ldx, sums, kLanes);
        } else {
          for (int64_t q = 0; q < ranks; ++q)
            for (int64_t l = 0; l < count; ++l) {
              float sum = 0.0f;
              for (int64_t i = 0; i < rows; ++i) sum += u[i * rank + p + q] * x[i * ldx + j + l];
              sums[q * kLanes + l] = sum;
            }
        }
        for (int64_t q = 0; q < ranks; ++q)
          for (int64_t l = 0; l < count; ++l) to(p + q, j + l, sums[q * kLanes + l]);
        p += ranks;
      }
    }
  });
}

// z (rows, rank) = scale * x w^T, w (rank, k)
void shrink(ThreadPool& pool, int64_t rows, int64_t rank, int64_t k, const float* x, int64_t ldx,
            const float* w, float scale, float* z) {
  matmul(pool, {.m = rows,
                .n = rank,
                .k = k,
                .a = x,
                .lda = ldx,
                .b = w,
                .ldb = k,
                .transpose_b = true,
                .c = z,
                .ldc = rank});
  for (int64_t i = 0; i < rows * rank; ++i) z[i] *= scale;
}

// to (rows, n) = or += what dropout leaves of from, rows [r0, r0 + rows) of the call, divided by 1 - dropout.
template <bool kAdd, typename Part>
void drop(ThreadPool& pool, const Part& p, int64_t r0, int64_t rows, int64_t n, const float* from,
          float* to) {
  const uint32_t bound = dropout_bound(p.dropout);
  const float scale = 1.0f / (1.0f - p.dropout);
  pool.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < n; j += 4) {
        const auto words = Philox{p.key}(static_cast<uint64_t>(r0 + i), static_cast<uint64_t>(j) / 4);
        for (int64_t l = 0; l < std::min<int64_t>(4, n - j); ++l) {
          const int64_t at = i * n + j + l;
          const float kept = words[static_cast<size_t>(l)] >= bound ? from[at] * scale : 0.0f;
          to[at] = kAdd ? to[at] + kept : kept;
        }
      }
  });
}

template <typename Part>
void pack(std::span<const Part> parts, float* packed) {
  for (const Part& p : parts) {
    const int64_t o = p.b.dim(0), r = p.b.dim(1);
    const float* b = p.b.template data<float>();
    for (int64_t i = 0; i < o; ++i)
      for (int64_t j = 0; j < r; ++j) packed[j * o + i] = b[i * r + j];
    packed += o * r;
  }
}

}  // namespace

void lora_pack(std::span<const LoraPart> parts, float* packed) { pack(parts, packed); }
void lora_pack(std::span<const LoraPartBackward> parts, float* packed) { pack(parts, packed); }

void lora_forward_block(ThreadPool& pool, std::span<const LoraPart> parts, const LoraScratch& s, int64_t r0,
                        int64_t rows, const float* x, float* y, int64_t ldy) {
  const float* packed = s.packed;
  for (const LoraPart& p : parts) {
    const int64_t r = p.a.dim(0), in = p.a.dim(1), o = p.b.dim(0);
    float* z = p.z.data<float>() + r0 * r;
    if (p.dropout > 0.0f) drop<false>(pool, p, r0, rows, in, x, s.masked);
    shrink(pool, rows, r, in, p.dropout > 0.0f ? s.masked : x, in, p.a.data<float>(), p.scale, z);
    pool.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) expand_row(z + i * r, r, packed, o, y + i * ldy + p.first);
    });
    packed += o * r;
  }
}

void lora_backward_block(ThreadPool& pool, std::span<const LoraPartBackward> parts, const LoraScratch& s,
                         int64_t r0, int64_t rows, const float* x, const float* dy, int64_t ldy, float* dx) {
  const float* packed = s.packed;
  for (const LoraPartBackward& p : parts) {
    const int64_t r = p.a.dim(0), in = p.a.dim(1), o = p.b.dim(0);
    const float *z = p.z.data<float>() + r0 * r, *a = p.a.data<float>(), *from = dy + p.first;
    float *da = p.da.data<float>(), *db = p.db.data<float>();
    shrink(pool, rows, r, o, from, ldy, packed, p.scale, s.dz);
    const bool dropout = p.dropout > 0.0f;
    if (dropout) drop<false>(pool, p, r0, rows, in, x, s.masked);
    outer_sums(pool, rows, r, in, s.dz, dropout ? s.masked : x, in,
               [&](int64_t q, int64_t j, float v) { da[q * in + j] += v; });
    if (dropout) std::memset(s.masked, 0, static_cast<size_t>(rows * in) * sizeof(float));
    float* expanded = dropout ? s.masked : dx;
    pool.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) expand_row(s.dz + i * r, r, a, in, expanded + i * in);
    });
    if (dropout) drop<true>(pool, p, r0, rows, in, s.masked, dx);
    outer_sums(pool, rows, r, o, z, from, ldy, [&](int64_t q, int64_t j, float v) { db[j * r + q] += v; });
    packed += o * r;
  }
}

}  // namespace gantrain
