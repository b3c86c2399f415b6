// Blockwise attention with an online softmax. A chunk of forward owns a block of queries of one segment and
// the G query heads that share one key head: their rows (query-major) form one matrix against blocks of keys.
// Backward runs twice over the scores, once owning queries (dq) and once owning keys (dk, dv), so nobody adds
// to another chunk's rows and the order of every sum is fixed.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/attention.h"
#include "cpu/block_product.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "cpu/vec_math.h"

namespace gantrain {
namespace {

constexpr int64_t kKeys = 64;       // keys a block
constexpr int64_t kQueryRows = 96;  // about so many (query, head) rows a block
constexpr int64_t kFewRows = 8;     // fewer rows than this: decoding, dot products on the keys as they lie

int64_t query_block(int64_t group) { return std::max<int64_t>(1, kQueryRows / group); }

// `count` rows given by row(i), each d values, as f32 rows of length ld, the rest of a row zero.
template <typename Row>
void gather(Row row, int64_t count, int64_t d, int64_t ld, float factor, float* out) {
  for (int64_t i = 0; i < count; ++i, out += ld) {
    widen(row(i), out, d, factor);
    for (int64_t j = d; j < ld; ++j) out[j] = 0.0f;
  }
}
// The same f32 rows transposed: out[j * ld + i] = rows[i * from_ld + j], columns [count, ld) zero.
void transpose(const float* rows, int64_t from_ld, int64_t count, int64_t d, int64_t ld, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (int64_t j = 0; j < d; ++j) {
      float column[16];
      for (int64_t l = 0; l < 16; ++l) column[l] = rows[(i + l) * from_ld + j];
      std::memcpy(out + j * ld + i, column, sizeof column);
    }
  }
  for (; i < ld; ++i)
    for (int64_t j = 0; j < d; ++j) out[j * ld + i] = i < count ? rows[i * from_ld + j] : 0.0f;
}

template <typename T>
class Forward {
 public:
  Forward(ThreadPool& pool, const AttentionForward& a)
      : a_(a),
        z_(sizes(a)),
        q_(a.q.data<T>()),
        k_(a.k.data<T>()),
        v_(a.v.data<T>()),
        o_(a.o.data<T>()),
        lse_(a.lse.empty() ? nullptr : a.lse.data<float>()) {
    std::memset(a.o.raw(), 0, static_cast<size_t>(a.o.bytes()));  // rows of no segment
    if (lse_) std::memset(lse_, 0, static_cast<size_t>(a.lse.bytes()));
    const std::vector<QueryTask> tasks = query_tasks(*a.plan, query_block(z_.group));
    pool.parallel_for(static_cast<int64_t>(tasks.size()) * z_.k, [&](int64_t i) {
      const QueryTask& t = tasks[static_cast<size_t>(i / z_.k)];
      if (t.count * z_.group >= kFewRows)
        block(t, i % z_.k);
      else if (z_.d == 8)
        few<8>(t, i % z_.k);
      else if (z_.d == 16)
        few<16>(t, i % z_.k);
      else if (z_.d == 64)
        few<64>(t, i % z_.k);
      else if (z_.d == 128)
        few<128>(t, i % z_.k);
      else
        few<0>(t, i % z_.k);
    });
  }

 private:
  int64_t offset(const AttentionSegment& s, const QueryTask& t, int64_t head, int64_t r) const {
    return ((s.q_begin + t.begin + r / z_.group) * z_.h + head * z_.group + r % z_.group) * z_.d;
  }
  void write(const AttentionSegment& s, const QueryTask& t, int64_t head, int64_t r, const float* o,
             float max, float sum) const {
    const int64_t at = offset(s, t, head, r);
    const float inverse = 1.0f / sum;
    narrow(o, o_ + at, z_.d, inverse);
    if (lse_) lse_[at / z_.d] = max + std::log(sum);
  }

  void block(const QueryTask& t, int64_t head) const {
    const AttentionSegment& s = a_.plan->segments[static_cast<size_t>(t.segment)];
    const int64_t rows = t.count * z_.group, d = z_.d, dp = z_.dp;
    const int64_t spans = span_keys(*a_.plan, s);
    const bool causal = s.kv_begin >= 0;
    const int64_t keys = spans + (causal ? t.begin + t.count : 0);
    float* q = thread_scratch(5, rows * (d + dp + kKeys + 2) + kKeys * dp * 2 + d * kKeys);
    float *o = q + rows * d, *p = o + rows * dp, *max = p + rows * kKeys, *sum = max + rows;
    float *kt = sum + rows, *kv = kt + d * kKeys;
    gather([&](int64_t r) { return q_ + offset(s, t, head, r); }, rows, d, d, a_.scale, q);
    std::memset(o, 0, static_cast<size_t>(rows * dp) * sizeof(float));
    std::fill(max, max + rows, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + rows, 0.0f);
    for (int64_t k0 = 0; k0 < keys; k0 += kKeys) {
      const int64_t count = std::min(kKeys, keys - k0), padded = round_up_lanes(count);
      int64_t key[kKeys];
      key_rows(*a_.plan, s, k0, count, key);
      gather([&](int64_t i) { return k_ + (key[i] * z_.k + head) * d; }, count, d, dp, 1.0f, kv);
      transpose(kv, dp, count, d, padded, kt);
      gather([&](int64_t i) { return v_ + (key[i] * z_.k + head) * d; }, count, d, dp, 1.0f, kv);
      // Earlier queries of a causal block may see none of these keys: their rows come first.
      const int64_t first = causal ? std::clamp<int64_t>(k0 - spans - t.begin, 0, t.count) * z_.group : 0;
      block_product(rows - first, padded, d, q + first * d, d, kt, padded, p + first * kKeys, kKeys, false);
      for (int64_t r = first; r < rows; ++r) {
        float* pr = p + r * kKeys;
        const int64_t seen = visible(spans, causal, t.begin + r / z_.group, k0, count);
        const float m = std::max(max[r], row_max(pr, seen));
        const float correction = fast_exp(max[r] - m);
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < seen; ++i) {
          pr[i] = fast_exp(pr[i] - m);
          total += pr[i];
        }
        for (int64_t i = seen; i < count; ++i) pr[i] = 0.0f;
        max[r] = m;
        sum[r] = sum[r] * correction + total;
        if (correction != 1.0f)
          for (int64_t j = 0; j < dp; ++j) o[r * dp + j] *= correction;
      }
      block_product(rows - first, dp, count, p + first * kKeys, kKeys, kv, dp, o + first * dp, dp, true);
    }
    for (int64_t r = 0; r < rows; ++r) write(s, t, head, r, o + r * dp, max[r], sum[r]);
  }

  // Head: its size where that is known when this is compiled, so that loops over it are not cut for vectors
  // longer than it; 0: any.
  template <int64_t Head>
  void few(const QueryTask& t, int64_t head) const {
    const AttentionSegment& s = a_.plan->segments[static_cast<size_t>(t.segment)];
    const int64_t rows = t.count * z_.group, d = Head > 0 ? Head : z_.d;
    const int64_t spans = span_keys(*a_.plan, s);
    const bool causal = s.kv_begin >= 0;
    const int64_t keys = spans + (causal ? t.begin + t.count : 0);
    float* q = thread_scratch(5, rows * d * 2 + d);
    float *o = q + rows * d, *row = o + rows * d;
    float max[kFewRows], sum[kFewRows] = {}, p[kFewRows][kKeys];
    gather([&](int64_t r) { return q_ + offset(s, t, head, r); }, rows, d, d, a_.scale, q);
    std::memset(o, 0, static_cast<size_t>(rows * d) * sizeof(float));
    std::fill(max, max + rows, -std::numeric_limits<float>::infinity());
    for (int64_t k0 = 0; k0 < keys; k0 += kKeys) {
      const int64_t count = std::min(kKeys, keys - k0);
      int64_t key[kKeys];
      key_rows(*a_.plan, s, k0, count, key);
      for (int64_t i = 0; i < count; ++i) {
        widen(k_ + (key[i] * z_.k + head) * d, row, d);
        for (int64_t r = 0; r < rows; ++r) {
          float dot = 0;
          const float* qr = q + r * d;
#pragma omp simd reduction(+ : dot)
          for (int64_t j = 0; j < d; ++j) dot += qr[j] * row[j];
          p[r][i] = dot;
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t seen = visible(spans, causal, t.begin + r / z_.group, k0, count);
        const float m = std::max(max[r], row_max(p[r], seen));
        const float correction = fast_exp(max[r] - m);
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < seen; ++i) {
          p[r][i] = fast_exp(p[r][i] - m);
          total += p[r][i];
        }
        for (int64_t i = seen; i < count; ++i) p[r][i] = 0.0f;
        max[r] = m;
        sum[r] = sum[r] * correction + total;
        if (correction != 1.0f)
          for (int64_t j = 0; j < d; ++j) o[r * d + j] *= correction;
      }
      for (int64_t i = 0; i < count; ++i) {
        widen(v_ + (key[i] * z_.k + head) * d, row, d);
        for (int64_t r = 0; r < rows; ++r) {
          const float w = p[r][i];
          float* to = o + r * d;
          for (int64_t j = 0; j < d; ++j) to[j] += w * row[j];
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) write(s, t, head, r, o + r * d, max[r], sum[r]);
  }

  const AttentionForward& a_;
  const Sizes z_;
  const T *q_, *k_, *v_;
  T* o_;
  float* lse_;
};

// The part of one segment's keys that lies in one block of key rows.
struct KeyPart {
  int32_t segment;
  int32_t row, count;  // key rows
  int64_t key;         // place of `row` among the segment's keys
};

// T: gradients, S: what forward kept.
template <typename T, typename S>
class Backward {
 public:
  Backward(ThreadPool& pool, const AttentionBackward& a)
      : a_(a),
        z_(sizes(a)),
        q_(a.q.data<S>()),
        k_(a.k.data<S>()),
        v_(a.v.data<S>()),
        d_o_(a.d_o.data<T>()),
        lse_(a.lse.data<float>()),
        to_(a, z_),
        delta_(static_cast<float*>(a.scratch.raw())) {
    // delta = <o, d_o>: the row term of softmax's backward.
    const S* o = a.o.data<S>();
    const int64_t row = z_.h * z_.d;
    pool.parallel_ranges(z_.n, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)  // rows of no segment
        std::memset(static_cast<void*>(to_.q(i)), 0, static_cast<size_t>(row) * sizeof(T));
      for (int64_t i = begin * z_.h; i < end * z_.h; ++i) {
        float dot = 0;
        float* x = thread_scratch(5, z_.d);
        widen(o + i * z_.d, x, z_.d);
        const T* y = d_o_ + i * z_.d;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < z_.d; ++j) dot += x[j] * load(y + j);
        delta_[i] = dot;
      }
    });
    const std::vector<QueryTask> tasks = query_tasks(*a.plan, query_block(z_.group));
    const std::vector<std::vector<KeyPart>> parts = key_parts();
    const int64_t query_chunks = static_cast<int64_t>(tasks.size()) * z_.k;
    pool.parallel_for(query_chunks + static_cast<int64_t>(parts.size()) * z_.k, [&](int64_t i) {
      if (i < query_chunks)
        queries(tasks[static_cast<size_t>(i / z_.k)], i % z_.k);
      else
        keys((i - query_chunks) / z_.k, parts[static_cast<size_t>((i - query_chunks) / z_.k)],
             (i - query_chunks) % z_.k);
    });
  }

 private:
  std::vector<std::vector<KeyPart>> key_parts() const {
    std::vector<std::vector<KeyPart>> parts(static_cast<size_t>((z_.m + kKeys - 1) / kKeys));
    for (size_t i = 0; i < a_.plan->segments.size(); ++i) {
      const AttentionSegment& s = a_.plan->segments[i];
      int64_t key = 0;
      const auto add = [&](int64_t begin, int64_t count) {
        for (int64_t row = begin; row < begin + count;) {
          const int64_t end = std::min(begin + count, (row / kKeys + 1) * kKeys);
          parts[static_cast<size_t>(row / kKeys)].push_back(
              {static_cast<int32_t>(i), static_cast<int32_t>(row), static_cast<int32_t>(end - row),
               key + row - begin});
          row = end;
        }
        key += count;
      };
      if (s.q_count == 0) continue;
      for (int32_t p = 0; p < s.span_count; ++p) {
        const KvSpan& span = a_.plan->spans[static_cast<size_t>(s.span_begin + p)];
        add(span.begin, span.count);
      }
      if (s.kv_begin >= 0) add(s.kv_begin, s.q_count);
    }
    return parts;
  }
  int64_t offset(const AttentionSegment& s, int64_t begin, int64_t head, int64_t r) const {
    return ((s.q_begin + begin + r / z_.group) * z_.h + head * z_.group + r % z_.group) * z_.d;
  }

  void queries(const QueryTask& t, int64_t head) const {
    const AttentionSegment& s = a_.plan->segments[static_cast<size_t>(t.segment)];
    const int64_t rows = t.count * z_.group, d = z_.d, dp = z_.dp;
    const int64_t spans = span_keys(*a_.plan, s);
    const bool causal = s.kv_begin >= 0;
    const int64_t keys = spans + (causal ? t.begin + t.count : 0);
    float* q = thread_scratch(5, rows * (2 * d + dp + 2 * kKeys) + kKeys * dp + 2 * d * kKeys);
    float *d_o = q + rows * d, *dq = d_o + rows * d, *p = dq + rows * dp, *dp_ = p + rows * kKeys;
    float *kt = dp_ + rows * kKeys, *vt = kt + d * kKeys, *kr = vt + d * kKeys;
    gather([&](int64_t r) { return q_ + offset(s, t.begin, head, r); }, rows, d, d, a_.scale, q);
    gather([&](int64_t r) { return d_o_ + offset(s, t.begin, head, r); }, rows, d, d, 1.0f, d_o);
    std::memset(dq, 0, static_cast<size_t>(rows * dp) * sizeof(float));
    for (int64_t k0 = 0; k0 < keys; k0 += kKeys) {
      const int64_t count = std::min(kKeys, keys - k0), padded = round_up_lanes(count);
      int64_t key[kKeys];
      key_rows(*a_.plan, s, k0, count, key);
      gather([&](int64_t i) { return v_ + (key[i] * z_.k + head) * d; }, count, d, dp, 1.0f, kr);
      transpose(kr, dp, count, d, padded, vt);
      gather([&](int64_t i) { return k_ + (key[i] * z_.k + head) * d; }, count, d, dp, 1.0f, kr);
      transpose(kr, dp, count, d, padded, kt);
      const int64_t first = causal ? std::clamp<int64_t>(k0 - spans - t.begin, 0, t.count) * z_.group : 0;
      block_product(rows - first, padded, d, q + first * d, d, kt, padded, p + first * kKeys, kKeys, false);
      block_product(rows - first, padded, d, d_o + first * d, d, vt, padded, dp_ + first * kKeys, kKeys,
                    false);
      for (int64_t r = first; r < rows; ++r) {
        const int64_t seen = visible(spans, causal, t.begin + r / z_.group, k0, count);
        const int64_t at = offset(s, t.begin, head, r) / d;
        const float lse = lse_[at], delta = delta_[at];
        float *pr = p + r * kKeys, *dr = dp_ + r * kKeys;
        for (int64_t i = 0; i < seen; ++i) dr[i] = fast_exp(pr[i] - lse) * (dr[i] - delta);
        for (int64_t i = seen; i < count; ++i) dr[i] = 0.0f;
      }
      block_product(rows - first, dp, count, dp_ + first * kKeys, kKeys, kr, dp, dq + first * dp, dp, true);
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* to = to_.q(s.q_begin + t.begin + r / z_.group) + (head * z_.group + r % z_.group) * d;
      for (int64_t j = 0; j < d; ++j) store(to + j, dq[r * dp + j] * a_.scale);
    }
  }

  void keys(int64_t block, const std::vector<KeyPart>& parts, int64_t head) const {
    const int64_t base = block * kKeys, count = std::min(kKeys, z_.m - base), d = z_.d, dp = z_.dp;
    const int64_t step = query_block(z_.group), most = round_up_lanes(step * z_.group);
    float* k = thread_scratch(5, 2 * kKeys * (d + dp) + most * (2 * dp + 2 * d + 2) + 2 * kKeys * most);
    float *v = k + kKeys * d, *dk = v + kKeys * d, *dv = dk + kKeys * dp;
    float *q = dv + kKeys * dp, *d_o = q + most * dp, *qt = d_o + most * dp, *dot = qt + d * most;
    float *lse = dot + d * most, *delta = lse + most, *p = delta + most, *ds = p + kKeys * most;
    const auto row = [&](const S* x) {
      return [&, x](int64_t i) { return x + ((base + i) * z_.k + head) * d; };
    };
    gather(row(k_), count, d, d, 1.0f, k);
    gather(row(v_), count, d, d, 1.0f, v);
    std::memset(dk, 0, static_cast<size_t>(2 * kKeys * dp) * sizeof(float));
    for (const KeyPart& part : parts) {
      const AttentionSegment& s = a_.plan->segments[static_cast<size_t>(part.segment)];
      const int64_t spans = span_keys(*a_.plan, s), at = part.row - base;
      // Causal keys: query j sees key i of this part if j >= i + hidden.
      const int64_t hidden = part.key - spans;
      for (int64_t q0 = 0; q0 < s.q_count; q0 += step) {
        const int64_t queries = std::min<int64_t>(step, s.q_count - q0);
        if (part.key >= spans && q0 + queries - 1 < hidden) continue;
        const int64_t rows = queries * z_.group, padded = round_up_lanes(rows);
        gather([&](int64_t r) { return q_ + offset(s, q0, head, r); }, rows, d, dp, a_.scale, q);
        gather([&](int64_t r) { return d_o_ + offset(s, q0, head, r); }, rows, d, dp, 1.0f, d_o);
        transpose(q, dp, rows, d, padded, qt);
        transpose(d_o, dp, rows, d, padded, dot);
        for (int64_t r = 0; r < rows; ++r) {
          lse[r] = lse_[offset(s, q0, head, r) / d];
          delta[r] = delta_[offset(s, q0, head, r) / d];
        }
        block_product(part.count, padded, d, k + at * d, d, qt, padded, p, most, false);
        block_product(part.count, padded, d, v + at * d, d, dot, padded, ds, most, false);
        for (int64_t i = 0; i < part.count; ++i) {
          const int64_t first =
              part.key >= spans ? std::clamp<int64_t>(hidden + i - q0, 0, queries) * z_.group : 0;
          float *pr = p + i * most, *dr = ds + i * most;
          for (int64_t r = 0; r < first; ++r) pr[r] = dr[r] = 0.0f;
          for (int64_t r = first; r < rows; ++r) {
            pr[r] = fast_exp(pr[r] - lse[r]);
            dr[r] = pr[r] * (dr[r] - delta[r]);
          }
        }
        block_product(part.count, dp, rows, p, most, d_o, dp, dv + at * dp, dp, true);
        block_product(part.count, dp, rows, ds, most, q, dp, dk + at * dp, dp, true);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      T *to_k = to_.k(base + i) + head * d, *to_v = to_.v(base + i) + head * d;
      for (int64_t j = 0; j < d; ++j) store(to_k + j, dk[i * dp + j]);
      for (int64_t j = 0; j < d; ++j) store(to_v + j, dv[i * dp + j]);
    }
  }

  const AttentionBackward& a_;
  const Sizes z_;
  const S *q_, *k_, *v_;
  const T* d_o_;
  const float* lse_;
  const GradientRows<T> to_;
  float* delta_;
};

float inner_product(const float* x, const float* y, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] * y[j];
  return sum;
}
// Heads of q, k and v against their gradients, before those are rotated back in place.
template <typename T, typename S>
void finish_dy(ThreadPool& pool, const AttentionBackward& a) {
  const Sizes z = sizes(a);
  const int64_t heads = z.h + 2 * z.k, d = z.d, front = z.m - z.n;
  const auto* rotary = a.rotary.data<float>();
  float* dots = a.dot.empty() ? nullptr : a.dot.data<float>();
  pool.parallel_ranges(z.n, kRowGrain, [&](int64_t begin, int64_t end) {
    float *x = thread_scratch(5, 2 * d), *y = x + d;
    for (int64_t row = begin; row < end; ++row) {
      T* dy = a.dy.data<T>() + row * heads * d;
      for (int64_t i = 0; dots && i < heads; ++i) {
        const int64_t key_head = (i - z.h) % z.k, at = ((front + row) * z.k + key_head) * d;
        const S* from = i < z.h         ? a.q.data<S>() + (row * z.h + i) * d
                        : i < z.h + z.k ? a.k.data<S>() + at
                                        : a.v.data<S>() + at;
        widen(from, x, d);
        widen(dy + i * d, y, d);
        const float dot = inner_product(x, y, d);
        float& to = dots[row * (z.h + z.k) + (i < z.h ? i : z.h + key_head)];
        to = i < z.h + z.k ? dot : to + dot;
      }
      rotate_heads(dy, dy, z.h + z.k, d, rotary + row * d, -1.0f);
    }
  });
}

}  // namespace

int64_t CpuOps::scratch(const AttentionForward&) const { return 0; }
int64_t CpuOps::scratch(const AttentionBackward& a) const {
  return attention_fits_tiles(a) ? attention_tiles_scratch(a) : a.q.dim(0) * a.q.dim(1) * 4;
}

void CpuOps::attention_forward(const AttentionForward& a) {
  with_kept(a.q.dtype(), [&]<typename S>(S*) { Forward<S>(pool_, a); });
}

void CpuOps::attention_backward(const AttentionBackward& a) {
  with_pair(a.d_o.dtype(), a.q.dtype(), [&]<typename T, typename S>(T*, S*) {
    if (attention_fits_tiles(a))
      attention_backward_on_tiles(pool_, a);
    else
      Backward<T, S>(pool_, a);
    if (!a.dy.empty()) finish_dy<T, S>(pool_, a);
  });
}

void CpuOps::kv_append(const KvAppend& a) {
  const int32_t* slots = a.slots.data<int32_t>();
  const int64_t bytes = a.k.dim(1) * a.k.dim(2) * dtype_size(a.k.dtype());
  for (int64_t i = 0; i < a.k.dim(0); ++i) {
    if (slots[i] < 0) continue;
    const int64_t to = slots[i] * bytes, from = i * bytes;
    std::memcpy(static_cast<std::byte*>(a.k_cache.raw()) + to,
                static_cast<const std::byte*>(a.k.raw()) + from, static_cast<size_t>(bytes));
    std::memcpy(static_cast<std::byte*>(a.v_cache.raw()) + to,
                static_cast<const std::byte*>(a.v.raw()) + from, static_cast<size_t>(bytes));
  }
}

}  // namespace gantrain
