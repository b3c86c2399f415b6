// RoPE around the QKV product: the table of angles, the rotation and its transpose.
#include "cuda/kernels/qkv.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

int main() {
  constexpr int kN = 19, kHeads = 6, kKv = 2, kHalf = 12, kD = 2 * kHalf, kThreads = 128;
  constexpr int kAll = kHeads + 2 * kKv;
  const auto product = normal(size_t{kN} * kAll * kD, 1);
  const auto positions = integers(kN, 2, 0, 100000);
  std::vector<float> frequency;
  for (int i = 0; i < kHalf; ++i) frequency.push_back(std::pow(10000.0f, -float(i) / kHalf));
  Values<float> product_d(product), frequency_d(frequency), table_d(size_t{kN} * kD),
      q_d(size_t{kN} * kHeads * kD), k_d(size_t{kN} * kKv * kD), v_d(size_t{kN} * kKv * kD);
  Values<int32_t> positions_d(positions);
  rotary_table_kernel<kThreads>
      <<<(kN * kHalf + kThreads - 1) / kThreads, kThreads>>>(positions_d, frequency_d, table_d, kN, kHalf);
  finished("rotary_table_kernel");
  const QkvHeads<float> heads{q_d, k_d, v_d, kHeads, kKv, kHalf};
  rotate_forward_kernel<float, 4, kThreads><<<kN, kThreads>>>(product_d, table_d, heads);
  finished("rotate_forward_kernel");
  std::vector<double> table(size_t{kN} * kD), q, k, v;
  for (int n = 0; n < kN; ++n) {
    for (int j = 0; j < kHalf; ++j) {
      const double angle = double(positions[n]) * double(frequency[j]);
      table[size_t(n) * kD + j] = std::cos(angle);
      table[size_t(n) * kD + kHalf + j] = std::sin(angle);
    }
    for (int h = 0; h < kAll; ++h)
      for (int j = 0; j < kD; ++j) {
        const double own = double(product[(size_t(n) * kAll + h) * kD + j]);
        const double other = double(product[(size_t(n) * kAll + h) * kD + (j + kHalf) % kD]);
        const double c = table[size_t(n) * kD + j % kHalf], s = table[size_t(n) * kD + kHalf + j % kHalf];
        const double rotated = own * c + (j < kHalf ? -other : other) * s;
        (h < kHeads ? q : h < kHeads + kKv ? k : v).push_back(h < kHeads + kKv ? rotated : own);
      }
  }
  // A gradient that is what forward gave, rotated back, and its products with that.
  std::vector<float> dy;
  std::vector<double> dot(size_t{kN} * (kHeads + kKv));
  for (int n = 0; n < kN; ++n)
    for (int h = 0; h < kAll; ++h)
      for (int j = 0; j < kD; ++j) {
        const double x = h < kHeads         ? q[(n * kHeads + h) * kD + j]
                         : h < kHeads + kKv ? k[(n * kKv + h - kHeads) * kD + j]
                                            : v[(n * kKv + h - kHeads - kKv) * kD + j];
        dy.push_back(float(x));
        dot[n * (kHeads + kKv)] += x * x;
      }
  Values<float> dy_d(dy), dot_d(dot.size());
  const QkvHeads<const float> kept{q_d, k_d, v_d, kHeads, kKv, kHalf};
  rotate_backward_kernel<float, float, true, 4, kThreads><<<kN, kThreads>>>(dy_d, kept, table_d, dot_d);
  finished("rotate_backward_kernel");

  Verdict verdict;
  verdict.check("table", table_d.host(), table);
  verdict.check("q", q_d.host(), q);
  verdict.check("k", k_d.host(), k);
  verdict.check("v", v_d.host(), v, 0.0);
  verdict.check("rotated and back", dy_d.host(), to_double(product));
  verdict.check("dot", dot_d.host(), dot);
  return verdict.finish();
}
