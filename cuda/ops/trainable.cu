#include "cuda/kernels/sums.cuh"
#include "cuda/kernels/trainable.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/ops/sums.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 256, kColumnThreads = 64;

// One thread an element (kThreads) or a column (kColumnThreads).
template <typename... Parameters, typename... Args>
void each(const Context& context, int threads, int64_t count, void (*kernel)(Parameters...), Args... args) {
  launch(kernel, blocks_for(count, threads), static_cast<unsigned>(threads), 0, context.stream, args...);
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

void strided_sum(const Context& context, const float* x, float* to, int64_t outer, int64_t width,
                 int64_t inner, int64_t outer_step, int64_t step) {
  each(context, kColumnThreads, outer * width, strided_sum_kernel<kColumnThreads>, x, to, outer, width, inner,
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
    each(context_, kThreads, count, activation_forward_kernel<kCode, kThreads>, raw<float>(a.x),
         raw<float>(a.y), count);
  });
}

void CudaOps::activation_backward(const ActivationBackward& a) {
  const int64_t count = a.x.count();
  with_activation(a.kind, [&]<ActivationCode kCode>() {
    each(context_, kThreads, count, activation_backward_kernel<kCode, kThreads>, raw<float>(a.x),
         raw<float>(a.dy), raw<float>(a.dx), count);
  });
}

void CudaOps::broadcast_add_forward(const BroadcastAddForward& a) {
  each(context_, kThreads, a.y.count(), broadcast_add_forward_kernel<kThreads>, raw<float>(a.a),
       raw<float>(a.c), raw<float>(a.y), a.y.count(), a.y.dim(1), a.y.dim(2));
}

void CudaOps::broadcast_add_backward(const BroadcastAddBackward& a) {
  const int64_t batch = a.dy.dim(0), rows = a.dy.dim(1), width = a.dy.dim(2);
  strided_sum(context_, raw<float>(a.dy), raw<float>(a.da), rows, width, batch, width, rows * width);
  strided_sum(context_, raw<float>(a.dy), raw<float>(a.dc), batch, width, rows, rows * width, width);
}

void CudaOps::scaled_add_forward(const ScaledAddForward& a) {
  each(context_, kThreads, a.x.count(), scaled_add_forward_kernel<kThreads>, raw<float>(a.base),
       raw<float>(a.x), raw<float>(a.s), raw<float>(a.y), a.x.count(), a.base.count());
}

void CudaOps::scaled_add_backward(const ScaledAddBackward& a) {
  const int64_t batch = a.x.dim(0), size = a.x.dim(1) * a.x.dim(2), count = batch * size;
  if (count == 0) return;
  strided_sum(context_, raw<float>(a.dy), raw<float>(a.dbase), 1, size, batch, 0, size);
  each(context_, kThreads, count, axpy_kernel<kThreads>, raw<float>(a.dy), raw<float>(a.s), 0.0f,
       raw<float>(a.dx), count);
  dot_into_total(context_, raw<float>(a.dy), raw<float>(a.x), count, false);
  launch(add_total_kernel, 1, 1, 0, context_.stream, context_.total, raw<float>(a.ds));
}

void CudaOps::gather_rows(const GatherRows& a) {
  const int64_t width = a.x.dim(1);
  launch(gather_rows_kernel<kThreads>, dim3(blocks_for(a.rows.count(), 1), blocks_for(width, kThreads)),
         kThreads, 0, context_.stream, raw<float>(a.x), raw<int32_t>(a.rows), raw<float>(a.y), width);
}

void CudaOps::scatter_add_rows(const ScatterAddRows& a) {
  const int64_t width = a.dx.dim(1);
  each(context_, kColumnThreads, width, scatter_add_rows_kernel<kColumnThreads>, raw<float>(a.dy),
       raw<int32_t>(a.rows), raw<float>(a.dx), a.rows.count(), width);
}

void CudaOps::axpy(const Axpy& a) {
  each(context_, kThreads, a.x.count(), axpy_kernel<kThreads>, raw<float>(a.x),
       static_cast<const float*>(nullptr), a.a, raw<float>(a.y), a.x.count());
}

void CudaOps::add_noise(const AddNoise& a) {
  const int64_t count = a.x.count();
  each(context_, kThreads, (count + 3) / 4, add_noise_kernel<kThreads>, raw<float>(a.x), a.sigma, a.key,
       a.counter, raw<float>(a.y), count);
}

}  // namespace gantrain
