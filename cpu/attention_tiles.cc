// Attention's backward on matrix tiles. A chunk owns a range of queries of one segment and the G query heads
// that share one key head; it goes over the keys that they see in blocks, makes the scores and their gradient
// once, and keeps dq in its cache. What it adds to keys and values goes to a place of its own in scratch;
// these are then summed in the order of the chunks, so the order of every sum is fixed.
//
// Products take bf16 and sum in f32. Scores decide the size of exp: q and k, which are kept in f16, enter
// them as two bf16 each (the product of the two small halves, below 2^-16 of a term, is left out), and so
// does v, of whose product with d_o a like term is subtracted. Softmax's weights, the scores' gradient, and q
// and k as its partners are rounded to bf16 as the gradients that they end in are.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/attention.h"
#include "cpu/matmul.h"
#include "cpu/rows.h"
#include "cpu/tile_product.h"
#include "cpu/tiles.h"
#include "cpu/vec_math.h"

namespace gantrain {

#if defined(GANTRAIN_TILES)
namespace {

using namespace tiles;

constexpr int64_t kKeys = 64;           // keys a block
constexpr int64_t kRows = 128;          // (query, head) rows a block
constexpr int64_t kRowsOfChunk = 1536;  // about so many rows a chunk

struct QueryRange : QueryTask {
  int64_t keys;    // that they see, the segment's first ones
  int64_t offset;  // keys of the ranges before
};
std::vector<QueryRange> ranges_of(const AttentionPlan& plan, int64_t group) {
  std::vector<QueryRange> ranges;
  int64_t offset = 0;
  for (const QueryTask& t : query_tasks(plan, std::max<int64_t>(1, kRowsOfChunk / group))) {
    const AttentionSegment& s = plan.segments[static_cast<size_t>(t.segment)];
    const int64_t keys = span_keys(plan, s) + (s.kv_begin >= 0 ? t.begin + t.count : 0);
    ranges.push_back({t, keys, offset});
    offset += keys;
  }
  return ranges;
}

typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(64)));

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <typename S>
class TileBackward {
 public:
  TileBackward(ThreadPool& pool, const AttentionBackward& a)
      : a_(a),
        z_(sizes(a)),
        dp_(up(z_.d, kPanel)),
        q_(a.q.data<S>()),
        k_(a.k.data<S>()),
        v_(a.v.data<S>()),
        o_(a.o.data<S>()),
        d_o_(a.d_o.data<bf16>()),
        to_(a, z_),
        ranges_(ranges_of(*a.plan, z_.group)),
        partial_(static_cast<float*>(a.scratch.raw())) {
    const int64_t row = z_.h * z_.d;
    pool.parallel_ranges(z_.n, 256, [&](int64_t begin, int64_t end) {  // rows of no segment
      for (int64_t i = begin; i < end; ++i)
        std::memset(static_cast<void*>(to_.q(i)), 0, static_cast<size_t>(row) * 2);
    });
    pool.parallel_for(static_cast<int64_t>(ranges_.size()) * z_.k,
                      [&](int64_t i) { chunk(ranges_[static_cast<size_t>(i / z_.k)], i % z_.k); });
    const std::vector<std::vector<Part>> parts = parts_of_keys();
    pool.parallel_for(static_cast<int64_t>(parts.size()),
                      [&](int64_t i) { sum(i * kKeys, parts[static_cast<size_t>(i)]); });
  }

 private:
  static constexpr bool kSplit = !std::is_same_v<S, bf16>;  // what is kept has more bits than bf16

  // The part of one range's keys that lies in one block of key rows.
  struct Part {
    const QueryRange* range;
    int32_t row, count;  // key rows
    int64_t key;         // place of `row` among the range's keys
  };
  std::vector<std::vector<Part>> parts_of_keys() const {
    std::vector<std::vector<Part>> parts(static_cast<size_t>((z_.m + kKeys - 1) / kKeys));
    for (const QueryRange& range : ranges_) {
      const AttentionSegment& s = a_.plan->segments[static_cast<size_t>(range.segment)];
      int64_t key = 0;
      const auto add = [&](int64_t begin, int64_t count) {
        for (int64_t row = begin; row < begin + count;) {
          const int64_t end = std::min(begin + count, (row / kKeys + 1) * kKeys);
          parts[static_cast<size_t>(row / kKeys)].push_back(
              {&range, static_cast<int32_t>(row), static_cast<int32_t>(end - row), key + row - begin});
          row = end;
        }
        key += count;
      };
      for (int32_t p = 0; p < s.span_count; ++p) {
        const KvSpan& span = a_.plan->spans[static_cast<size_t>(s.span_begin + p)];
        add(span.begin, span.count);
      }
      if (s.kv_begin >= 0) add(s.kv_begin, range.begin + range.count);
    }
    return parts;
  }
  float* partial(const QueryRange& range, int64_t head, int64_t key) const {
    return partial_ + (range.offset * z_.k + head * range.keys + key) * 2 * z_.d;
  }
  // Rows [base, base + 64) of keys: what all ranges add to them.
  void sum(int64_t base, const std::vector<Part>& parts) const {
    const int64_t count = std::min(kKeys, z_.m - base), row = z_.k * z_.d;
    float* total = thread_scratch(5, 2 * count * row);
    std::memset(total, 0, static_cast<size_t>(2 * count * row) * 4);
    for (const Part& part : parts)
      for (int64_t head = 0; head < z_.k; ++head)
        for (int64_t i = 0; i < part.count; ++i) {
          const float* from = partial(*part.range, head, part.key + i);
          float* to = total + ((part.row - base + i) * z_.k + head) * z_.d;
          for (int64_t j = 0; j < z_.d; ++j) to[j] += from[j];
          for (int64_t j = 0; j < z_.d; ++j) to[count * row + j] += from[z_.d + j];
        }
    for (int64_t i = 0; i < count; ++i) {
      convert_to_bf16(total + i * row, to_.k(base + i), row);
      convert_to_bf16(total + (count + i) * row, to_.v(base + i), row);
    }
  }

  struct Work {
    bf16 *qh, *ql, *d_o;      // (R, dp): q's two halves, d_o
    bf16 *qt, *d_ot;          // (dp, R): q's large half and d_o
    float* dq;                // (R, dp)
    float *lse, *delta;       // (R)
    bf16* rows;               // (64, dp)
    bf16 *kh, *kl, *vh, *vl;  // panels of the block's keys and values, transposed
    bf16* kc;                 // panels of its keys
    float *dkt, *dvt;         // (dp, 64)
    float* turned;            // (64, dp)
    float *s, *dp;            // (128, 64): scores, d_o v^T
    bf16* ds;                 // (128, 64)
    bf16 *pi, *dsi;           // panels of weights and of the scores' gradient: rows are k
  };
  Work work(int64_t rows) const {
    Work w{};
    int64_t floats = 0;
    const auto lay = [&](std::byte* base) {
      floats = 0;
      const auto take = [&](int64_t count) {
        void* p = base ? base + floats * 4 : nullptr;
        floats += up(count, 16);
        return p;
      };
      const auto half = [&](int64_t count) { return static_cast<bf16*>(take(count / 2)); };
      const auto full = [&](int64_t count) { return static_cast<float*>(take(count)); };
      for (bf16** p : {&w.qh, &w.ql, &w.d_o, &w.qt, &w.d_ot}) *p = half(rows * dp_);
      w.dq = full(rows * dp_);
      w.lse = full(rows);
      w.delta = full(rows);
      for (bf16** p : {&w.rows, &w.kh, &w.kl, &w.vh, &w.vl, &w.kc}) *p = half(kKeys * dp_);
      for (float** p : {&w.dkt, &w.dvt, &w.turned}) *p = full(kKeys * dp_);
      w.s = full(kRows * kKeys);
      w.dp = full(kRows * kKeys);
      for (bf16** p : {&w.ds, &w.pi, &w.dsi}) *p = half(kRows * kKeys);
    };
    lay(nullptr);
    lay(reinterpret_cast<std::byte*>(thread_scratch(5, floats)));
    return w;
  }

  // One row's two halves; what is behind d is zero already.
  void split(const S* from, bf16* high, bf16* low) const {
    float x[kPanel];
    for (int64_t j0 = 0; j0 < z_.d; j0 += kPanel) {
      const int64_t count = std::min(kPanel, z_.d - j0);
      widen(from + j0, x, count);
      convert_to_bf16(x, high + j0, count);
      if (!low) continue;
      for (int64_t j = 0; j < count; ++j) x[j] -= static_cast<float>(high[j0 + j]);
      convert_to_bf16(x, low + j0, count);
    }
  }
  // (rows, dp) to (dp, rows).
  void turn(const bf16* from, int64_t rows, bf16* to) const {
    alignas(64) bf16 pair[2 * kTile];
    for (int64_t r = 0; r < rows; r += kDepth)
      for (int64_t c = 0; c < dp_; c += kPanel) {
        pack_columns(from + r * dp_ + c, dp_, kPanel, kDepth, pair);
        transpose16(pair, kDepth * 2, to + c * rows + r, rows * 2);
        transpose16(pair + kTile, kDepth * 2, to + (c + kSide) * rows + r, rows * 2);
      }
  }
  // 64 rows of keys or values as panels of their transpose.
  void pack_keys(const bf16* from, bf16* to) const {
    const int64_t steps = dp_ / kDepth;
    for (int64_t n = 0; n < kKeys; n += kSide)
      for (int64_t s = 0; s < steps; ++s)
        pack_rows(from + n * dp_ + s * kDepth, dp_, kSide, kDepth,
                  to + ((n / kPanel * steps + s) * 2 + n / kSide % 2) * kTile);
  }

  void chunk(const QueryRange& range, int64_t head) const {
    const AttentionSegment& s = a_.plan->segments[static_cast<size_t>(range.segment)];
    const int64_t count = range.count * z_.group, rows = up(count, kPanel), steps = dp_ / kDepth;
    const int64_t spans = span_keys(*a_.plan, s);
    const bool causal = s.kv_begin >= 0;
    const auto offset = [&](int64_t r) {
      return ((s.q_begin + range.begin + r / z_.group) * z_.h + head * z_.group + r % z_.group) * z_.d;
    };
    const Work w = work(rows);
    for (bf16* x : {w.qh, w.ql, w.d_o})
      std::memset(static_cast<void*>(x), 0, static_cast<size_t>(rows * dp_) * 2);
    std::memset(w.dq, 0, static_cast<size_t>(rows * dp_) * 4);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = offset(r);
      split(q_ + at, w.qh + r * dp_, kSplit ? w.ql + r * dp_ : nullptr);
      std::memcpy(w.d_o + r * dp_, d_o_ + at, static_cast<size_t>(z_.d) * 2);
      w.lse[r] = a_.lse.data<float>()[at / z_.d];
      float dot = 0;  // <o, d_o>: the row term of softmax's backward
      float x[kPanel], y[kPanel];
      for (int64_t j0 = 0; j0 < z_.d; j0 += kPanel) {
        const int64_t n = std::min(kPanel, z_.d - j0);
        widen(o_ + at + j0, x, n);
        widen(d_o_ + at + j0, y, n);
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < n; ++j) dot += x[j] * y[j];
      }
      w.delta[r] = dot;
    }
    turn(w.qh, rows, w.qt);
    turn(w.d_o, rows, w.d_ot);
    configure();
    std::memset(static_cast<void*>(w.rows), 0, static_cast<size_t>(kKeys * dp_) * 2);
    for (int64_t k0 = 0; k0 < range.keys; k0 += kKeys) {
      const int64_t here = std::min(kKeys, range.keys - k0), nk = up(here, kPanel);
      pack_block(s, head, k0, here, w);
      // Earlier queries of a causal block may see none of these keys: their rows come first.
      const int64_t hidden = causal ? std::clamp<int64_t>(k0 - spans - range.begin, 0, range.count) : 0;
      const int64_t first = hidden * z_.group / kPanel * kPanel;
      for (int64_t r0 = first; r0 < rows; r0 += kRows) {
        const int64_t n = std::min(kRows, rows - r0);
        for (int64_t i = 0; i < n; i += kPanel)
          for (int64_t j = 0; j < nk; j += kPanel) {
            const int64_t a = (r0 + i) * dp_, b = j / kPanel * steps * 2 * kTile, c = i * kKeys + j;
            const Term score[] = {{w.qh + a, dp_, w.kh + b, steps},
                                  {w.qh + a, dp_, w.kl + b, steps},
                                  {w.ql + a, dp_, w.kh + b, steps}};
            const Term d_p[] = {{w.d_o + a, dp_, w.vh + b, steps}, {w.d_o + a, dp_, w.vl + b, steps}};
            chain(score, kSplit ? 3 : 1, false, w.s + c, kKeys);
            chain(d_p, kSplit ? 2 : 1, false, w.dp + c, kKeys);
          }
        for (int64_t r = 0; r < n; r += 2) {
          const auto seen = [&](int64_t at) {
            return at < count ? visible(spans, causal, range.begin + at / z_.group, k0, here) : 0;
          };
          weigh(w, r0 + r, r, seen(r0 + r), seen(r0 + r + 1), nk);
        }
        for (int64_t j = 0; j < nk; j += kPanel)
          for (int64_t i = 0; i < dp_; i += kPanel) {
            const int64_t b = j / kPanel * (kRows / kDepth) * 2 * kTile, c = i * kKeys + j;
            const Term dv{w.d_ot + i * rows + r0, rows, w.pi + b, n / kDepth};
            const Term dk{w.qt + i * rows + r0, rows, w.dsi + b, n / kDepth};
            chain(&dv, 1, r0 > first, w.dvt + c, kKeys);
            chain(&dk, 1, r0 > first, w.dkt + c, kKeys);
          }
        for (int64_t i = 0; i < n; i += kPanel)
          for (int64_t j = 0; j < dp_; j += kPanel) {
            const Term dq{w.ds + i * kKeys, kKeys, w.kc + j / kPanel * (kKeys / kDepth) * 2 * kTile,
                          nk / kDepth};
            chain(&dq, 1, true, w.dq + (r0 + i) * dp_ + j, dp_);
          }
      }
      hand_over(w.dkt, here, nk, a_.scale, w.turned, partial(range, head, k0));
      hand_over(w.dvt, here, nk, 1.0f, w.turned, partial(range, head, k0) + z_.d);
    }
    _tile_release();
    for (int64_t r = 0; r < count; ++r) {
      float* dq = w.dq + r * dp_;
      for (int64_t j = 0; j < z_.d; ++j) dq[j] *= a_.scale;
      convert_to_bf16(
          dq, to_.q(s.q_begin + range.begin + r / z_.group) + (head * z_.group + r % z_.group) * z_.d, z_.d);
    }
  }

  // The block's keys and values in the order of the tiles. Rows behind the last key keep what an earlier
  // block left there: finite, and their weights are zero.
  void pack_block(const AttentionSegment& s, int64_t head, int64_t k0, int64_t count, const Work& w) const {
    int64_t key[kKeys];
    key_rows(*a_.plan, s, k0, count, key);
    for (const bool values : {true, false}) {
      const S* from = values ? v_ : k_;
      bf16 *low = values ? w.vl : w.kl, *high = values ? w.vh : w.kh;
      if (kSplit) {
        // The small halves first: `rows` then holds the large ones of the keys.
        for (int64_t i = 0; i < count; ++i)
          split(from + (key[i] * z_.k + head) * z_.d, w.kc + i * dp_, w.rows + i * dp_);
        pack_keys(w.rows, low);
      }
      for (int64_t i = 0; i < count; ++i)
        split(from + (key[i] * z_.k + head) * z_.d, w.rows + i * dp_, nullptr);
      pack_keys(w.rows, high);
    }
    for (int64_t j = 0; j < dp_; j += kPanel)
      for (int64_t n = 0; n < kKeys; n += kDepth)
        pack_columns(w.rows + n * dp_ + j, dp_, kPanel, kDepth,
                     w.kc + (j / kPanel * (kKeys / kDepth) + n / kDepth) * 2 * kTile);
  }

  // Two rows' weights p and d_s = p (d_p - delta), rounded, into the panels, and d_s as rows.
  void weigh(const Work& w, int64_t at, int64_t r, int64_t seen0, int64_t seen1, int64_t nk) const {
    alignas(64) float p[2][kKeys], d[2][kKeys];
    const int64_t seen[2] = {seen0, seen1};
    for (int64_t l = 0; l < 2; ++l) {
      const float *s = w.s + (r + l) * kKeys, *dp = w.dp + (r + l) * kKeys;
      if (seen[l] > 0) {
        const float lse = w.lse[at + l], delta = w.delta[at + l], scale = a_.scale;
        for (int64_t i = 0; i < nk; ++i) {
          p[l][i] = fast_exp(s[i] * scale - lse);
          d[l][i] = p[l][i] * (dp[i] - delta);
        }
      }
      for (int64_t i = seen[l]; i < nk; ++i) p[l][i] = d[l][i] = 0.0f;
    }
    for (int64_t i = 0; i < nk; i += kSide) {
      const int64_t to = (i / kPanel * (kRows / kDepth) + r / kDepth) * 2 * kTile + i / kSide % 2 * kTile +
                         r % kDepth / 2 * kDepth;
      // By the compiler's own vectors: see lane_sums in cpu/row_product.cc.
      const auto round = [](const float* x) {
        return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(_mm512_load_ps(x)));
      };
      const auto pair = [](Halves x, Halves y) {
        return __builtin_convertvector(x, Words) | __builtin_convertvector(y, Words) << 16;
      };
      const auto put = [](bf16* to_here, auto v) { std::memcpy(static_cast<void*>(to_here), &v, sizeof v); };
      const Halves d0 = round(d[0] + i), d1 = round(d[1] + i);
      put(w.pi + to, pair(round(p[0] + i), round(p[1] + i)));
      put(w.dsi + to, pair(d0, d1));
      put(w.ds + r * kKeys + i, d0);
      put(w.ds + (r + 1) * kKeys + i, d1);
    }
  }

  // (dp, 64) to rows of keys, times a factor, 2 d apart.
  void hand_over(const float* from, int64_t keys, int64_t nk, float factor, float* turned, float* to) const {
    for (int64_t c = 0; c < dp_; c += kSide)
      for (int64_t i = 0; i < nk; i += kSide)
        transpose16(from + c * kKeys + i, kKeys * 4, turned + i * dp_ + c, dp_ * 4);
    for (int64_t i = 0; i < keys; ++i)
      for (int64_t j = 0; j < z_.d; ++j) to[i * 2 * z_.d + j] = turned[i * dp_ + j] * factor;
  }

  const AttentionBackward& a_;
  const Sizes z_;
  const int64_t dp_;  // d in whole panels
  const S *q_, *k_, *v_, *o_;
  const bf16* d_o_;
  const GradientRows<bf16> to_;
  const std::vector<QueryRange> ranges_;
  float* partial_;
};

}  // namespace

bool attention_fits_tiles(const AttentionBackward& a) {
  return a.d_o.dtype() == DType::kBF16 && has_tile_product();
}
int64_t attention_tiles_scratch(const AttentionBackward& a) {
  const std::vector<QueryRange> ranges = ranges_of(*a.plan, a.q.dim(1) / a.k.dim(1));
  const int64_t keys = ranges.empty() ? 0 : ranges.back().offset + ranges.back().keys;
  return keys * a.k.dim(1) * 2 * a.q.dim(2) * 4;
}
void attention_backward_on_tiles(ThreadPool& pool, const AttentionBackward& a) {
  if (a.q.dtype() == DType::kBF16)
    TileBackward<bf16>(pool, a);
  else
    TileBackward<f16>(pool, a);
}
#else
bool attention_fits_tiles(const AttentionBackward&) { return false; }
int64_t attention_tiles_scratch(const AttentionBackward&) { return 0; }
void attention_backward_on_tiles(ThreadPool&, const AttentionBackward&) {
  GT_CHECK(false, "no matrix tiles in this build");
}
#endif

}  // namespace gantrain
