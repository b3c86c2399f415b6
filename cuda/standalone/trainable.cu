// The small networks' elementwise ops and their sums.
#include "cuda/kernels/trainable.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

namespace {

constexpr int kThreads = 256, kB = 5, kP = 7, kC = 36, kSize = kP * kC, kCount = kB * kSize;
// Blocks for `count` elements, kVector a thread. kC is a multiple of four: both widths of each kernel take
// it.
constexpr int blocks(int count, int vector) { return (count / vector + kThreads - 1) / kThreads; }

double value(ActivationCode code, double x) {
  if (code == ActivationCode::kSilu) return x / (1 + std::exp(-x));
  if (code == ActivationCode::kGelu)
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  return std::tanh(x);
}

template <ActivationCode kCode, int kVector>
void activation(const char* name, const std::vector<float>& x, const std::vector<float>& dy,
                Verdict& verdict) {
  Values<float> x_d(x), dy_d(dy), dx_d(dy), y_d(x.size());
  constexpr int kGrid = blocks(kCount, kVector);
  activation_forward_kernel<kCode, kVector, kThreads><<<kGrid, kThreads>>>(x_d, y_d, kCount);
  finished("activation_forward_kernel");
  activation_backward_kernel<kCode, kVector, kThreads><<<kGrid, kThreads>>>(x_d, dy_d, dx_d, kCount);
  finished("activation_backward_kernel");
  std::vector<double> y, dx;
  for (int i = 0; i < kCount; ++i) {
    const double h = 1e-5, at = double(x[i]);
    y.push_back(value(kCode, at));
    dx.push_back(double(dy[i]) * (1 + (value(kCode, at + h) - value(kCode, at - h)) / (2 * h)));
  }
  verdict.check(name, y_d.host(), y);
  verdict.check("  its backward", dx_d.host(), dx);
}

}  // namespace

int main() {
  const auto x = normal(kCount, 1, 2.0f), dy = normal(kCount, 2), base = normal(kSize, 3),
             row = normal(kB * kC, 4);
  const auto rows = integers(11, 5, 0, kB * kP - 1);
  Verdict verdict;
  activation<ActivationCode::kSilu, 4>("SiLU", x, dy, verdict);
  activation<ActivationCode::kGelu, 4>("GELU", x, dy, verdict);
  activation<ActivationCode::kTanh, 4>("tanh", x, dy, verdict);
  activation<ActivationCode::kSilu, 1>("SiLU, one a thread", x, dy, verdict);
  activation<ActivationCode::kGelu, 1>("GELU, one a thread", x, dy, verdict);
  activation<ActivationCode::kTanh, 1>("tanh, one a thread", x, dy, verdict);

  Values<float> x_d(x), dy_d(dy), base_d(base), row_d(row), sum_d(size_t{kCount}), scaled_d(size_t{kCount}),
      dbase_d(base), drow_d(row), factor_d(std::vector<float>{0.3f}), y_d(dy), gathered_d(rows.size() * kC),
      scattered_d(x);
  Values<int32_t> rows_d(rows);
  broadcast_add_forward_kernel<4, kThreads>
      <<<dim3(kB, blocks(kSize, 4)), kThreads>>>(base_d, row_d, sum_d, kSize, kC);
  scaled_add_forward_kernel<4, kThreads>
      <<<dim3(kB, blocks(kSize, 4)), kThreads>>>(base_d, x_d, factor_d, scaled_d, kSize);
  strided_sum_kernel<64><<<(kSize + 63) / 64, 64>>>(dy_d, dbase_d, kP, kC, kB, kC, kSize);
  strided_sum_kernel<64><<<(kB * kC + 63) / 64, 64>>>(dy_d, drow_d, kB, kC, kP, kSize, kC);
  // Whole vectors but for the last eight elements, which go one a thread.
  axpy_kernel<4, kThreads><<<blocks(kCount, 4), kThreads>>>(x_d, nullptr, 0.7f, y_d, kCount - 8);
  axpy_kernel<1, kThreads><<<1, kThreads>>>(x_d + (kCount - 8), nullptr, 0.7f, y_d + (kCount - 8), 8);
  gather_rows_kernel<4, kThreads><<<dim3(rows.size(), 1), kThreads>>>(x_d, rows_d, gathered_d, kC);
  scatter_add_rows_kernel<64><<<1, 64>>>(gathered_d, rows_d, scattered_d, rows.size(), kC);
  finished("the other kernels");

  std::vector<double> sum, scaled, dbase = to_double(base), drow = to_double(row), y, gathered,
                                   scattered = to_double(x);
  for (int i = 0; i < kCount; ++i) {
    const int b = i / kSize, j = i % kC;
    sum.push_back(double(base[i % kSize]) + double(row[b * kC + j]));
    scaled.push_back(double(base[i % kSize]) + double(0.3f) * double(x[i]));
    dbase[i % kSize] += double(dy[i]);
    drow[b * kC + j] += double(dy[i]);
    y.push_back(double(dy[i]) + double(0.7f) * double(x[i]));
  }
  for (int32_t r : rows)
    for (int j = 0; j < kC; ++j) {
      gathered.push_back(double(x[r * kC + j]));
      scattered[r * kC + j] += double(x[r * kC + j]);
    }
  verdict.check("sum with a row", sum_d.host(), sum);
  verdict.check("scaled sum", scaled_d.host(), scaled);
  verdict.check("sum over the batch", dbase_d.host(), dbase);
  verdict.check("sum over rows", drow_d.host(), drow);
  verdict.check("y += a x", y_d.host(), y);
  verdict.check("gathered rows", gathered_d.host(), gathered, 0.0);
  verdict.check("scattered rows", scattered_d.host(), scattered);

  // Noise: moments of many draws (its generator's words are checked in the sampling program). Five standard
  // errors.
  constexpr int kDraws = 40000;
  Values<float> zero_d(size_t{kDraws}), noise_d(size_t{kDraws});
  constexpr int kWhole = kDraws - 8;  // the rest by the kernel that guards its last elements
  add_noise_kernel<4, kThreads><<<blocks(kDraws, 4), kThreads>>>(zero_d, 2.0f, 77, 5, 0, noise_d, kWhole);
  add_noise_kernel<1, kThreads>
      <<<1, kThreads>>>(zero_d + kWhole, 2.0f, 77, 5, kWhole / 4, noise_d + kWhole, 8);
  finished("add_noise_kernel");
  double mean = 0, square = 0;
  for (float v : noise_d.host()) mean += double(v) / kDraws, square += double(v) * double(v) / kDraws;
  verdict.check("noise: mean", std::vector<double>{1 + mean}, {1.0}, 5 * 2 / std::sqrt(double(kDraws)));
  verdict.check("noise: variance", std::vector<double>{square / 4}, {1.0}, 5 * std::sqrt(2.0 / kDraws));
  return verdict.finish();
}
