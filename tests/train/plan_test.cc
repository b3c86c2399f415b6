// The memory plan's rehearsal beside the real thing: the same trainer on a device that counts and computes
// nothing, and on the CPU with every allocation metered.
#include <gtest/gtest.h>

#include "core/ops.h"
#include "core/rng.h"
#include "tests/support/devices.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"
#include "train/plan/counting_device.h"
#include "train/plan/memory_plan.h"
#include "train/trainer.h"

namespace gantrain {
namespace {

// The CPU, with what is taken from it counted. Its answers are those of the counting device: what a random
// model says itself repeats, or is no text, and equal answers are read once.
class Metered final : public Device {
 public:
  Metered() : cpu_(test::make_cpu(1)) {}
  int64_t held = 0, peak = 0;
  std::vector<int32_t> tokens;

  DeviceKind kind() const override { return cpu_->kind(); }
  std::string description() const override { return cpu_->description(); }
  Ops& ops() override { return cpu_->ops(); }
  void* allocate(int64_t bytes) override {
    held += bytes;
    peak = std::max(peak, held);
    return cpu_->allocate(bytes);
  }
  void release(void* memory, int64_t bytes) noexcept override {
    held -= bytes;
    cpu_->release(memory, bytes);
  }
  void copy_in(Tensor to, const void* from) override { cpu_->copy_in(to, from); }
  void copy_out(void* to, ConstTensor from) override {
    cpu_->copy_out(to, from);
    if (from.dtype() != DType::kI32) return;
    ++reads_;
    for (int64_t i = 0; i < from.count(); ++i)
      static_cast<int32_t*>(to)[i] = tokens[derive_key(1, reads_, static_cast<uint64_t>(i)) % tokens.size()];
  }
  void copy(Tensor to, ConstTensor from) override { cpu_->copy(to, from); }
  void fill_zero(Tensor t) override { cpu_->fill_zero(t); }
  void synchronize() override { cpu_->synchronize(); }
  std::unique_ptr<const FrozenMatrix> freeze(const MatrixSource& s, DType t) override {
    return cpu_->freeze(s, t);
  }
  std::unique_ptr<const FrozenMatrix> matrix_over(ConstTensor values) override {
    return cpu_->matrix_over(values);
  }
  uint64_t hash(const FrozenMatrix& m) override { return cpu_->hash(m); }
  DType kept_dtype(DType weights) const override { return cpu_->kept_dtype(weights); }
  bool has_fast_bf16() const override { return cpu_->has_fast_bf16(); }

 private:
  std::unique_ptr<Device> cpu_;
  uint64_t reads_ = 0;
};

std::vector<TokenizedExample> items(int64_t count, uint64_t seed) {
  std::vector<TokenizedExample> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i].prompt = test::random_ints(6, 100 * seed + i, 10, 90);
    // Never "a" or "b": the fake tokenizer spells the two as one token.
    out[i].completion = test::random_ints(8, 100 * seed + i + 50, 40, 60);
  }
  return out;
}

TEST(CountingDevice, HoldsWhatTheRealTrainerHoldsToTheByte) {
  const std::vector<std::vector<std::string>> runs{
      {"method=prompt", "loss.kind=ce", "train.steps=3"},
      {"method=gan", "loss.kind=ce", "train.steps=3", "train.recompute=layer"},
      {"method=lora", "loss.kind=ce", "train.steps=3", "lora.targets=all"},
      {"method=prompt", "loss.kind=ce", "train.steps=3", "train.recompute=gate_up"},
      {"method=lora", "loss.kind=ce", "train.steps=3", "lora.targets=all", "train.recompute=mlp"},
      {"method=gan", "loss.kind=rloo", "train.accumulate=2"},
      {"method=prompt", "loss.kind=gumbel", "loss.beta=0.1"},
      {"method=lora", "loss.kind=rloo"},
      {"method=lora", "loss.kind=ce", "train.steps=3", "lora.dropout=0.1"},
      {"method=prefix", "loss.kind=ce", "train.steps=3", "prefix.projection=true"},
      {"method=prefix", "loss.kind=rloo", "prefix.length=5"},
      {"method=adapter", "loss.kind=ce", "train.steps=3", "bottleneck.places=attention,mlp"},
      {"method=adapter", "loss.kind=rloo", "train.recompute=layer"},
      {"method=lora", "loss.kind=ce", "train.steps=3", "train.average_from=1"},
      {"method=full", "loss.kind=ce", "train.steps=3"},
      {"method=full", "loss.kind=ce", "train.steps=3", "train.average_from=1"},
      {"method=full", "loss.kind=rloo", "loss.beta=0.1"}};
  for (const std::vector<std::string>& own : runs) {
    std::vector<std::string> settings{"model=m",
                                      "data.train=m",
                                      "train.batch=8",
                                      "train.steps=9",
                                      "train.warmup_ce_steps=1",
                                      "train.discriminator_steps=1",
                                      "train.gate_d=1",
                                      "train.gate_g=0",
                                      "train.max_new_tokens=8",
                                      "loss.samples=3",
                                      "discriminator.width=16",
                                      "generator.width=16"};
    settings.insert(settings.end(), own.begin(), own.end());
    const TrainConfig config = parse_train_config("", "test", settings);
    const testing::FakeTokenizer tokenizer(std::vector<int32_t>{});
    Metered real;
    const auto llama =
        Llama::load(real, std::make_shared<testing::MemoryWeights>(testing::tiny_config()), DType::kF32);
    const int64_t weights = real.held;
    std::vector<int32_t> letters;
    for (const char c : std::string("cdefghijklmnopqrstuvwxyz"))
      letters.push_back(*tokenizer.find_token(std::string(1, c)));
    real.tokens = letters;
    CountingDevice counting(real, letters);
    for (Device* device : {static_cast<Device*>(&counting), static_cast<Device*>(&real)}) {
      real.peak = real.held;
      Trainer trainer(*device, *llama, tokenizer, config, {items(8, 1), items(8, 2)});
      while (!trainer.done()) trainer.step();
      trainer.validate();
    }
    const int64_t reached = real.peak - weights;
    EXPECT_EQ(reached, counting.peak()) << own[0] << " " << own[1];
    EXPECT_EQ(real.held, weights);
    EXPECT_EQ(counting.held(), 0);
    int64_t sum = 0;
    for (const auto& [label, bytes] : counting.at_peak()) sum += bytes;
    EXPECT_EQ(sum, counting.peak());
  }
}

TEST(MemoryPlan, AddsUpAndARunThatDoesNotFitIsRefusedWithRemediesThatDo) {
  const auto device = test::make_cpu(1);
  const auto llama =
      Llama::load(*device, std::make_shared<testing::MemoryWeights>(testing::tiny_config()), DType::kF32);
  const testing::FakeTokenizer tokenizer;
  TokenizedDataset data;
  data.train = items(128, 1);
  data.valid = data.valid_merged = items(4, 2);
  const TrainConfig config = parse_train_config(
      "", "test", {"model=m", "data.train=m", "method=prompt", "loss.kind=ce", "train.batch=128"});
  const ProcessMemory now{.own = 3 << 20, .files = 1 << 20, .peak = 5 << 20};
  const auto plan_of = [&](const TrainConfig& c) {
    return plan_memory(*device, *llama, tokenizer, c, data, now);
  };
  const MemoryPlan plan = plan_of(config);
  int64_t sum = 0;
  for (const MemoryItem& item : plan.items) {
    EXPECT_GT(item.bytes, 0) << item.cause;
    EXPECT_NE(plan.text().find(item.cause), std::string::npos);
    sum += item.bytes;
  }
  EXPECT_EQ(sum, plan.total());
  // What the process holds is in it once, the weights within it or beside it.
  EXPECT_GE(plan.total(), now.own + now.files);
  EXPECT_EQ(plan.items.front().bytes, llama->weight_bytes());

  EXPECT_NO_THROW(check_memory(plan, {plan.total(), "x"}, config, plan_of));
  EXPECT_NO_THROW(check_memory(plan, {0, "unknown"}, config, plan_of));
  TrainConfig smaller = config;
  smaller.train.recompute = Recompute::kLayer;
  const int64_t enough = plan_of(smaller).total();
  ASSERT_LT(enough, plan.total());
  try {
    check_memory(plan, {enough, "the limit"}, config, plan_of);
    FAIL() << "a run above its limit was let through";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
    const std::string what = error.what();
    EXPECT_NE(what.find("the limit"), std::string::npos);
    EXPECT_NE(what.find("train.recompute=layer"), std::string::npos) << what;
    EXPECT_EQ(what.find("still too much"), std::string::npos) << what;
  }
  EXPECT_EQ(memory_limit(12345, now).bytes, 12345);
  EXPECT_GT(memory_limit(0, process_memory()).bytes, 0);
  // This process holds something, at most its peak.
  const ProcessMemory mine = process_memory();
  EXPECT_GT(mine.own, 0);
  EXPECT_LE(mine.own + mine.files, mine.peak + (1 << 20));
}

}  // namespace
}  // namespace gantrain
