// Who computes attention: ours, or cuDNN, which is opened on first use.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numeric>
#include <sstream>

#include "core/ops/attention.h"
#include "cuda/cuda_device.h"
#include "cuda/runtime/cudnn.h"
#include "tests/support/compare.h"
#include "tests/support/fill.h"
#include "tests/support/frozen.h"
#include "tests/support/guarded.h"

namespace gantrain {
namespace {

using namespace test;

AttentionPlan sequences(const std::vector<int32_t>& lengths) {
  AttentionPlan plan;
  int32_t at = 0;
  for (const int32_t n : lengths) {
    plan.segments.push_back({at, n, 0, 0, at});
    at += n;
  }
  return plan;
}

TEST(AttentionProvider, OnlyPlainBatchesAreOffered) {
  EXPECT_TRUE(cuda::is_plain_batch(sequences({5}), 5, 5));
  EXPECT_TRUE(cuda::is_plain_batch(sequences({5, 1, 9}), 15, 15));
  EXPECT_FALSE(cuda::is_plain_batch({}, 0, 0));
  EXPECT_FALSE(cuda::is_plain_batch(sequences({5, 9}), 15, 15)) << "a row of no sequence";
  EXPECT_FALSE(cuda::is_plain_batch(sequences({5, 9}), 14, 20)) << "keys of a cache";
  AttentionPlan prompt = sequences({5, 9});
  prompt.spans = {{0, 5}};
  prompt.segments[1].span_count = 1;
  EXPECT_FALSE(cuda::is_plain_batch(prompt, 14, 14)) << "a shared prompt";
  AttentionPlan full = sequences({5});
  full.spans = {{0, 5}};
  full.segments[0] = {0, 5, 0, 1, -1};
  EXPECT_FALSE(cuda::is_plain_batch(full, 5, 5)) << "not causal";
}

TEST(AttentionProvider, NamesAreChecked) {
  EXPECT_EQ(parse_cuda_attention("own", "GANTRAIN_ATTENTION"), CudaAttention::kOwn);
  EXPECT_EQ(parse_cuda_attention("cudnn", "GANTRAIN_ATTENTION"), CudaAttention::kCudnn);
  EXPECT_THROW(parse_cuda_attention("flash", "GANTRAIN_ATTENTION"), Error);
}

bool cudnn_is_open() {
  std::ifstream maps("/proc/self/maps");
  std::stringstream text;
  text << maps.rdbuf();
  return text.str().find("libcudnn") != std::string::npos;
}

// Without a GPU, without the library, or in a build without it: one line that says what to do.
TEST(AttentionProvider, AskingInVainGivesOneLine) {
  std::string why;
  if (cuda_unavailable().empty() && cuda::Cudnn::open(&why)) GTEST_SKIP() << "cuDNN can be used here";
  try {
    make_cuda_device({.index = 0, .gemm = Gemm::kOwn, .attention = CudaAttention::kCudnn});
    FAIL() << "a device was made";
  } catch (const Error& e) {
    const std::string text = e.what();
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_NE(text.find(cuda_unavailable().empty() ? "our own attention (own)" : "use --device cpu"),
              std::string::npos)
        << text;
  }
}

class CudaAttentionProvider : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (!cuda_unavailable().empty()) GTEST_SKIP() << "no cuda device on this machine";
  }
};
INSTANTIATE_TEST_SUITE_P(On, CudaAttentionProvider, testing::Values(0),
                         [](const auto&) { return std::string("cuda"); });

constexpr int64_t kH = 4, kK = 2, kD = 64;
std::vector<std::vector<float>> run(Device& dev, const AttentionPlan& plan, int64_t n) {
  const DType t = DType::kBF16;
  GuardedMemory m(dev);
  const auto values = [&](int64_t heads, uint64_t seed) {
    return rounded_to(t, random_normal(n * heads * kD, seed));
  };
  const ConstTensor q = m.input(values(kH, 1), {n, kH, kD}, t), k = m.input(values(kK, 2), {n, kK, kD}, t),
                    v = m.input(values(kK, 3), {n, kK, kD}, t);
  AttentionForward f{.q = q,
                     .k = k,
                     .v = v,
                     .plan = &plan,
                     .scale = 0.125f,
                     .o = m.output({n, kH, kD}, t),
                     .lse = m.output({n, kH}),
                     .scratch = {}};
  f.scratch = m.scratch(attention_forward_scratch(dev, f));
  attention_forward(dev, f);
  AttentionBackward b{.q = q,
                      .k = k,
                      .v = v,
                      .o = f.o,
                      .lse = f.lse,
                      .d_o = m.input(values(kH, 4), {n, kH, kD}, t),
                      .plan = &plan,
                      .scale = 0.125f,
                      .dq = m.output({n, kH, kD}, t),
                      .dk = m.output({n, kK, kD}, t),
                      .dv = m.output({n, kK, kD}, t),
                      .scratch = {}};
  b.scratch = m.scratch(attention_backward_scratch(dev, b));
  attention_backward(dev, b);
  AttentionBackward to_projection = b;
  to_projection.dq = to_projection.dk = to_projection.dv = {};
  to_projection.dy = m.output({n, (kH + 2 * kK) * kD}, t);
  to_projection.rotary = m.input(random_normal(n * kD, 5), {n, kD});
  to_projection.dot = m.output({n, kH + kK});
  attention_backward(dev, to_projection);
  // The parts of a row's sum are divided as the provider likes.
  std::vector<float> dots;
  const auto parts = m.read(to_projection.dot);
  for (size_t i = 0; i < parts.size(); i += kH + kK)
    dots.push_back(std::accumulate(parts.begin() + static_cast<long>(i),
                                   parts.begin() + static_cast<long>(i + kH + kK), 0.0f));
  return {m.read(f.o), m.read(f.lse), m.read(b.dq), m.read(b.dk), m.read(b.dv), m.read(to_projection.dy),
          dots};
}

TEST_P(CudaAttentionProvider, OwnOpensNoLibrary) {
  const bool before = cudnn_is_open();  // by another case of this process
  const auto dev = make_cuda_device({.index = 0, .gemm = Gemm::kOwn, .attention = CudaAttention::kOwn});
  const AttentionPlan plan = sequences({20, 3});
  (void)run(*dev, plan, 23);
  EXPECT_EQ(cudnn_is_open(), before);
}

// Needs a GPU and cuDNN. Two implementations in bf16: each is off by a rounding or two of a value.
TEST_P(CudaAttentionProvider, CudnnAgreesWithOurs) {
  std::string why;
  if (!cuda::Cudnn::open(&why)) GTEST_SKIP() << why;
  const AttentionPlan plan = sequences({130, 1, 64, 33});
  const auto own = make_cuda_device({.index = 0, .gemm = Gemm::kOwn, .attention = CudaAttention::kOwn});
  const auto cudnn = make_cuda_device({.index = 0, .gemm = Gemm::kOwn, .attention = CudaAttention::kCudnn});
  const auto want = run(*own, plan, 228), got = run(*cudnn, plan, 228);
  const char* names[] = {"o", "lse", "dq", "dk", "dv", "dy", "dot"};
  for (size_t i = 0; i < 7; ++i) {
    const auto reference = to_double(want[i]);
    EXPECT_TRUE(within(names[i], got[i], reference,
                       (i == 1 ? 1e-4 : 4 * kUnitBF16) * std::max(1.0, largest(reference))));
  }
}

}  // namespace
}  // namespace gantrain
