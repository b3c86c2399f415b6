#include "cuda/kernels/sums.cuh"
#include "cuda/kernels/trainable.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/ops/sums.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 256, kColumnThreads = 64;

// One thread a column.
template <typename... Parameters, typename... Args>
void each_column(const Context& context, int64_t count, void (*kernel)(Parameters...), Args... args) {
  launch(kernel, blocks_for(count, kColumnThreads), kColumnThreads, 0, context.stream, args...);
}

// f.operator()<kVector>(begin, n, pointers from `begin` on...) over whole vectors of 4, and of 1 for the
// rest.
template <typename F, typename... Pointers>
void elementwise(int64_t count, F f, Pointers... p) {
  in_vectors(
      count, 4, aligned_to(16, p...),
      [&](int64_t begin, int64_t n) { f.template operator()<4>(begin, n, p...); },
      [&](int64_t begin, int64_t n) { f.template operator()<1>(begin, n, (p + begin)...); });
}
// f.operator()<kVector>() for rows of `width` values.
template <typename F, typename... Pointers>
void rowwise(int64_t width, F f, Pointers... p) {
  if (width % 4 == 0 && aligned_to(16, p...))
    f.template operator()<4>();
  else
    f.template operator()<1>();
}

// f(code) with the activation as a template argument.
template <typename F>
void with_activation(Activation kind, F f) {
  switch (kind) {
    case Activation::kSilu:
      return f.template operator()<ActivationCode::kSilu>();
    case Activation::kGelu:
      return f.template operator()<ActivationCode::kGelu>();
    case Activation::kTanh:
      return f.template operator()<ActivationCode::kTanh>();
  }
}

// y += factor * x, the factor from memory where `at` is given.
void add_scaled(const Context& context, const float* x, const float* at, float factor, float* y,
                int64_t count) {
  elementwise(
      count,
      [&]<int kVector>(int64_t, int64_t n, const float* from, float* to) {
        launch(axpy_kernel<kVector, kThreads>, blocks_for(n, kVector * kThreads), kThreads, 0, context.stream,
               from, at, factor, to, n);
      },
      x, y);
}
void strided_sum(const Context& context, const float* x, float* to, int64_t outer, int64_t width,
                 int64_t inner, int64_t outer_step, int64_t step) {
  each_column(context, outer * width, strided_sum_kernel<kColumnThreads>, x, to, outer, width, inner,
              outer_step, step);
}

}  // namespace

void CudaOps::linear_forward(const LinearForward& a) {
  const int64_t n = a.x.dim(0), in = a.x.dim(1), out = a.w.dim(0);
  matmul(context_, {.m = n,
                    .n = out,
                    .k = in,
                    .a = a.x.raw(),
                    .lda = in,
                    .b = a.w.raw(),
                    .ldb = in,
                    .transpose_b = true,
                    .c = a.y.raw(),
                    .ldc = out,
                    .bias = raw<float>(a.b)});
}

void CudaOps::linear_backward(const LinearBackward& a) {
  const int64_t n = a.x.dim(0), in = a.x.dim(1), out = a.w.dim(0);
  if (a.dx)
    matmul(context_, {.m = n,
                      .n = in,
                      .k = out,
                      .a = a.dy.raw(),
                      .lda = out,
                      .b = a.w.raw(),
                      .ldb = in,
                      .c = a.dx.raw(),
                      .ldc = in,
                      .addend = raw<float>(a.dx)});
  if (a.dw)
    matmul(context_, {.m = out,
                      .n = in,
                      .k = n,
                      .a = a.dy.raw(),
                      .lda = out,
                      .transpose_a = true,
                      .b = a.x.raw(),
                      .ldb = in,
                      .c = a.dw.raw(),
                      .ldc = in,
                      .addend = raw<float>(a.dw)});
  if (a.db) strided_sum(context_, raw<float>(a.dy), raw<float>(a.db), 1, out, n, 0, out);
}

void CudaOps::activation_forward(const ActivationForward& a) {
  const int64_t count = a.x.count();
  with_activation(a.kind, [&]<ActivationCode kCode>() {
    elementwise(
        count,
        [&]<int kVector>(int64_t, int64_t n, auto... p) {
          launch(activation_forward_kernel<kCode, kVector, kThreads>, blocks_for(n, kVector * kThreads),
                 kThreads, 0, context_.stream, p..., n);
        },
        raw<float>(a.x), raw<float>(a.y));
  });
}

void CudaOps::activation_backward(const ActivationBackward& a) {
  const int64_t count = a.x.count();
  with_activation(a.kind, [&]<ActivationCode kCode>() {
    elementwise(
        count,
        [&]<int kVector>(int64_t, int64_t n, auto... p) {
          launch(activation_backward_kernel<kCode, kVector, kThreads>, blocks_for(n, kVector * kThreads),
                 kThreads, 0, context_.stream, p..., n);
        },
        raw<float>(a.x), raw<float>(a.dy), raw<float>(a.dx));
  });
}

void CudaOps::broadcast_add_forward(const BroadcastAddForward& a) {
  const int64_t batch = a.y.dim(0), width = a.y.dim(2), size = a.y.dim(1) * width;
  const float *rows = raw<float>(a.a), *row = raw<float>(a.c);
  auto* y = raw<float>(a.y);
  rowwise(
      width,
      [&]<int kVector>() {
        launch(broadcast_add_forward_kernel<kVector, kThreads>,
               dim3(blocks_for(batch, 1), blocks_for(size, kVector * kThreads)), kThreads, 0, context_.stream,
               rows, row, y, size, width);
      },
      rows, row, y);
}

void CudaOps::broadcast_add_backward(const BroadcastAddBackward& a) {
  const int64_t batch = a.dy.dim(0), rows = a.dy.dim(1), width = a.dy.dim(2);
  strided_sum(context_, raw<float>(a.dy), raw<float>(a.da), rows, width, batch, width, rows * width);
  strided_sum(context_, raw<float>(a.dy), raw<float>(a.dc), batch, width, rows, rows * width, width);
}

void CudaOps::scaled_add_forward(const ScaledAddForward& a) {
  const int64_t batch = a.x.dim(0), size = a.base.count();
  const float *base = raw<float>(a.base), *x = raw<float>(a.x);
  auto* y = raw<float>(a.y);
  rowwise(
      size,
      [&]<int kVector>() {
        launch(scaled_add_forward_kernel<kVector, kThreads>,
               dim3(blocks_for(batch, 1), blocks_for(size, kVector * kThreads)), kThreads, 0, context_.stream,
               base, x, raw<float>(a.s), y, size);
      },
      base, x, y);
}

void CudaOps::scaled_add_backward(const ScaledAddBackward& a) {
  const int64_t batch = a.x.dim(0), size = a.x.dim(1) * a.x.dim(2), count = batch * size;
  if (count == 0) return;
  strided_sum(context_, raw<float>(a.dy), raw<float>(a.dbase), 1, size, batch, 0, size);
  add_scaled(context_, raw<float>(a.dy), raw<float>(a.s), 0.0f, raw<float>(a.dx), count);
  dot_into_total(context_, raw<float>(a.dy), raw<float>(a.x), count, false);
  launch(add_total_kernel, 1, 1, 0, context_.stream, context_.total, raw<float>(a.ds));
}

void CudaOps::gather_rows(const GatherRows& a) {
  const int64_t width = a.x.dim(1);
  const auto* x = raw<float>(a.x);
  auto* y = raw<float>(a.y);
  rowwise(
      width,
      [&]<int kVector>() {
        launch(gather_rows_kernel<kVector, kThreads>,
               dim3(blocks_for(a.rows.count(), 1), blocks_for(width, kVector * kThreads)), kThreads, 0,
               context_.stream, x, raw<int32_t>(a.rows), y, width);
      },
      x, y);
}

void CudaOps::scatter_add_rows(const ScatterAddRows& a) {
  const int64_t width = a.dx.dim(1);
  each_column(context_, width, scatter_add_rows_kernel<kColumnThreads>, raw<float>(a.dy),
              raw<int32_t>(a.rows), raw<float>(a.dx), a.rows.count(), width);
}

void CudaOps::axpy(const Axpy& a) {
  add_scaled(context_, raw<float>(a.x), nullptr, a.a, raw<float>(a.y), a.x.count());
}

void CudaOps::add_noise(const AddNoise& a) {
  elementwise(
      a.x.count(),
      [&]<int kVector>(int64_t begin, int64_t n, const float* x, float* y) {
        launch(add_noise_kernel<kVector, kThreads>, blocks_for(n, 4 * kThreads), kThreads, 0, context_.stream,
               x, a.sigma, a.key, a.counter, (a.first + begin) / 4, y, n);
      },
      raw<float>(a.x), raw<float>(a.y));
}

}  // namespace gantrain
