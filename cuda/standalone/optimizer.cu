// AdamW, the moving average, sums over whole tensors, and the search for values that are not finite.
#include "cuda/kernels/optimizer.cuh"

#include "cuda/kernels/sums.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

int main() {
  constexpr int kCount = 5001, kSteps = 3;
  constexpr int kGrid = (kCount + kListChunk - 1) / kListChunk, kSmall = 7;  // and a second, small tensor
  const auto start = normal(kCount, 1), grad = normal(kCount, 2), average = normal(kCount, 3);
  std::vector<double> param = to_double(start), m(kCount), v(kCount), ema = to_double(average);
  Values<float> param_d(start), grad_d(grad), m_d(size_t{kCount}), v_d(size_t{kCount}), ema_d(average);
  const auto list = [&](auto list, std::initializer_list<std::pair<float*, float*>> arrays) {
    int a = 0;
    for (const auto& [first, second] : arrays) {
      list.array[a][0] = first;
      list.array[a++][1] = second;
    }
    list.count[0] = kCount, list.count[1] = kSmall;
    list.first_block[0] = 0, list.first_block[1] = kGrid, list.first_block[2] = kGrid + 1;
    list.tensors = 2;
    return list;
  };
  // The small tensor is the start of the large one's, with moments of its own.
  const std::vector<float> small_start(start.begin(), start.begin() + kSmall);
  Values<float> small_d(small_start), small_m_d(size_t{kSmall}), small_v_d(size_t{kSmall}),
      norm_d(std::vector<float>{2.0f}), bad_norm_d(std::vector<float>{INFINITY});
  for (int step = 1; step <= kSteps; ++step) {
    const double lr = 0.01, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, decay = 0.1, clip = 1.0, scale = 0.5;
    const double correct1 = 1 / (1 - std::pow(beta1, step)), correct2 = 1 / (1 - std::pow(beta2, step));
    const AdamWArgs args{float(lr),       float(beta1),    float(beta2), float(1 - beta1), float(1 - beta2),
                         float(correct1), float(correct2), float(eps),   float(decay),     float(clip)};
    const auto all =
        list(TensorList<4>{}, {{param_d, small_d}, {grad_d, grad_d}, {m_d, small_m_d}, {v_d, small_v_d}});
    adamw_kernel<true><<<kGrid + 1, kListThreads>>>(all, norm_d, args);
    adamw_kernel<true><<<kGrid + 1, kListThreads>>>(all, bad_norm_d, args);  // refused
    finished("adamw_kernel");
    for (int i = 0; i < kCount; ++i) {
      const double g = double(grad[i]) * scale;
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      param[i] -= lr * (m[i] * correct1 / (std::sqrt(v[i] * correct2) + eps) + decay * param[i]);
    }
  }
  Values<float> small_ema_d(std::vector<float>(average.begin(), average.begin() + kSmall));
  ema_kernel<true><<<kGrid + 1, kListThreads>>>(
      list(TensorList<2>{}, {{grad_d, grad_d}, {ema_d, small_ema_d}}), nullptr, 0.75f, 0.25f);
  finished("ema_kernel");
  double dot = 0, squares = 0;
  for (int i = 0; i < kCount; ++i) {
    ema[i] = 0.75 * ema[i] + 0.25 * double(grad[i]);
    dot += double(grad[i]) * double(start[i]);
    squares += double(grad[i]) * double(grad[i]) * (i < kSmall ? 2 : 1);
  }
  Values<float> other_d(start), root_d(size_t{1}), sum_d(std::vector<float>{2.0f});
  Values<double> partial_d(size_t{kSumPartials}), total_d(std::vector<double>{100.0}), square_d(size_t{1});
  squares_kernel<true><<<3, kListThreads>>>(list(TensorList<1>{}, {{grad_d, grad_d}}), partial_d);
  sum_partials_kernel<<<1, kSumThreads>>>(partial_d, square_d, 3, false);
  dot_partials_kernel<<<3, kSumThreads>>>(grad_d, other_d, partial_d, kCount);
  sum_partials_kernel<<<1, kSumThreads>>>(partial_d, total_d, 3, true);
  root_total_kernel<<<1, 1>>>(total_d, root_d);
  add_total_kernel<<<1, 1>>>(total_d, sum_d);
  finished("sums");

  Verdict verdict;
  verdict.check("param", param_d.host(), param);
  verdict.check("small param", small_d.host(), std::vector<double>(param.begin(), param.begin() + kSmall));
  verdict.check("small average", small_ema_d.host(), std::vector<double>(ema.begin(), ema.begin() + kSmall));
  verdict.check("squares", square_d.host(), {squares}, 0x1p-45);
  verdict.check("m", m_d.host(), m);
  verdict.check("v", v_d.host(), v);
  verdict.check("moving average", ema_d.host(), ema);
  verdict.check("dot product", total_d.host(), {100 + dot}, 0x1p-45);
  verdict.check("its root", root_d.host(), {std::sqrt(100 + dot)});
  verdict.check("added", sum_d.host(), {102 + dot});
  // One value that is not finite, in the last place; before that, none.
  for (const bool bad : {false, true}) {
    std::vector<uint32_t> bits(kCount, 0x3f800000u);
    if (bad) bits.back() = 0xff800000u;
    Values<uint32_t> bits_d(bits);
    Values<int32_t> flag_d(size_t{1});
    find_not_finite_kernel<false, true><<<kGrid, kListThreads>>>(bits_d, 0x7f800000u, flag_d, kCount);
    finished("find_not_finite_kernel");
    verdict.check(bad ? "an infinity" : "all finite", flag_d.host(), {bad ? 1.0 : 0.0}, 0.0);
  }
  return verdict.finish();
}
