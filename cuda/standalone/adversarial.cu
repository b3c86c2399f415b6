// The two players' losses and their seeds, segment means, and the penalty on the prompt's size.
#include "cuda/kernels/adversarial.cuh"

#include <string>

#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

namespace {

constexpr int kPairs = 300, kThreads = 256;
constexpr float kLam = 3.0f, kCenter = 1e-3f, kSmooth = 0.1f;

double soft(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
double share(PairLossCode code, double r, double f) {
  double loss = code == PairLossCode::kRelativistic ? soft(f - r)
                : code == PairLossCode::kBce
                    ? (1 - double(kSmooth)) * soft(-r) + double(kSmooth) * soft(r) + soft(f)
                    : std::fmax(0, 1 - r) + std::fmax(0, 1 + f);
  return (loss + double(kCenter) * (r * r + f * f)) / kPairs;
}
double generator_share(PairLossCode code, double r, double f) {
  return (code == PairLossCode::kRelativistic ? soft(r - f)
          : code == PairLossCode::kBce        ? soft(-f)
                                              : -f) /
         kPairs;
}

// Seeds against differences of the loss: h^2 of its third derivative, and the hinge's corner, which no draw
// is near.
template <PairLossCode kCode>
void losses(const std::string& name, Verdict& verdict) {
  const auto r = normal(kPairs, 1, 2.0f), f = normal(kPairs, 2, 2.0f), r2 = normal(kPairs, 3, 2.0f),
             f2 = normal(kPairs, 4, 2.0f);
  Values<float> r_d(r), f_d(f), r2_d(r2), f2_d(f2), loss_d(size_t{1}), dr_d(size_t{kPairs}),
      df_d(size_t{kPairs}), dr2_d(size_t{kPairs}), df2_d(size_t{kPairs}), gen_d(size_t{1}),
      dgen_d(size_t{kPairs});
  const PairLossArgs args{r_d,    f_d,  r2_d, f2_d,  kLam,  kCenter, kSmooth,
                          loss_d, dr_d, df_d, dr2_d, df2_d, kPairs};
  pair_loss_kernel<kCode, kThreads><<<1, kThreads>>>(args);
  finished("pair_loss_kernel");
  generator_pair_loss_kernel<kCode, kThreads><<<1, kThreads>>>(r_d, f_d, gen_d, dgen_d, kPairs);
  finished("generator_pair_loss_kernel");
  double loss = 0, generator = 0;
  std::vector<double> dr, df, dr2, df2, dgen;
  for (int i = 0; i < kPairs; ++i) {
    const double h = 1e-5, a = double(r[i]), b = double(f[i]), ga = a - double(r2[i]), gb = b - double(f2[i]),
                 weight = double(kLam) / kPairs;
    loss += share(kCode, a, b) + weight * (ga * ga + gb * gb);
    generator += generator_share(kCode, a, b);
    dr.push_back((share(kCode, a + h, b) - share(kCode, a - h, b)) / (2 * h) + 2 * weight * ga);
    df.push_back((share(kCode, a, b + h) - share(kCode, a, b - h)) / (2 * h) + 2 * weight * gb);
    dr2.push_back(-2 * weight * ga);
    df2.push_back(-2 * weight * gb);
    dgen.push_back((generator_share(kCode, a, b + h) - generator_share(kCode, a, b - h)) / (2 * h));
  }
  verdict.check((name + ": loss").c_str(), loss_d.host(), {loss});
  verdict.check("  dr", dr_d.host(), dr);
  verdict.check("  df", df_d.host(), df);
  verdict.check("  dr of the copy", dr2_d.host(), dr2);
  verdict.check("  df of the copy", df2_d.host(), df2);
  verdict.check("  generator's loss", gen_d.host(), {generator});
  verdict.check("  its df", dgen_d.host(), dgen);
}

}  // namespace

int main() {
  Verdict verdict;
  losses<PairLossCode::kRelativistic>("relativistic", verdict);
  losses<PairLossCode::kBce>("cross-entropy", verdict);
  losses<PairLossCode::kHinge>("hinge", verdict);

  constexpr int kWidth = 300;
  const std::vector<int32_t> offsets = {0, 1, 8, 30};
  const auto x = normal(30 * kWidth, 5), dy = normal(3 * kWidth, 6);
  Values<float> x_d(x), dy_d(dy), dx_d(x), y_d(size_t{3} * kWidth);
  Values<int32_t> offsets_d(offsets);
  const dim3 grid(3, (kWidth + kThreads - 1) / kThreads);
  segment_mean_forward_kernel<kThreads><<<grid, kThreads>>>(x_d, offsets_d, y_d, kWidth);
  segment_mean_backward_kernel<kThreads><<<grid, kThreads>>>(dy_d, offsets_d, dx_d, kWidth);
  finished("segment_mean");
  std::vector<double> y(3 * kWidth), dx = to_double(x);
  for (int s = 0; s < 3; ++s)
    for (int r = offsets[s]; r < offsets[s + 1]; ++r)
      for (int j = 0; j < kWidth; ++j) {
        y[s * kWidth + j] += double(x[r * kWidth + j]) / (offsets[s + 1] - offsets[s]);
        dx[r * kWidth + j] += double(dy[s * kWidth + j]) / (offsets[s + 1] - offsets[s]);
      }
  verdict.check("segment means", y_d.host(), y);
  verdict.check("  their backward", dx_d.host(), dx);

  double total = 0;
  for (float v : x) total += double(v) * double(v);
  const double rms = std::sqrt(total / double(x.size())), ratio = std::log(rms / double(0.8f));
  Values<double> total_d(std::vector<double>{total});
  Values<float> loss_d(size_t{1}), rms_d(size_t{1}), prompt_d(x), dprompt_d(x);
  rms_penalty_kernel<kThreads><<<(unsigned(x.size()) + kThreads - 1) / kThreads, kThreads>>>(
      prompt_d, total_d, 0.8f, 50.0f, loss_d, rms_d, dprompt_d, int64_t(x.size()));
  finished("rms_penalty_kernel");
  std::vector<double> dprompt;
  for (float v : x)
    dprompt.push_back(double(v) + 2 * 50 * ratio / (double(x.size()) * rms * rms) * double(v));
  verdict.check("rms", rms_d.host(), {rms});
  verdict.check("penalty", loss_d.host(), {50 * ratio * ratio});
  verdict.check("  its gradient", dprompt_d.host(), dprompt);
  return verdict.finish();
}
