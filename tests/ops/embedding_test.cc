#include "core/ops/embedding.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "tests/reference/frozen.h"
#include "tests/support/complex_step.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;
using V = std::vector<double>;
using VC = std::vector<Complex>;

class EmbeddingOps : public OpsTest {};
GT_ALL_DEVICES(EmbeddingOps);

TEST_P(EmbeddingOps, RowsOfTheTableAndOfThePrompt) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const auto& [n, c, shift] : std::initializer_list<std::array<int64_t, 3>>{
             {1, 33, 0}, {5, 33, 0}, {100, 33, 0}, {5, 1155, 0}, {3, 2112, 0}, {5, 2052, 0}, {5, 64, 1}}) {
      const int64_t v = 37, r = 7;
      const auto table = random_normal(v * c, 1), prompt = random_normal(r * c, 2);
      auto tokens = random_ints(n, 3, -static_cast<int32_t>(r), static_cast<int32_t>(v) - 1);
      tokens[0] = n == 1 ? static_cast<int32_t>(v) - 1 : -static_cast<int32_t>(r);
      const auto got = run_deterministic([&, n = n, c = c, shift = shift](Device& d) {
        GuardedMemory m(d, shift);
        const auto matrix = frozen(d, table, v, c, dtype);
        const Tensor x = m.output({n, c});
        embed_forward(d, {.table = matrix.get(),
                          .tokens = m.input(tokens, {n}),
                          .prompt = m.input(prompt, {r, c}),
                          .x = x});
        return std::vector<std::vector<float>>{m.read(x)};
      });
      const auto stored = rounded_to(dtype, table);
      std::vector<float> want;
      for (const int32_t token : tokens)
        for (int64_t j = 0; j < c; ++j)
          want.push_back(token >= 0 ? stored[z(token * c + j)] : prompt[z((-1 - token) * c + j)]);
      EXPECT_TRUE(bitwise_equal("x", got[0], want));
    }
}

TEST_P(EmbeddingOps, OnlyPromptRowsGetAGradientAndRepeatedOnesAddUp) {
  for (const int64_t n : {4, 200}) {  // four: as many rows as a compiler likes to take at a time
    const int64_t c = 130, r = 9;
    const auto dx = random_normal(n * c, 1), start = random_normal(r * c, 2);
    auto tokens = random_ints(n, 3, -static_cast<int32_t>(r), 20);
    tokens[0] = tokens[3] = -2;  // of four rows none might be the prompt's
    const auto got = run_deterministic([&](Device& d) {
      GuardedMemory m(d);
      const Tensor dprompt = m.accumulator(start, {r, c});
      embed_backward(d, {.dx = m.input(dx, {n, c}), .tokens = m.input(tokens, {n}), .dprompt = dprompt});
      return std::vector<std::vector<float>>{m.read(dprompt)};
    });
    std::vector<float> want = start;  // in order of n, so the same bits
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < c && tokens[z(i)] < 0; ++j)
        want[z((-1 - tokens[z(i)]) * c + j)] += dx[z(i * c + j)];
    EXPECT_TRUE(bitwise_equal("dprompt", got[0], want));
  }
}

}  // namespace
}  // namespace gantrain
