// RMSNorm: the row statistic, the normalised rows, their backward and the gain's gradient.
#include "cuda/kernels/norm.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

int main() {
  constexpr int kN = 37, kC = 1000, kThreads = 128, kLogLanes = 4;  // two rows a warp
  constexpr double kEps = 1e-5;
  const auto x = normal(size_t{kN} * kC, 1), gain = normal(kC, 2), dy = normal(size_t{kN} * kC, 3),
             dx0 = normal(size_t{kN} * kC, 4), dw0 = normal(kC, 5);
  Values<float> x_d(x), gain_d(gain), dy_d(dy), dx_d(dx0), dw_d(dw0), rstd_d(size_t{kN}), alone_d(size_t{kN}),
      y_d(size_t{kN} * kC);
  Values<__nv_bfloat16> y16_d(size_t{kN} * kC);
  constexpr int kGrid = ((kN << kLogLanes) + kThreads - 1) / kThreads;
  row_rstd_kernel<4, kThreads, 1>
      <<<kGrid, kThreads>>>(x_d, nullptr, alone_d, nullptr, kN, kC, float(kEps), kLogLanes);
  finished("row_rstd_kernel");
  normalise_kernel<float, 4, kThreads, true>
      <<<kGrid, kThreads>>>(x_d, nullptr, gain_d, rstd_d, y_d, kN, kC, float(kEps), kLogLanes);
  finished("normalise_kernel");
  normalise_kernel<__nv_bfloat16, 4, kThreads, false>
      <<<kGrid, kThreads>>>(x_d, nullptr, gain_d, rstd_d, y16_d, kN, kC, float(kEps), kLogLanes);
  finished("normalise_kernel, bf16");
  norm_backward_kernel<4, kThreads><<<kGrid, kThreads>>>(x_d, rstd_d, gain_d, dy_d, dx_d, kN, kC, kLogLanes);
  finished("norm_backward_kernel");
  gain_gradient_kernel<64><<<(kC + 63) / 64, 64>>>(x_d, nullptr, rstd_d, dy_d, dw_d, kN, kC);
  finished("gain_gradient_kernel");

  std::vector<double> rstd, y, dx = to_double(dx0), dw = to_double(dw0);
  for (int n = 0; n < kN; ++n) {
    double sum = 0, dot = 0;
    const auto at = [&](const std::vector<float>& v, int j) { return double(v[size_t(n) * kC + j]); };
    for (int j = 0; j < kC; ++j) sum += at(x, j) * at(x, j);
    const double r = 1 / std::sqrt(sum / kC + kEps);
    rstd.push_back(r);
    for (int j = 0; j < kC; ++j) dot += at(dy, j) * double(gain[j]) * at(x, j) * r;
    for (int j = 0; j < kC; ++j) {
      y.push_back(at(x, j) * r * double(gain[j]));
      dx[size_t(n) * kC + j] += r * (at(dy, j) * double(gain[j]) - at(x, j) * r * dot / kC);
      dw[j] += at(dy, j) * at(x, j) * r;
    }
  }
  Verdict verdict;
  verdict.check("rstd", rstd_d.host(), rstd);
  verdict.check("rstd alone", alone_d.host(), rstd);
  verdict.check("y", y_d.host(), y);
  verdict.check("y, bf16", y16_d.host(), y, kUnitsBf16);
  verdict.check("dx", dx_d.host(), dx);
  verdict.check("dw", dw_d.host(), dw);
  return verdict.finish();
}
