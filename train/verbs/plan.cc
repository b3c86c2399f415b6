#include "train/verbs/plan.h"

#include <algorithm>
#include <cmath>

#include "model/runner.h"
#include "train/networks/discriminator.h"
#include "train/networks/generator.h"

namespace gantrain {
namespace {

// A device that only counts what is allocated: the players' own constructors say what they take.
class CountingDevice final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string description() const override { return "counts memory"; }
  Ops& ops() override { fail("a device that counts memory has no ops"); }
  void* allocate(int64_t bytes) override {
    bytes_ += rounded(bytes);
    return this;  // never read or written
  }
  void release(void*, int64_t bytes) noexcept override { bytes_ -= rounded(bytes); }
  void copy_in(Tensor, const void*) override {}
  void copy_out(void*, ConstTensor) override {}
  void copy(Tensor, ConstTensor) override {}
  void fill_zero(Tensor) override {}
  void synchronize() override {}
  std::unique_ptr<const FrozenMatrix> freeze(const MatrixSource&, DType) override { return nullptr; }
  uint64_t hash(const FrozenMatrix&) override { return 0; }
  DType kept_dtype(DType weights) const override { return weights; }
  bool has_fast_bf16() const override { return false; }

  int64_t bytes() const { return bytes_; }
  static int64_t rounded(int64_t bytes) { return (std::max<int64_t>(bytes, 1) + 255) / 256 * 256; }

 private:
  int64_t bytes_ = 0;
};

int64_t count(const std::vector<int32_t>& tokens) { return static_cast<int64_t>(tokens.size()); }

}  // namespace

MemoryPlan plan_memory(Device& device, const Llama& llama, const TrainConfig& config,
                       const std::vector<TokenizedExample>& train,
                       const std::vector<TokenizedExample>& valid) {
  MemoryPlan plan;
  plan.weights = llama.weight_bytes();
  const bool adversarial = config.loss.kind != LossKind::kCe;
  const LlamaConfig& model = llama.config();
  const int64_t width = model.hidden_size, layers = model.num_layers,
                prompt_rows = config.generator.prompt_length;
  std::vector<size_t> by_length(train.size());
  for (size_t i = 0; i < train.size(); ++i) by_length[i] = i;
  auto length = [&](size_t i) { return count(train[i].prompt) + count(train[i].completion); };
  const size_t most = std::min(train.size(), static_cast<size_t>(config.train.batch));
  std::partial_sort(by_length.begin(), by_length.begin() + static_cast<std::ptrdiff_t>(most), by_length.end(),
                    [&](size_t a, size_t b) { return length(a) > length(b); });
  // Whatever else an input is for, it is no longer than the longest one.
  int64_t longest_input = 1, longest_answer = 1;
  for (const auto* items : {&train, &valid})
    for (const TokenizedExample& e : *items) {
      longest_input = std::max(longest_input, count(e.prompt));
      longest_answer = std::max(longest_answer, count(e.completion));
    }

  // The generator's batch, and the rollouts of its inputs.
  const bool own = config.generator.kind == GeneratorKind::kConditional ||
                   (config.generator.kind == GeneratorKind::kMlp && config.generator.noise_dim > 0);
  const auto add_context = [&](PackedBatch& batch, int32_t* shared, int64_t input_rows) {
    int32_t prompt = *shared;
    if (own || prompt < 0) prompt = batch.add_prompt(0, prompt_rows);
    *shared = prompt;
    return batch.add(prompt, std::vector<int32_t>(static_cast<size_t>(input_rows), 0));
  };
  PackedBatch batch, contexts;
  int32_t shared = -1, shared_context = -1;
  int64_t scored = 0;
  for (size_t i = 0; i < most; ++i) {
    const TokenizedExample& e = train[by_length[i]];
    const int32_t input = add_context(batch, &shared, count(e.prompt));
    add_context(contexts, &shared_context, count(e.prompt));
    batch.add(input, e.completion);
    scored += count(e.completion);
    for (int64_t s = 0; adversarial && s < config.loss.samples; ++s) {
      batch.add(input, std::vector<int32_t>(static_cast<size_t>(config.train.max_new_tokens), 0));
      scored += config.train.max_new_tokens;
    }
  }
  const Runner runner(device, llama);
  plan.workspace = runner.plan_bytes(
      batch, scored, config.train.recompute == Recompute::kLayer ? Saving::kLayerInput : Saving::kAll, true);

  // The players.
  const int64_t inputs = static_cast<int64_t>(most), held = std::max<int64_t>(1, config.train.batch / 2);
  {
    CountingDevice counting;
    const std::vector<float> table(static_cast<size_t>(prompt_rows * width));
    const auto generator = Generator::make(counting, config.generator, width, table, 0);
    plan.players = (adversarial ? 3 : 2) * counting.bytes();
    if (adversarial) {
      const int64_t before = counting.bytes();
      const Discriminator discriminator(counting, config.discriminator, width, 0);
      plan.players += counting.bytes() - before;
    }
  }

  // What the networks keep: so many rows of the model's width and of their own. A block keeps 13 tensors of
  // its width's rows in forward and 9 in backward, two of them twice as wide.
  constexpr int64_t kOfBlock = 32;
  const int64_t generated = own ? (inputs + held) * prompt_rows : prompt_rows;
  const int64_t blocks = config.generator.kind == GeneratorKind::kConditional ? config.generator.blocks : 1;
  const int64_t own_width = std::max(config.generator.width, config.generator.hidden);
  plan.networks = 4 * (8 * generated * width + generated * own_width * kOfBlock * blocks);
  if (config.generator.kind == GeneratorKind::kConditional)
    plan.networks += 4 * (inputs + held) * longest_input * (3 * width + 4 * config.generator.width * blocks);
  plan.networks += 4 * 8 * scored * 4;  // rows, labels, weights and losses of the head
  if (adversarial) {
    const int64_t answers = inputs * config.loss.samples,
                  replayed = std::llround(config.discriminator.replay * static_cast<double>(answers)),
                  pairs = answers + replayed + held,
                  pair_rows = std::min(longest_answer, config.train.max_new_tokens);
    const int64_t wanted = config.discriminator.feature_layer < 0 ? std::max<int64_t>(1, layers / 3)
                                                                  : config.discriminator.feature_layer;
    PackedBatch read;
    for (int64_t i = 0; i < inputs + held + replayed; ++i) {
      const int32_t input = read.add(-1, std::vector<int32_t>(static_cast<size_t>(longest_input), 0));
      const int64_t own_pairs = i < inputs ? config.loss.samples : 1;
      for (int64_t a = 0; a < 1 + own_pairs; ++a)
        read.add(input, std::vector<int32_t>(static_cast<size_t>(pair_rows), 0));
    }
    Arena features;
    take_activations(features, device, llama, read.rows(),
                     config.loss.kind == LossKind::kGumbel ? Saving::kAll : Saving::kNothing,
                     static_cast<int>(std::min(wanted, layers)), read.plan());
    plan.workspace = std::max(plan.workspace, features.peak());
    // Features of all pairs and of the fresh ones, normalised or not, with noise, their gradients; the
    // discriminator on clean and noisy ones at once.
    const int64_t rows = 2 * pairs * pair_rows;
    plan.networks += 4 * (10 * rows * width + 2 * rows * config.discriminator.width * (kOfBlock + 8));
    if (config.loss.beta > 0 || config.loss.kind == LossKind::kGumbel)
      plan.networks += 4 * 2 * answers * config.train.max_new_tokens * width;

    // The rollouts: training inputs with several answers each, held-out ones with one.
    for (int64_t i = 0; i < held; ++i) add_context(contexts, &shared_context, longest_input);
    const int64_t decoded = std::max(answers, held);
    plan.cache = KvCache::bytes(llama, contexts.rows() + decoded * config.train.max_new_tokens) +
                 2 * layers * CountingDevice::rounded(1);
    Arena prefill, decode;
    take_activations(prefill, device, llama, contexts.rows(), Saving::kNothing, static_cast<int>(layers),
                     contexts.plan());
    PackedBatch rows_of_step;
    for (int64_t i = 0; i < decoded; ++i) rows_of_step.add(-1, std::vector<int32_t>{0});
    take_activations(decode, device, llama, decoded, Saving::kNothing, static_cast<int>(layers),
                     rows_of_step.plan());
    plan.rollouts = prefill.peak() + decode.peak() + 4 * decoded * model.vocab_size + 4 * decoded * 2 * width;
  }
  // Buffers begin at multiples of 256 bytes, and plans of attention are kept beside them.
  plan.networks += plan.networks / 8 + (int64_t{1} << 20);
  return plan;
}

std::string MemoryPlan::text() const {
  const auto megabytes = [](int64_t bytes) {
    return fmt::format("{:.1f} MB", static_cast<double>(bytes) * 1e-6);
  };
  return fmt::format(
      "memory plan: weights {}, activations and workspace of the largest batch {}, KV cache of the rollouts "
      "{}, "
      "their activations and logits {}, players and optimisers {}, networks and features {}; together {}\n",
      megabytes(weights), megabytes(workspace), megabytes(cache), megabytes(rollouts), megabytes(players),
      megabytes(networks), megabytes(total()));
}

}  // namespace gantrain
