#include "cuda/kernels/elementwise.cuh"
#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/matmul.h"
#include "cuda/ops/norm.h"

namespace gantrain {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

template <typename From, typename To>
void convert(const Context& context, const void* from, void* to, int64_t count) {
  launch(convert_kernel<From, To, kThreads>, blocks_for(count, kThreads), kThreads, 0, context.stream,
         static_cast<const From*>(from), static_cast<To*>(to), count);
}

// `a` in f16 beside bf16 weights: rounded to the input type of the product.
__nv_bfloat16* forward_piece(Pieces& p, const ProjectForward& a) {
  return a.a.dtype() == a.w->dtype() ? nullptr : p.take<__nv_bfloat16>(a.a.dim(0) * a.a.dim(1));
}
// bf16 only: dout rounded to the input type of the product.
__nv_bfloat16* backward_piece(Pieces& p, const ProjectBackward& a) {
  return a.w->dtype() == DType::kF32 ? nullptr : p.take<__nv_bfloat16>(a.dout.dim(0) * a.dout.dim(1));
}

}  // namespace

int64_t CudaOps::scratch(const ProjectForward& a) const {
  Pieces p;
  forward_piece(p, a);
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
  if (__nv_bfloat16* rounded = forward_piece(pieces, a)) {
    convert<__half, __nv_bfloat16>(context_, input, rounded, n * in);
    input = rounded;
  }
  matmul(context_, {.m = n,
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
                    .addend = raw<float>(a.residual)});
  if (!a.rstd.empty()) row_statistic(context_, raw<float>(a.out), raw<float>(a.rstd), n, c, a.eps);
}

void CudaOps::project_backward(const ProjectBackward& a) {
  const int64_t n = a.dout.dim(0), c = a.w->rows(), in = a.w->cols();
  Pieces pieces(a.scratch);
  const void* input = a.dout.raw();
  if (__nv_bfloat16* rounded = backward_piece(pieces, a)) {
    convert<float, __nv_bfloat16>(context_, input, rounded, n * c);
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
