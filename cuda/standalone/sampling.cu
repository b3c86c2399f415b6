// Drawing tokens: the largest logit at temperature 0; the Gumbel argmax and the inverse of the cumulative
// sum, with top-k, against the same draws on the CPU.
#include "cuda/kernels/sampling.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

namespace {

// Philox4x32-10 (Salmon et al., SC 2011), written once more for the CPU.
void philox_host(uint64_t key, uint64_t hi, uint64_t lo, uint32_t (&out)[4]) {
  uint32_t c[4] = {uint32_t(lo), uint32_t(lo >> 32), uint32_t(hi), uint32_t(hi >> 32)}, k0 = uint32_t(key),
           k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k1,
                              uint32_t(a)};
    std::copy(next, next + 4, c);
  }
  std::copy(c, c + 4, out);
}
double uniform_host(uint32_t word) { return (double(word >> 9) + 0.5) * 0x1p-23; }

}  // namespace

int main() {
  constexpr int kRows = 24, kV = 780, kThreads = 64;
  const auto logits = normal(size_t{kRows} * kV, 1, 2.0f);
  std::vector<float> temperature, top_p;
  std::vector<int32_t> top_k;
  std::vector<int64_t> key, counter;
  for (int r = 0; r < kRows; ++r) {
    temperature.push_back(r % 3 == 0 ? 0.0f : r % 3 == 1 ? 1.0f : 0.7f);
    top_k.push_back(r % 2 ? 20 : 0);
    top_p.push_back(1.0f);
    key.push_back(1234567 + r);
    counter.push_back(89 * r);
  }
  Values<float> logits_d(logits), temperature_d(temperature), top_p_d(top_p), logp_d(size_t{kRows});
  Values<int32_t> top_k_d(top_k), token_d(size_t{kRows});
  Values<int64_t> key_d(key), counter_d(counter);
  Verdict verdict;
  for (const bool gumbel : {true, false}) {
    (gumbel ? sample_kernel<4, kThreads> : sample_kernel<1, kThreads>)<<<kRows, kThreads>>>(
        logits_d, temperature_d, top_k_d, top_p_d, key_d, counter_d, gumbel, token_d, logp_d, kV);
    finished("sample_kernel");
    std::vector<double> token, logp;
    for (int r = 0; r < kRows; ++r) {
      const float* l = &logits[size_t(r) * kV];
      std::vector<float> sorted(l, l + kV);
      std::sort(sorted.rbegin(), sorted.rend());
      const float least = top_k[r] > 0 ? sorted[size_t(top_k[r]) - 1] : sorted.back();
      const double t = double(temperature[r]);
      int chosen = int(std::max_element(l, l + kV) - l);
      uint32_t word[4];
      if (t > 0 && gumbel) {
        double best = -INFINITY;
        for (int j = 0; j < kV; ++j) {
          philox_host(uint64_t(key[r]), uint64_t(counter[r]), uint64_t(j / 4), word);
          const double noisy = double(l[j]) / t - std::log(-std::log(uniform_host(word[j % 4])));
          if (l[j] >= least && noisy > best) best = noisy, chosen = j;
        }
      } else if (t > 0) {
        double total = 0, sum = 0;
        for (int j = 0; j < kV; ++j)
          total += l[j] >= least ? std::exp((double(l[j]) - double(sorted[0])) / t) : 0;
        philox_host(uint64_t(key[r]), uint64_t(counter[r]), 0, word);
        for (chosen = 0; chosen < kV; ++chosen) {
          sum += l[chosen] >= least ? std::exp((double(l[chosen]) - double(sorted[0])) / t) : 0;
          if (sum > uniform_host(word[0]) * total) break;
        }
      }
      double sum = 0;
      for (int j = 0; j < kV; ++j) sum += std::exp(double(l[j]));
      token.push_back(chosen);
      logp.push_back(double(l[chosen]) - std::log(sum));
    }
    verdict.check(gumbel ? "token, Gumbel" : "token, cumulative sum", token_d.host(), token, 0.0);
    verdict.check("logp", logp_d.host(), logp);
  }
  return verdict.finish();
}
