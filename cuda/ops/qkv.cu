#include "cuda/kernels/qkv.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/ops/norm.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

struct ForwardPieces {
  void* normed;
  float *product, *table;
};
ForwardPieces forward_pieces(Pieces& p, int64_t n, int64_t c, int64_t out, int64_t d, DType t) {
  return {p.take<std::byte>(n * c * dtype_size(t)), p.take<float>(n * out), p.take<float>(n * d)};
}
struct BackwardPieces {
  void* dy;
  float *dnormed, *table;
};
BackwardPieces backward_pieces(Pieces& p, int64_t n, int64_t c, int64_t out, int64_t d, DType t) {
  return {p.take<std::byte>(n * out * dtype_size(t)), p.take<float>(n * c), p.take<float>(n * d)};
}

void rotary_table(const Context& context, const ConstTensor& positions, const ConstTensor& inv_freq,
                  float* table) {
  const int64_t n = positions.dim(0), half = inv_freq.dim(0);
  launch(rotary_table_kernel<kThreads>, blocks_for(n * half, kThreads), kThreads, 0, context.stream,
         raw<int32_t>(positions), raw<float>(inv_freq), table, n, half);
}

}  // namespace

int64_t CudaOps::scratch(const QkvForward& a) const {
  Pieces p;
  forward_pieces(p, a.x.dim(0), a.x.dim(1), a.w->rows(), a.q.dim(2), a.w->dtype());
  return p.bytes();
}
int64_t CudaOps::scratch(const QkvBackward& a) const {
  Pieces p;
  backward_pieces(p, a.x.dim(0), a.x.dim(1), a.w->rows(), a.dq.dim(2), a.w->dtype());
  return p.bytes();
}

void CudaOps::qkv_forward(const QkvForward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), h = a.q.dim(1), d = a.q.dim(2), k = a.k.dim(1),
                out = a.w->rows();
  Pieces pieces(a.scratch);
  const ForwardPieces s = forward_pieces(pieces, n, c, out, d, a.w->dtype());
  normalise_rows(context_, {.x = raw<float>(a.x),
                            .rows = nullptr,
                            .gain = raw<float>(a.gain),
                            .rstd = const_cast<float*>(raw<float>(a.rstd)),
                            .statistic = false,
                            .eps = 0,
                            .type = a.w->dtype(),
                            .y = s.normed,
                            .n = n,
                            .c = c});
  matmul(context_, {.m = n,
                    .n = out,
                    .k = c,
                    .a = s.normed,
                    .lda = c,
                    .b = as_cuda(*a.w).data(),
                    .ldb = c,
                    .transpose_b = true,
                    .dtype = a.w->dtype(),
                    .c = s.product,
                    .ldc = out,
                    .bias = raw<float>(a.bias)});
  rotary_table(context_, a.positions, a.inv_freq, s.table);
  with_type(a.q.dtype(), [&]<typename S>(Tag<S>) {
    launch(rotate_forward_kernel<S, kThreads>, blocks_for(n, 1), kThreads, 0, context_.stream, s.product,
           s.table, raw<S>(a.q), raw<S>(a.k), raw<S>(a.v), h, k, d / 2);
  });
}

void CudaOps::qkv_backward(const QkvBackward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), h = a.dq.dim(1), d = a.dq.dim(2), k = a.dk.dim(1),
                out = a.w->rows();
  Pieces pieces(a.scratch);
  const BackwardPieces s = backward_pieces(pieces, n, c, out, d, a.w->dtype());
  rotary_table(context_, a.positions, a.inv_freq, s.table);
  with_weights(a.w->dtype(), [&]<typename T>(Tag<T>) {
    launch(rotate_backward_kernel<T, kThreads>, blocks_for(n, 1), kThreads, 0, context_.stream, raw<T>(a.dq),
           raw<T>(a.dk), raw<T>(a.dv), s.table, static_cast<T*>(s.dy), h, k, d / 2);
  });
  matmul(context_, {.m = n,
                    .n = c,
                    .k = out,
                    .a = s.dy,
                    .lda = out,
                    .b = as_cuda(*a.w).data(),
                    .ldb = c,
                    .dtype = a.w->dtype(),
                    .c = s.dnormed,
                    .ldc = c});
  norm_backward_rows(context_, raw<float>(a.x), raw<float>(a.rstd), raw<float>(a.gain), s.dnormed,
                     raw<float>(a.dx), n, c);
}

}  // namespace gantrain
