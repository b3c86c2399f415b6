#include "cuda/kernels/head.cuh"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "cuda/ops/dequantize.h"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/matmul.h"
#include "cuda/ops/norm.h"

namespace gantrain {

using namespace cuda;

namespace {

// Rows of a chunk: a whole number of tiles, so that the products fill a big GPU, and no more logits than this
// many MiB of f32 where that leaves 128 rows. The product back has few columns, so that its rows alone make
// its tiles: 128 of them are 16 tiles at a hidden size of 2,048.
constexpr int64_t kTileRows = 128, kLogitMiB = 256;
constexpr int kThreads = 512;

int64_t logit_mib() {
  const char* text = std::getenv("GANTRAIN_HEAD_MIB");
  if (!text) return kLogitMiB;
  const std::string_view value(text);
  int64_t mib = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), mib);
  if (error != std::errc() || end != value.data() + value.size() || mib < 0 || mib > (1 << 20))
    fail_usage("GANTRAIN_HEAD_MIB: '{}', expected a whole number of MiB of logits, 0 to 1048576", value);
  return mib;
}
// Chunks of about the same size for `total` rows of a vocabulary of v. Results do not depend on it: a row's
// bits depend on neither its neighbours nor its place, and dx is added in the order of rows.
int64_t chunk_rows(int64_t total, int64_t v) {
  const auto tiles = [](int64_t rows) { return (rows + kTileRows - 1) / kTileRows; };
  const int64_t most = std::max<int64_t>(1, (logit_mib() << 20) / (4 * kTileRows * v));  // in tiles
  const int64_t chunks = (tiles(total) + most - 1) / most;
  return std::min(total, (tiles(total) + chunks - 1) / std::max<int64_t>(chunks, 1) * kTileRows);
}

bool present(const ConstTensor& t) { return !t.empty() || t.rank() > 0; }

struct LossPieces {
  void *normed, *seeds;  // seeds: in place of the logits if they are f32
  float *logits, *reference, *noisy, *target, *rstd, *dnormed;
};
LossPieces loss_pieces(Pieces& p, const HeadLoss& a) {
  const int64_t v = a.w->rows(), c = a.w->cols(), rows = chunk_rows(a.rows.dim(0), v);
  const bool gumbel = present(a.embedding_grad);
  LossPieces s{};
  s.normed = p.take<float>(rows * c);
  s.logits = p.take<float>(rows * v);
  s.seeds = s.logits;
  s.reference = present(a.reference) ? p.take<float>(rows * v) : nullptr;
  s.noisy = gumbel ? p.take<float>(rows * v) : nullptr;
  s.target = gumbel ? p.take<float>(rows * v) : nullptr;
  s.rstd = p.take<float>(rows);
  if (present(a.dx)) {
    if (a.w->dtype() == DType::kBF16) s.seeds = p.take<__nv_bfloat16>(rows * v);
    s.dnormed = p.take<float>(rows * c);
  }
  return s;
}

// f(begin, rows) for all rows of w, whose values are then at as_cuda(w).data(): one range, or of a packed
// matrix as many as are expanded at a time.
template <typename F>
void in_row_ranges(const Context& context, const FrozenMatrix& w, F f) {
  const int64_t v = w.rows(), step = w.packed() ? std::min(v, kTallRows) : v;
  for (int64_t begin = 0; begin < v; begin += step) {
    const int64_t rows = std::min(step, v - begin);
    expand_weights(context, w, begin, rows);
    f(begin, rows);
  }
}

// y (n, V) = a w^T, a (n, C) of w's type
void times_transposed(const Context& context, const FrozenMatrix& w, const void* a, int64_t n, float* y) {
  const int64_t c = w.cols(), v = w.rows();
  in_row_ranges(context, w, [&](int64_t begin, int64_t rows) {
    matmul(context, {.m = n,
                     .n = rows,
                     .k = c,
                     .a = a,
                     .lda = c,
                     .b = as_cuda(w).data(),
                     .ldb = c,
                     .transpose_b = true,
                     .dtype = w.dtype(),
                     .c = y + begin,
                     .ldc = v});
  });
}

// logits (n, V) = the normalised rows of x times w^T
void logits_of(const Context& context, const FrozenMatrix& w, const float* x, const int32_t* rows,
               const ConstTensor& gain, float eps, int64_t n, void* normed, float* rstd, float* logits) {
  const int64_t c = w.cols();
  normalise_rows(context, {.x = x,
                           .rows = rows,
                           .gain = raw<float>(gain),
                           .rstd = rstd,
                           .statistic = true,
                           .eps = eps,
                           .type = w.dtype(),
                           .y = normed,
                           .n = n,
                           .c = c});
  times_transposed(context, w, normed, n, logits);
}

struct LogitsPieces {
  void* normed;
  float* rstd;
};
LogitsPieces logits_pieces(Pieces& p, const HeadLogits& a) {
  const int64_t rows = a.rows.dim(0);
  return {p.take<std::byte>(rows * a.w->cols() * dtype_size(a.w->dtype())), p.take<float>(rows)};
}

template <typename T>
T* from_row(const BasicTensor<false>& t, int64_t row) {
  return t.empty() ? nullptr : raw<T>(t) + row;
}
template <typename T>
const T* from_row(const ConstTensor& t, int64_t row, int64_t width = 1) {
  return t.empty() ? nullptr : raw<T>(t) + row * width;
}

}  // namespace

int64_t CudaOps::scratch(const HeadLogits& a) const {
  Pieces p;
  logits_pieces(p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const HeadLoss& a) const {
  Pieces p;
  loss_pieces(p, a);
  return p.bytes();
}

void CudaOps::head_logits(const HeadLogits& a) {
  Pieces pieces(a.scratch);
  const LogitsPieces s = logits_pieces(pieces, a);
  logits_of(context_, *a.w, raw<float>(a.x), raw<int32_t>(a.rows), a.gain, a.eps, a.rows.dim(0), s.normed,
            s.rstd, raw<float>(a.logits));
}

void CudaOps::head_loss(const HeadLoss& a) {
  const int64_t c = a.w->cols(), v = a.w->rows(), total = a.rows.dim(0);
  const DType type = a.w->dtype();
  Pieces pieces(a.scratch);
  const LossPieces s = loss_pieces(pieces, a);
  const bool wants_seed = !a.dx.empty(), gumbel = !a.embedding_grad.empty() && wants_seed;
  const int64_t chunk = chunk_rows(total, v);
  for (int64_t r0 = 0; r0 < total; r0 += chunk) {
    const int64_t n = std::min(chunk, total - r0);
    const int32_t* rows = from_row<int32_t>(a.rows, r0);
    if (!a.reference.empty())
      logits_of(context_, a.reference_w ? *a.reference_w : *a.w, from_row<float>(a.reference, r0, c), nullptr,
                a.reference_w ? a.reference_gain : a.gain, a.eps, n, s.normed, s.rstd, s.reference);
    if (gumbel) {
      const void* grad = from_row<float>(a.embedding_grad, r0, c);
      if (a.embedding->dtype() == DType::kBF16) {
        round_to_bf16(context_, grad, DType::kF32, s.normed, n * c);
        grad = s.normed;
      }
      times_transposed(context_, *a.embedding, grad, n, s.target);
    }
    logits_of(context_, *a.w, raw<float>(a.x), rows, a.gain, a.eps, n, s.normed, s.rstd, s.logits);
    const HeadRowArgs args{.logits = s.logits,
                           .reference = a.reference.empty() ? nullptr : s.reference,
                           .noisy = gumbel ? s.noisy : nullptr,
                           .target = s.target,
                           .labels = from_row<int32_t>(a.labels, r0),
                           .ce_weight = from_row<float>(a.ce_weight, r0),
                           .kl_weight = from_row<float>(a.kl_weight, r0),
                           .key = from_row<int64_t>(a.key, r0),
                           .counter = from_row<int64_t>(a.counter, r0),
                           .inverse_tau = 1.0f / a.tau,
                           .top_k = a.top_k,
                           .nll = from_row<float>(a.nll, r0),
                           .kl = from_row<float>(a.kl, r0),
                           .argmax = from_row<int32_t>(a.argmax, r0),
                           .wants_seed = wants_seed,
                           .v = static_cast<int>(v)};
    with_weights(type, [&]<typename T>(Tag<T>) {
      const bool wide = v % kWide<T> == 0;  // scratch is aligned
      launch(wide ? head_row_kernel<T, 4, kThreads> : head_row_kernel<T, 1, kThreads>, blocks_for(n, 1),
             kThreads, 0, context_.stream, args, static_cast<T*>(s.seeds));
    });
    if (!wants_seed) continue;
    in_row_ranges(context_, *a.w, [&](int64_t begin, int64_t range) {
      matmul(context_, {.m = n,
                        .n = c,
                        .k = range,
                        .a = static_cast<const std::byte*>(s.seeds) + begin * dtype_size(type),
                        .lda = v,
                        .b = as_cuda(*a.w).data(),
                        .ldb = c,
                        .dtype = type,
                        .c = s.dnormed,
                        .ldc = c,
                        .addend = begin > 0 ? s.dnormed : nullptr});
    });
    if (!a.dw.empty())  // f32: the seeds are in the logits' place
      matmul(context_, {.m = v,
                        .n = c,
                        .k = n,
                        .a = s.logits,
                        .lda = v,
                        .transpose_a = true,
                        .b = s.normed,
                        .ldb = c,
                        .c = a.dw.raw(),
                        .ldc = c,
                        .addend = raw<float>(a.dw)});
    if (!a.dgain.empty())
      gain_gradient(context_, raw<float>(a.x), rows, s.rstd, s.dnormed, raw<float>(a.dgain), n, c);
    const bool wide = c % 4 == 0 && aligned_to(16, raw<float>(a.x), raw<float>(a.gain), raw<float>(a.dx));
    launch(wide ? head_scatter_kernel<4, kWarp> : head_scatter_kernel<1, kWarp>, blocks_for(n, 1), kWarp, 0,
           context_.stream, raw<float>(a.x), rows, s.rstd, raw<float>(a.gain), s.dnormed, raw<float>(a.dx), n,
           c);
  }
}

}  // namespace gantrain
