// The language-model head in chunks of rows: one (chunk, V) block of logits at a time lives in scratch.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "cpu/select.h"
#include "cpu/vec_math.h"

namespace gantrain {
namespace {

constexpr int64_t kHeadRows = 128;
constexpr int64_t kVocabularyRange = kTallRows;  // k range of the gradient product, summed in order

bool present(const ConstTensor& t) { return !t.empty() || t.rank() > 0; }

// What one chunk of head_loss needs; the optional pieces are there if their part of the seed is.
struct LossPieces {
  void *normed, *seeds;
  float *logits, *reference, *noisy, *target, *rstd, *dnormed, *partials;
};
LossPieces loss_pieces(Pieces& p, const HeadLoss& a) {
  const int64_t rows = std::min(kHeadRows, a.rows.dim(0)), v = a.w->rows(), c = a.w->cols();
  const bool gumbel = present(a.embedding_grad);
  LossPieces s{};
  s.normed = p.take(rows * c * 4);
  s.logits = p.floats(rows * v);
  if (present(a.reference)) s.reference = p.floats(rows * v);
  if (gumbel) {
    s.noisy = p.floats(rows * v);
    s.target = p.floats(rows * v);
  }
  s.rstd = p.floats(rows);
  if (present(a.dx)) {
    if (a.w->dtype() == DType::kBF16) s.seeds = p.take(rows * v * 2);
    s.dnormed = p.floats(rows * c);
    s.partials = p.floats(matmul_partials({.m = rows, .n = c, .k = v, .k_range = kVocabularyRange}));
  }
  return s;
}

// logits = (x[row(i)] * rstd * gain) w^T for `rows` rows
template <typename Row>
void logits_of(ThreadPool& pool, const CpuMatrix& w, const float* gain, float eps, int64_t rows, Row row,
               void* normed, float* rstd, float* logits) {
  const int64_t c = w.cols(), v = w.rows(), size = dtype_size(w.dtype());
  pool.parallel_ranges(rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rstd[i] = row_rstd_of(row(i), c, eps);
      normalise_row(row(i), rstd[i], gain, c, w.dtype(), static_cast<std::byte*>(normed) + i * c * size);
    }
  });
  matmul(pool, w,
         {.m = rows, .n = v, .k = c, .a = normed, .lda = c, .transpose_b = true, .c = logits, .ldc = v});
}

const float* optional(const ConstTensor& t) { return t.empty() ? nullptr : t.data<float>(); }

// One row: losses, and the seed in place of the logits. `r` is the row of the call, `i` of the chunk.
void loss_row(const HeadLoss& a, const LossPieces& s, int64_t r, int64_t i, int64_t v) {
  float* l = s.logits + i * v;
  const int32_t label = a.labels.data<int32_t>()[r];
  const bool wants_seed = !a.dx.empty();
  const float max = row_max(l, v);
  const double sum = exp_sum(l, v, max, 1.0f);
  const double lse = static_cast<double>(max) + std::log(sum);
  a.nll.data<float>()[r] = static_cast<float>(lse - static_cast<double>(l[label]));
  if (!a.argmax.empty()) {
    const float* found = std::find(l, l + v, max);
    a.argmax.data<int32_t>()[r] = found == l + v ? 0 : static_cast<int32_t>(found - l);
  }
  // The Gumbel part first, into `target`: it still needs the logits.
  const float* gumbel = nullptr;
  if (!a.embedding_grad.empty() && wants_seed) {
    float *z = s.noisy + i * v, *t = s.target + i * v;
    gumbel_noise(static_cast<uint64_t>(a.key.data<int64_t>()[r]),
                 static_cast<uint64_t>(a.counter.data<int64_t>()[r]), v, z);
    for (int64_t j = 0; j < v; ++j) z[j] = l[j] + z[j];
    const Cut kept = a.top_k > 0 ? cut_top_k(z, v, a.top_k) : keep_all();
    const float top = row_max(z, v), inverse_tau = 1.0f / a.tau;
    if (a.top_k > 0) {
      for (int64_t j = 0; j < v; ++j)
        z[j] = kept.keeps(z[j], j) ? z[j] : -std::numeric_limits<float>::infinity();
    }
    const double total = exp_sum(z, v, top, inverse_tau, z);
    double dot = 0;
    for (int64_t begin = 0; begin < v; begin += 1024) {
      float part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t j = begin; j < std::min(v, begin + 1024); ++j) part += z[j] * t[j];
      dot += static_cast<double>(part);
    }
    const float mean = static_cast<float>(dot / total), scale = static_cast<float>(1.0 / total) * inverse_tau;
    for (int64_t j = 0; j < v; ++j) t[j] = z[j] * scale * (t[j] - mean);
    gumbel = t;
  }
  const float inverse_sum = static_cast<float>(1.0 / sum);
  const float ce = a.ce_weight.empty() ? 0.0f : a.ce_weight.data<float>()[r];
  float kl_weight = 0.0f, kl = 0.0f, shift = 0.0f;
  const float* q = nullptr;
  if (!a.reference.empty()) {
    q = s.reference + i * v;
    const float q_max = row_max(q, v);
    const double q_lse = static_cast<double>(q_max) + std::log(exp_sum(q, v, q_max, 1.0f));
    shift = static_cast<float>(q_lse - lse);  // log(p / q) = l - q + shift
    double total = 0;
    for (int64_t begin = 0; begin < v; begin += 1024) {
      float part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t j = begin; j < std::min(v, begin + 1024); ++j)
        part += fast_exp(l[j] - max) * (l[j] - q[j] + shift);
      total += static_cast<double>(part);
    }
    kl = static_cast<float>(total / sum);
    a.kl.data<float>()[r] = kl;
    if (!a.kl_weight.empty()) kl_weight = a.kl_weight.data<float>()[r];
  }
  if (!wants_seed) return;
  if (kl_weight != 0.0f) {
    for (int64_t j = 0; j < v; ++j) {
      const float p = fast_exp(l[j] - max) * inverse_sum;
      l[j] = p * (ce + kl_weight * (l[j] - q[j] + shift - kl));
    }
  } else if (ce != 0.0f) {
    for (int64_t j = 0; j < v; ++j) l[j] = ce * (fast_exp(l[j] - max) * inverse_sum);
  } else {
    std::memset(l, 0, static_cast<size_t>(v) * sizeof(float));
  }
  l[label] -= ce;
  if (gumbel)
    for (int64_t j = 0; j < v; ++j) l[j] += gumbel[j];
  if (s.seeds) convert_to_bf16(l, static_cast<bf16*>(s.seeds) + i * v, v);
}

}  // namespace

int64_t CpuOps::scratch(const HeadLogits& a) const {
  Pieces p;
  p.take(a.rows.dim(0) * a.w->cols() * dtype_size(a.w->dtype()));
  p.floats(a.rows.dim(0));
  return p.used();
}
int64_t CpuOps::scratch(const HeadLoss& a) const {
  Pieces p;
  loss_pieces(p, a);
  return p.used();
}

void CpuOps::head_logits(const HeadLogits& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t c = w.cols(), rows = a.rows.dim(0);
  Pieces p(a.scratch);
  void* normed = p.take(rows * c * dtype_size(w.dtype()));
  float* rstd = p.floats(rows);
  const float* x = a.x.data<float>();
  const int32_t* row = a.rows.data<int32_t>();
  logits_of(
      pool_, w, optional(a.gain), a.eps, rows, [&](int64_t i) { return x + row[i] * c; }, normed, rstd,
      a.logits.data<float>());
}

void CpuOps::head_loss(const HeadLoss& a) {
  const CpuMatrix& w = as_cpu(*a.w);
  const int64_t c = w.cols(), v = w.rows(), total = a.rows.dim(0);
  Pieces pieces(a.scratch);
  const LossPieces s = loss_pieces(pieces, a);
  const float* x = a.x.data<float>();
  const float* gain = optional(a.gain);
  const int32_t* row = a.rows.data<int32_t>();
  for (int64_t r0 = 0; r0 < total; r0 += kHeadRows) {
    const int64_t rows = std::min(kHeadRows, total - r0);
    if (!a.reference.empty()) {
      const float* reference = a.reference.data<float>() + r0 * c;
      logits_of(
          pool_, a.reference_w ? as_cpu(*a.reference_w) : w,
          a.reference_w ? optional(a.reference_gain) : gain, a.eps, rows,
          [&](int64_t i) { return reference + i * c; }, s.normed, s.rstd, s.reference);
    }
    if (!a.embedding_grad.empty() && !a.dx.empty()) {
      const CpuMatrix& e = as_cpu(*a.embedding);
      const float* grad = a.embedding_grad.data<float>() + r0 * c;
      const void* input = grad;
      if (e.dtype() == DType::kBF16) {
        convert_to_bf16(grad, static_cast<bf16*>(s.normed), rows * c);
        input = s.normed;
      }
      matmul(pool_, e,
             {.m = rows, .n = v, .k = c, .a = input, .lda = c, .transpose_b = true, .c = s.target, .ldc = v});
    }
    logits_of(
        pool_, w, gain, a.eps, rows, [&](int64_t i) { return x + row[r0 + i] * c; }, s.normed, s.rstd,
        s.logits);
    pool_.parallel_for(rows, [&](int64_t i) { loss_row(a, s, r0 + i, i, v); });
    if (a.dx.empty()) continue;
    matmul(pool_, w,
           {.m = rows,
            .n = c,
            .k = v,
            .a = s.seeds ? s.seeds : s.logits,
            .lda = v,
            .c = s.dnormed,
            .ldc = c,
            .k_range = kVocabularyRange,
            .partials = s.partials});
    if (!a.dw.empty())
      linear_backward({.x = ConstTensor(s.normed, DType::kF32, {rows, c}),
                       .w = a.dw,  // for its shape: dx is not asked for
                       .dy = ConstTensor(s.logits, DType::kF32, {rows, v}),
                       .dx = {},
                       .dw = a.dw,
                       .db = {}});
    if (!a.dgain.empty()) {
      float* dgain = a.dgain.data<float>();
      pool_.parallel_ranges(c, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = begin; j < end; ++j)
            dgain[j] += s.dnormed[i * c + j] * x[row[r0 + i] * c + j] * s.rstd[i];
      });
    }
    float* dx = a.dx.data<float>();
    for (int64_t i = 0; i < rows; ++i)
      norm_backward_row(x + row[r0 + i] * c, s.rstd[i], gain, s.dnormed + i * c, c, dx + row[r0 + i] * c);
  }
}

}  // namespace gantrain
