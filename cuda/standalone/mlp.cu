// SwiGLU and its backward.
#include "cuda/kernels/mlp.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

int main() {
  constexpr int kN = 13, kF = 300, kThreads = 128;
  const auto product = normal(size_t{kN} * 2 * kF, 1, 3.0f), da = normal(size_t{kN} * kF, 2);
  Values<float> product_d(product), gate_d(size_t{kN} * kF), up_d(size_t{kN} * kF), a_d(size_t{kN} * kF),
      da_d(da), dy_d(size_t{kN} * 2 * kF);
  Values<__nv_bfloat16> a16_d(size_t{kN} * kF);
  const dim3 grid(kN), narrow(kN, (kF + kThreads - 1) / kThreads);
  swiglu_forward_kernel<float, float, 4, kThreads><<<grid, kThreads>>>(product_d, gate_d, up_d, a_d, kF);
  finished("swiglu_forward_kernel");
  swiglu_forward_kernel<__nv_bfloat16, __nv_bfloat16, 1, kThreads>
      <<<narrow, kThreads>>>(product_d, nullptr, nullptr, a16_d, kF);
  finished("swiglu_forward_kernel, bf16");
  swiglu_backward_kernel<float, float, 4, kThreads><<<grid, kThreads>>>(gate_d, up_d, da_d, dy_d, kF);
  finished("swiglu_backward_kernel");

  std::vector<double> a, a16, dy(product.size());
  for (int n = 0; n < kN; ++n)
    for (int j = 0; j < kF; ++j) {
      const auto silu = [](double g) { return g / (1 + std::exp(-g)); };
      const float gate = product[size_t(n) * 2 * kF + j], up = product[size_t(n) * 2 * kF + kF + j];
      const double g = double(gate), u = double(up), d = double(da[size_t(n) * kF + j]),
                   s = 1 / (1 + std::exp(-g));
      a.push_back(silu(g) * u);
      const auto rounded = [](float x) { return double(__bfloat162float(__float2bfloat16(x))); };
      a16.push_back(silu(rounded(gate)) * rounded(up));
      dy[size_t(n) * 2 * kF + j] = d * u * s * (1 + g * (1 - s));
      dy[size_t(n) * 2 * kF + kF + j] = d * silu(g);
    }
  Verdict verdict;
  verdict.check("a", a_d.host(), a);
  verdict.check("a, bf16", a16_d.host(), a16, kUnitsBf16);
  verdict.check("dy", dy_d.host(), dy);
  return verdict.finish();
}
