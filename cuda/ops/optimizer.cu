#include "cuda/kernels/optimizer.cuh"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "cuda/kernels/sums.cuh"
#include "cuda/ops/dispatch.cuh"

namespace gantrain {

using namespace cuda;

namespace {

// Calls f(list, aligned) for every kListTensors tensors, `arrays` holding the tensors of each array. Empty
// tensors are left out.
template <int kArrays, typename F>
void for_lists(const std::array<std::span<const ConstTensor>, kArrays>& arrays, F f) {
  TensorList<kArrays> list{};
  bool aligned = true;
  const auto flush = [&] {
    if (list.tensors > 0) f(list, aligned);
    list = {};
    aligned = true;
  };
  for (size_t t = 0; t < arrays[0].size(); ++t) {
    const int64_t count = arrays[0][t].count();
    if (count == 0) continue;
    if (list.tensors == kListTensors) flush();
    const int n = list.tensors++;
    for (int a = 0; a < kArrays; ++a) {
      list.array[a][n] = static_cast<float*>(const_cast<void*>(arrays[static_cast<size_t>(a)][t].raw()));
      aligned = aligned && aligned_to(16, list.array[a][n]);
    }
    list.count[n] = count;
    const int64_t end = list.first_block[n] + int64_t{blocks_for(count, kListChunk)};
    GT_CHECK(end <= INT32_MAX, "a step over {} elements", count);
    list.first_block[n + 1] = static_cast<int32_t>(end);
  }
  flush();
}
std::vector<ConstTensor> as_const(std::span<const Tensor> tensors) {
  return {tensors.begin(), tensors.end()};
}
const float* raw_or_null(const ConstTensor& t) { return t.empty() ? nullptr : raw<float>(t); }

}  // namespace

void CudaOps::gradient_norm(const GradientNorm& a) {
  GT_CUDA(cudaMemsetAsync(context_.total, 0, sizeof(double), context_.stream));
  const std::vector<ConstTensor> grads = as_const(a.grads);
  for_lists<1>({grads}, [&](const TensorList<1>& list, bool aligned) {
    const int blocks = std::min(list.first_block[list.tensors], kSumPartials);
    launch(aligned ? squares_kernel<true> : squares_kernel<false>, blocks, kListThreads, 0, context_.stream,
           list, context_.partials);
    launch(sum_partials_kernel, 1, kSumThreads, 0, context_.stream, context_.partials, context_.total, blocks,
           true);
  });
  launch(root_total_kernel, 1, 1, 0, context_.stream, context_.total, raw<float>(a.out));
}

void CudaOps::adamw(const AdamW& a) {
  // The corrections are taken in double: 1 - beta^step loses all its digits in f32 when beta is near 1.
  const double beta1 = static_cast<double>(a.beta1), beta2 = static_cast<double>(a.beta2);
  const auto step = static_cast<double>(a.step);
  const AdamWArgs args{.lr = a.lr,
                       .beta1 = a.beta1,
                       .beta2 = a.beta2,
                       .take1 = static_cast<float>(1.0 - beta1),
                       .take2 = static_cast<float>(1.0 - beta2),
                       .correct1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, step))),
                       .correct2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, step))),
                       .eps = a.eps,
                       .weight_decay = a.weight_decay,
                       .clip = a.clip};
  const std::vector<ConstTensor> params = as_const(a.params), grads = as_const(a.grads), m = as_const(a.m),
                                 v = as_const(a.v);
  for_lists<4>({params, grads, m, v}, [&](const TensorList<4>& list, bool aligned) {
    launch(aligned ? adamw_kernel<true> : adamw_kernel<false>, list.first_block[list.tensors], kListThreads,
           0, context_.stream, list, raw_or_null(a.norm), args);
  });
}

void CudaOps::ema(const Ema& a) {
  const std::vector<ConstTensor> mean = as_const(a.ema);
  for_lists<2>({a.x, mean}, [&](const TensorList<2>& list, bool aligned) {
    launch(aligned ? ema_kernel<true> : ema_kernel<false>, list.first_block[list.tensors], kListThreads, 0,
           context_.stream, list, raw_or_null(a.norm), a.decay,
           static_cast<float>(1.0 - static_cast<double>(a.decay)));
  });
}

bool CudaOps::all_finite(ConstTensor t) {
  const bool pairs = t.dtype() != DType::kF32;
  const uint32_t exponent = !pairs ? 0x7f800000u : t.dtype() == DType::kBF16 ? 0x7f80u : 0x7c00u;
  GT_CUDA(cudaMemsetAsync(context_.flag, 0, sizeof(int), context_.stream));
  // Words of two values where their address allows; f16 and bf16 come in aligned pieces everywhere.
  GT_CHECK(aligned_to(4, t.raw()), "all_finite: values at an address that is no multiple of 4");
  const int64_t words = pairs ? t.count() / 2 : t.count();
  const auto find = [&](auto kernel) {
    launch(kernel, blocks_for(words, kListChunk), kListThreads, 0, context_.stream, raw<uint32_t>(t),
           exponent, context_.flag, words);
  };
  if (aligned_to(16, t.raw()))
    find(pairs ? find_not_finite_kernel<true, true> : find_not_finite_kernel<false, true>);
  else
    find(pairs ? find_not_finite_kernel<true, false> : find_not_finite_kernel<false, false>);
  if (pairs && t.count() % 2 != 0)
    launch(find_not_finite_last_kernel, 1, 1, 0, context_.stream, raw<uint16_t>(t) + (t.count() - 1),
           exponent, context_.flag);
  int found = 0;
  GT_CUDA(cudaMemcpyAsync(&found, context_.flag, sizeof found, cudaMemcpyDeviceToHost, context_.stream));
  GT_CUDA(cudaStreamSynchronize(context_.stream));
  return found == 0;
}

}  // namespace gantrain
