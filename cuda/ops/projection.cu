#include "cuda/kernels/matmul_epilogue.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/matmul.h"
#include "cuda/ops/norm.h"

namespace gantrain {

using namespace cuda;

namespace {

struct ForwardPieces {
  __nv_bfloat16* input;  // `a` in f16 beside bf16 weights: rounded to the input type of the product
  float* squares;        // for the next statistic, where it is wanted
};
ForwardPieces forward_pieces(Pieces& p, const ProjectForward& a) {
  const int64_t n = a.a.dim(0), in = a.a.dim(1), c = a.w->rows();
  return {.input = a.a.dtype() == a.w->dtype() ? nullptr : p.take<__nv_bfloat16>(n * in),
          .squares = a.rstd.empty() ? nullptr : p.take<float>(n * parts_of(c))};
}
// bf16 only: dout rounded to the input type of the product, where it was not handed over so.
__nv_bfloat16* backward_piece(Pieces& p, const ProjectBackward& a) {
  return a.w->dtype() == DType::kF32 || !a.dout_bf16.empty()
             ? nullptr
             : p.take<__nv_bfloat16>(a.dout.dim(0) * a.dout.dim(1));
}

}  // namespace

int64_t CudaOps::scratch(const ProjectForward& a) const {
  Pieces p;
  forward_pieces(p, a);
  return p.bytes();
}
int64_t CudaOps::scratch(const ProjectBackward& a) const {
  Pieces p;
  backward_piece(p, a);
  return p.bytes();
}

void CudaOps::project_forward(const ProjectForward& a) {
  const int64_t n = a.a.dim(0), in = a.a.dim(1), c = a.w->rows();
  Pieces pieces(a.scratch);
  const void* input = a.a.raw();
  const ForwardPieces s = forward_pieces(pieces, a);
  if (s.input) {
    round_to_bf16(context_, input, a.a.dtype(), s.input, n * in);
    input = s.input;
  }
  Matmul product{.m = n,
                 .n = c,
                 .k = in,
                 .a = input,
                 .lda = in,
                 .b = as_cuda(*a.w).data(),
                 .ldb = in,
                 .transpose_b = true,
                 .dtype = a.w->dtype(),
                 .c = a.out.raw(),
                 .ldc = c,
                 .bias = raw<float>(a.bias),
                 .addend = raw<float>(a.residual),
                 .fused = !a.rstd.empty() || !a.out_bf16.empty()};
  // The library gives no sums of squares and no second result.
  auto* rounded = raw<__nv_bfloat16>(a.out_bf16);
  const bool library = matmul_by_library(context_, product);
  if (!library) {
    product.squares = s.squares;
    product.rounded = rounded;
  }
  matmul(context_, product);
  if (!library && !a.rstd.empty())
    row_statistic_of_squares(context_, s.squares, raw<float>(a.rstd), n, c, a.eps);
  if (library && !a.rstd.empty())
    row_statistic(context_, raw<float>(a.out), raw<float>(a.rstd), rounded, n, c, a.eps);
  else if (library && rounded)
    round_to_bf16(context_, a.out.raw(), DType::kF32, rounded, n * c);
}

void CudaOps::project_backward(const ProjectBackward& a) {
  const int64_t n = a.dout.dim(0), c = a.w->rows(), in = a.w->cols();
  Pieces pieces(a.scratch);
  const void* input = a.dout_bf16.empty() ? a.dout.raw() : a.dout_bf16.raw();
  if (__nv_bfloat16* rounded = backward_piece(pieces, a)) {
    round_to_bf16(context_, input, DType::kF32, rounded, n * c);
    input = rounded;
  }
  matmul(context_, {.m = n,
                    .n = in,
                    .k = c,
                    .a = input,
                    .lda = c,
                    .b = as_cuda(*a.w).data(),
                    .ldb = in,
                    .dtype = a.w->dtype(),
                    .c = a.da.raw(),
                    .ldc = in,
                    .c_dtype = a.da.dtype()});
}

}  // namespace gantrain
