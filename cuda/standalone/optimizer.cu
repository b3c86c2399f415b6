// AdamW, the moving average, sums over whole tensors, and the search for values that are not finite.
#include "cuda/kernels/optimizer.cuh"

#include "cuda/kernels/sums.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

int main() {
  constexpr int kCount = 5001, kThreads = 256, kGrid = (kCount + kThreads - 1) / kThreads, kSteps = 3;
  const auto start = normal(kCount, 1), grad = normal(kCount, 2), average = normal(kCount, 3);
  std::vector<double> param = to_double(start), m(kCount), v(kCount), ema = to_double(average);
  Values<float> param_d(start), grad_d(grad), m_d(size_t{kCount}), v_d(size_t{kCount}), ema_d(average);
  for (int step = 1; step <= kSteps; ++step) {
    const double lr = 0.01, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, decay = 0.1, scale = 0.5;
    const double correct1 = 1 / (1 - std::pow(beta1, step)), correct2 = 1 / (1 - std::pow(beta2, step));
    const AdamWArgs args{float(lr),       float(beta1),    float(beta2), float(1 - beta1), float(1 - beta2),
                         float(correct1), float(correct2), float(eps),   float(decay),     float(scale)};
    adamw_kernel<kThreads><<<kGrid, kThreads>>>(param_d, grad_d, m_d, v_d, args, kCount);
    finished("adamw_kernel");
    for (int i = 0; i < kCount; ++i) {
      const double g = double(grad[i]) * scale;
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      param[i] -= lr * (m[i] * correct1 / (std::sqrt(v[i] * correct2) + eps) + decay * param[i]);
    }
  }
  ema_kernel<kThreads><<<kGrid, kThreads>>>(grad_d, ema_d, 0.75f, 0.25f, kCount);
  finished("ema_kernel");
  double dot = 0;
  for (int i = 0; i < kCount; ++i) {
    ema[i] = 0.75 * ema[i] + 0.25 * double(grad[i]);
    dot += double(grad[i]) * double(start[i]);
  }
  Values<float> other_d(start), root_d(size_t{1}), sum_d(std::vector<float>{2.0f});
  Values<double> partial_d(size_t{kSumPartials}), total_d(std::vector<double>{100.0});
  dot_partials_kernel<<<3, kSumThreads>>>(grad_d, other_d, partial_d, kCount);
  sum_partials_kernel<<<1, kSumThreads>>>(partial_d, total_d, 3, true);
  root_total_kernel<<<1, 1>>>(total_d, root_d);
  add_total_kernel<<<1, 1>>>(total_d, sum_d);
  finished("sums");

  Verdict verdict;
  verdict.check("param", param_d.host(), param);
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
    find_not_finite_kernel<uint32_t, kThreads><<<kGrid, kThreads>>>(bits_d, 0x7f800000u, flag_d, kCount);
    finished("find_not_finite_kernel");
    verdict.check(bad ? "an infinity" : "all finite", flag_d.host(), {bad ? 1.0 : 0.0}, 0.0);
  }
  return verdict.finish();
}
