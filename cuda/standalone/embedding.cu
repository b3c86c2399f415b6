// Embedding lookup with prompt rows, and the gradient of the prompt.
#include "cuda/kernels/embedding.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

int main() {
  constexpr int kRows = 77, kColumns = 1032, kVocabulary = 50, kPrompt = 6, kThreads = 128, kLogLanes = 4,
                kGrid = ((kRows << kLogLanes) + kThreads - 1) / kThreads;  // two rows a warp
  const auto table = to_bf16(normal(size_t{kVocabulary} * kColumns, 1));
  const auto prompt = normal(size_t{kPrompt} * kColumns, 2), dx = normal(size_t{kRows} * kColumns, 3),
             start = normal(size_t{kPrompt} * kColumns, 4);
  const auto tokens = integers(kRows, 5, -kPrompt, kVocabulary - 1);
  Values<__nv_bfloat16> table_d(table);
  Values<int32_t> tokens_d(tokens);
  Values<float> prompt_d(prompt), dx_d(dx), dprompt_d(start), x_d(size_t{kRows} * kColumns),
      narrow_d(size_t{kRows} * kColumns);
  embed_forward_kernel<__nv_bfloat16, 4, kThreads>
      <<<kGrid, kThreads>>>(table_d, tokens_d, prompt_d, x_d, kRows, kColumns, kLogLanes);
  finished("embed_forward_kernel");
  embed_forward_kernel<__nv_bfloat16, 1, kThreads>
      <<<kGrid, kThreads>>>(table_d, tokens_d, prompt_d, narrow_d, kRows, kColumns, kLogLanes);
  finished("embed_forward_kernel, narrow");
  embed_backward_kernel<64><<<(kColumns + 63) / 64, 64>>>(dx_d, tokens_d, dprompt_d, kRows, kColumns);
  finished("embed_backward_kernel");

  const auto stored = to_double(table);
  std::vector<double> want, gradient = to_double(start);
  for (int n = 0; n < kRows; ++n)
    for (int j = 0; j < kColumns; ++j) {
      const int token = tokens[n];
      want.push_back(token >= 0 ? stored[size_t(token) * kColumns + j]
                                : double(prompt[size_t(-1 - token) * kColumns + j]));
      if (token < 0) gradient[size_t(-1 - token) * kColumns + j] += double(dx[size_t(n) * kColumns + j]);
    }
  Verdict verdict;
  verdict.check("x", x_d.host(), want, 0.0);
  verdict.check("x, one column a thread", narrow_d.host(), want, 0.0);
  verdict.check("dprompt", dprompt_d.host(), gradient);
  return verdict.finish();
}
