#include "cuda/kernels/mlp.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/ops/norm.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

struct ForwardPieces {
  void* normed;
  float* product;
};
ForwardPieces forward_pieces(Pieces& p, int64_t n, int64_t c, int64_t out, DType t) {
  return {p.take<std::byte>(n * c * dtype_size(t)), p.take<float>(n * out)};
}
struct BackwardPieces {
  void* dy;
  float* dnormed;
};
BackwardPieces backward_pieces(Pieces& p, int64_t n, int64_t c, int64_t out, DType t) {
  return {p.take<std::byte>(n * out * dtype_size(t)), p.take<float>(n * c)};
}

}  // namespace

int64_t CudaOps::scratch(const GateUpForward& a) const {
  Pieces p;
  forward_pieces(p, a.x.dim(0), a.x.dim(1), a.w->rows(), a.w->dtype());
  return p.bytes();
}
int64_t CudaOps::scratch(const GateUpBackward& a) const {
  Pieces p;
  backward_pieces(p, a.x.dim(0), a.x.dim(1), a.w->rows(), a.w->dtype());
  return p.bytes();
}

void CudaOps::gate_up_forward(const GateUpForward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f = a.a.dim(1);
  Pieces pieces(a.scratch);
  const ForwardPieces s = forward_pieces(pieces, n, c, 2 * f, a.w->dtype());
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
                    .n = 2 * f,
                    .k = c,
                    .a = s.normed,
                    .lda = c,
                    .b = as_cuda(*a.w).data(),
                    .ldb = c,
                    .transpose_b = true,
                    .dtype = a.w->dtype(),
                    .c = s.product,
                    .ldc = 2 * f,
                    .bias = raw<float>(a.bias)});
  // g and u not wanted: rounded as if they were kept, so that inference sees what training sees.
  const DType kept = a.g.empty() ? a.a.dtype() : a.g.dtype();
  with_pair(a.a.dtype(), kept, [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    launch(swiglu_forward_kernel<S, T, kThreads>, dim3(blocks_for(n, 1), blocks_for(f, kThreads)), kThreads,
           0, context_.stream, s.product, raw<S>(a.g), raw<S>(a.u), raw<T>(a.a), f);
  });
}

void CudaOps::gate_up_backward(const GateUpBackward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f = a.da.dim(1);
  Pieces pieces(a.scratch);
  const BackwardPieces s = backward_pieces(pieces, n, c, 2 * f, a.w->dtype());
  with_pair(a.da.dtype(), a.g.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    launch(swiglu_backward_kernel<S, T, kThreads>, dim3(blocks_for(n, 1), blocks_for(f, kThreads)), kThreads,
           0, context_.stream, raw<S>(a.g), raw<S>(a.u), raw<T>(a.da), static_cast<T*>(s.dy), f);
  });
  matmul(context_, {.m = n,
                    .n = c,
                    .k = 2 * f,
                    .a = s.dy,
                    .lda = 2 * f,
                    .b = as_cuda(*a.w).data(),
                    .ldb = c,
                    .dtype = a.w->dtype(),
                    .c = s.dnormed,
                    .ldc = c});
  norm_backward_rows(context_, raw<float>(a.x), raw<float>(a.rstd), raw<float>(a.gain), s.dnormed,
                     raw<float>(a.dx), n, c);
}

}  // namespace gantrain
