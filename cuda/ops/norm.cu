#include "cuda/ops/norm.h"

#include "cuda/kernels/norm.cuh"
#include "cuda/ops/dispatch.cuh"

namespace gantrain {
namespace cuda {
namespace {

constexpr int kThreads = 128;

unsigned row_blocks(int64_t n, int log_lanes) { return blocks_for(n << log_lanes, kThreads); }

}  // namespace

void normalise_rows(const Context& context, const NormaliseRows& a) {
  with_weights(a.type, [&]<typename T>(Tag<T>) {
    auto* y = static_cast<T*>(a.y);
    const bool wide = a.c % kWide<T> == 0 && aligned_to(16, a.x, a.gain, y);
    const int log_lanes = log_row_lanes(a.c, wide ? 4 : 1);
    const auto run = [&](auto kernel) {
      launch(kernel, row_blocks(a.n, log_lanes), kThreads, 0, context.stream, a.x, a.rows, a.gain, a.rstd, y,
             a.n, a.c, a.eps, log_lanes);
    };
    if (a.statistic)
      run(wide ? normalise_kernel<T, 4, kThreads, true> : normalise_kernel<T, 1, kThreads, true>);
    else
      run(wide ? normalise_kernel<T, 4, kThreads, false> : normalise_kernel<T, 1, kThreads, false>);
  });
}

void row_statistic(const Context& context, const float* x, float* rstd, __nv_bfloat16* rounded,
                   const float* gain, int64_t n, int64_t c, float eps) {
  const bool wide = c % 4 == 0 && aligned_to(16, x);
  const int log_lanes = log_row_lanes(c, wide ? 4 : 1);
  const auto kernel = !wide                                         ? row_rstd_kernel<1, kThreads, 1>
                      : c % 8 == 0 && aligned_to(16, rounded, gain) ? row_rstd_kernel<4, kThreads, 4>
                                                                    : row_rstd_kernel<4, kThreads, 1>;
  launch(kernel, row_blocks(n, log_lanes), kThreads, 0, context.stream, x, gain, rstd, rounded, n, c, eps,
         log_lanes);
}

void norm_backward_rows(const Context& context, const float* x, const float* rstd, const float* gain,
                        const float* dy, float* dx, int64_t n, int64_t c) {
  const bool wide = c % 4 == 0 && aligned_to(16, x, dy, dx, gain);
  const int log_lanes = log_row_lanes(c, wide ? 4 : 1);
  launch(wide ? norm_backward_kernel<4, kThreads> : norm_backward_kernel<1, kThreads>,
         row_blocks(n, log_lanes), kThreads, 0, context.stream, x, rstd, gain, dy, dx, n, c, log_lanes);
}
void gain_gradient(const Context& context, const float* x, const int32_t* rows, const float* rstd,
                   const float* dy, float* dw, int64_t n, int64_t c) {
  constexpr int kThreads = 64;
  launch(gain_gradient_kernel<kThreads>, blocks_for(c, kThreads), kThreads, 0, context.stream, x, rows, rstd,
         dy, dw, n, c);
}

}  // namespace cuda

using namespace cuda;

void CudaOps::row_rstd(const RowRstd& a) {
  row_statistic(context_, raw<float>(a.x), raw<float>(a.rstd), raw<__nv_bfloat16>(a.x_bf16),
                raw<float>(a.gain), a.x.dim(0), a.x.dim(1), a.eps);
}

void CudaOps::rmsnorm_forward(const RmsNormForward& a) {
  normalise_rows(context_, {.x = raw<float>(a.x),
                            .rows = nullptr,
                            .gain = raw<float>(a.w),
                            .rstd = raw<float>(a.rstd),
                            .statistic = true,
                            .eps = a.eps,
                            .type = DType::kF32,
                            .y = a.y.raw(),
                            .n = a.x.dim(0),
                            .c = a.x.dim(1)});
}

void CudaOps::rmsnorm_backward(const RmsNormBackward& a) {
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  if (!a.dx.empty())
    norm_backward_rows(context_, raw<float>(a.x), raw<float>(a.rstd), raw<float>(a.w), raw<float>(a.dy),
                       raw<float>(a.dx), n, c);
  if (!a.dw.empty())
    gain_gradient(context_, raw<float>(a.x), nullptr, raw<float>(a.rstd), raw<float>(a.dy), raw<float>(a.dw),
                  n, c);
}

}  // namespace gantrain
