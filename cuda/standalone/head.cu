// The head between its products: loss, argmax and seeds of rows of logits, with a KL part; the scatter of dx.
#include "cuda/kernels/head.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

int main() {
  constexpr int kRows = 9, kV = 1003, kThreads = 512, kN = 20, kC = 72;
  const auto logits = normal(size_t{kRows} * kV, 1, 3.0f), reference = normal(size_t{kRows} * kV, 2, 3.0f);
  const auto labels = integers(kRows, 3, 0, kV - 1);
  const auto ce_weight = normal(kRows, 4), kl_weight = normal(kRows, 5);
  Values<float> logits_d(logits), reference_d(reference), ce_d(ce_weight), klw_d(kl_weight),
      nll_d(size_t{kRows}), kl_d(size_t{kRows}), seeds_d(size_t{kRows} * kV);
  Values<int32_t> labels_d(labels), argmax_d(size_t{kRows});
  HeadRowArgs args{};
  args.logits = logits_d;
  args.reference = reference_d;
  args.labels = labels_d;
  args.ce_weight = ce_d;
  args.kl_weight = klw_d;
  args.inverse_tau = 1.0f;
  args.nll = nll_d;
  args.kl = kl_d;
  args.argmax = argmax_d;
  args.wants_seed = true;
  args.v = kV;
  head_row_kernel<float, 1, kThreads><<<kRows, kThreads>>>(args, seeds_d);
  finished("head_row_kernel");

  std::vector<double> nll, kl, argmax, seeds;
  for (int r = 0; r < kRows; ++r) {
    const float *l = &logits[size_t(r) * kV], *q = &reference[size_t(r) * kV];
    const auto lse = [](const float* x) {
      double sum = 0;
      for (int j = 0; j < kV; ++j) sum += std::exp(double(x[j]));
      return std::log(sum);
    };
    const double lse_p = lse(l), lse_q = lse(q);
    int best = 0;
    double divergence = 0;
    for (int j = 0; j < kV; ++j) {
      if (l[j] > l[best]) best = j;
      divergence += std::exp(double(l[j]) - lse_p) * (double(l[j]) - lse_p - double(q[j]) + lse_q);
    }
    nll.push_back(lse_p - double(l[labels[r]]));
    kl.push_back(divergence);
    argmax.push_back(best);
    for (int j = 0; j < kV; ++j) {
      const double p = std::exp(double(l[j]) - lse_p), ratio = double(l[j]) - lse_p - double(q[j]) + lse_q;
      seeds.push_back(double(ce_weight[r]) * (p - (j == labels[r] ? 1 : 0)) +
                      double(kl_weight[r]) * p * (ratio - divergence));
    }
  }

  // dx: rows may repeat.
  const auto x = normal(size_t{kN} * kC, 6), gain = normal(kC, 7), d = normal(size_t{kRows} * kC, 8),
             dx0 = normal(size_t{kN} * kC, 9);
  auto rows = integers(kRows, 10, 0, kN - 1);
  rows[5] = rows[1];
  std::vector<float> rstd;
  std::vector<double> dx = to_double(dx0);
  for (int i = 0; i < kRows; ++i) {
    const float* row = &x[size_t(rows[i]) * kC];
    double sum = 0, dot = 0;
    for (int j = 0; j < kC; ++j) sum += double(row[j]) * double(row[j]);
    rstd.push_back(float(1 / std::sqrt(sum / kC + 1e-5)));
    const double s = double(rstd.back());
    for (int j = 0; j < kC; ++j) dot += double(d[size_t(i) * kC + j]) * double(gain[j]) * double(row[j]) * s;
    for (int j = 0; j < kC; ++j)
      dx[size_t(rows[i]) * kC + j] +=
          s * (double(d[size_t(i) * kC + j]) * double(gain[j]) - double(row[j]) * s * dot / kC);
  }
  Values<float> x_d(x), gain_d(gain), d_d(d), dx_d(dx0), rstd_d(rstd);
  Values<int32_t> rows_d(rows);
  head_scatter_kernel<4, kWarp><<<kRows, kWarp>>>(x_d, rows_d, rstd_d, gain_d, d_d, dx_d, kRows, kC);
  finished("head_scatter_kernel");

  Verdict verdict;
  verdict.check("nll", nll_d.host(), nll);
  verdict.check("kl", kl_d.host(), kl);
  verdict.check("argmax", argmax_d.host(), argmax, 0.0);
  verdict.check("seeds", seeds_d.host(), seeds);
  verdict.check("dx", dx_d.host(), dx);
  return verdict.finish();
}
