#include "cuda/ops/elementwise.h"

#include "cuda/kernels/elementwise.cuh"
#include "cuda/ops/dispatch.cuh"

namespace gantrain::cuda {

namespace {

template <typename From>
void run(const Context& context, const void* from, void* to, int64_t count) {
  constexpr int kThreads = 256;
  const auto* in = static_cast<const From*>(from);
  auto* out = static_cast<__nv_bfloat16*>(to);
  in_vectors(
      count, 8, aligned_to(16, in, out),
      [&](int64_t, int64_t n) {
        launch(round_to_bf16_kernel<From, 8, kThreads>, blocks_for(n, 8 * kThreads), kThreads, 0,
               context.stream, in, out, n);
      },
      [&](int64_t begin, int64_t n) {
        launch(round_to_bf16_kernel<From, 1, kThreads>, blocks_for(n, kThreads), kThreads, 0, context.stream,
               in + begin, out + begin, n);
      });
}

}  // namespace

void round_to_bf16(const Context& context, const void* from, DType from_type, void* to, int64_t count) {
  GT_CHECK(from_type == DType::kF32 || from_type == DType::kF16, "no kernel rounds {} to bf16",
           dtype_name(from_type));
  if (from_type == DType::kF32)
    run<float>(context, from, to, count);
  else
    run<__half>(context, from, to, count);
}

const float* in_f32(const Context& context, const void* from, DType from_type, float* to, int64_t count) {
  constexpr int kThreads = 256;
  if (from_type == DType::kF32) return static_cast<const float*>(from);
  with_type(from_type, [&]<typename From>(Tag<From>) {
    const bool wide = count % 4 == 0 && aligned_to(4 * sizeof(From), from) && aligned_to(16, to);
    launch(wide ? convert_kernel<From, float, 4, kThreads> : convert_kernel<From, float, 1, kThreads>,
           blocks_for(count, wide ? 4 * kThreads : kThreads), kThreads, 0, context.stream,
           static_cast<const From*>(from), to, count);
  });
  return to;
}

}  // namespace gantrain::cuda
