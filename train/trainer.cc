#include "train/trainer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "core/digest.h"
#include "core/ops.h"
#include "train/checkpoint/checkpoint.h"
#include "train/losses/schedule.h"
#include "train/losses/weights.h"
#include "train/metrics/bleu.h"
#include "train/play/generator_prompts.h"

namespace gantrain {
namespace {

constexpr int64_t kReplayCapacity = 1024;
constexpr int64_t kTextsKept = 64;    // for self-BLEU of the rollouts
constexpr size_t kSignalInputs = 64;  // held-out inputs of gate G1
constexpr double kSeenFades = 0.9;    // a step's pairs count this much in the next one
constexpr int64_t kNoiseEvery = 50;   // steps between looks at what the noise changes
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// Values of gradients that are summed over ranks in one call; a player of more takes several.
constexpr int64_t kSummedTogether = Trainer::kSummedTogether;

// What a key is for; fixed numbers, because a run must mean the same in every version that reads its
// checkpoint.
enum Purpose : uint64_t {
  kPurposeInit = 1,
  kPurposeNoise = 2,
  kPurposeRollout = 3,
  kPurposeFeatureNoise = 4,
  kPurposeReplay = 5,
  kPurposeHeldout = 6,
  kPurposeLoader = 7,
  kPurposeDiscriminator = 8,
  kPurposeEvaluation = 9,
  kPurposeSignal = 10,
  kPurposeDropout = 11,
};

class Clock {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double s = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return s;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

std::vector<int64_t> total_lengths(const std::vector<TokenizedExample>& examples) {
  std::vector<int64_t> n;
  for (const TokenizedExample& e : examples)
    n.push_back(static_cast<int64_t>(e.prompt.size() + e.completion.size()));
  return n;
}

Loader training_loader(const TrainConfig& c, const std::vector<TokenizedExample>& train) {
  return {total_lengths(train), c.train.batch, derive_key(static_cast<uint64_t>(c.seed), kPurposeLoader),
          c.data.bucket};
}
Loader heldout_loader(const TrainConfig& c, const std::vector<TokenizedExample>& train,
                      const std::vector<TokenizedExample>& valid) {
  return {total_lengths(valid.empty() ? train : valid), std::max<int64_t>(1, c.train.batch / 2),
          derive_key(static_cast<uint64_t>(c.seed), kPurposeHeldout), false};
}
int64_t warmup_steps(const TrainConfig& c, int64_t steps) {
  return c.loss.kind == LossKind::kCe ? steps : std::min(c.train.warmup_ce_steps, steps);
}

}  // namespace

Saving saving_of(Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone:
      return Saving::kAll;
    case Recompute::kGateUp:
      return Saving::kButGateUp;
    case Recompute::kMlp:
      return Saving::kButMlp;
    case Recompute::kLayer:
      return Saving::kLayerInput;
  }
  return Saving::kAll;
}

const char* phase_name(Phase phase) {
  switch (phase) {
    case Phase::kWarmup:
      return "warmup";
    case Phase::kDiscriminator:
      return "discriminator";
    case Phase::kAdversarial:
      return "adversarial";
    case Phase::kDone:
      return "done";
  }
  return "?";
}

struct Trainer::State {
  Device& device;
  const Llama& llama;
  const Tokenizer& tokenizer;
  const TrainConfig config;
  Data data;
  Runner runner;
  std::unique_ptr<Generator> generator, average, frozen_warm;
  std::unique_ptr<GeneratorPrompts> prompts, average_prompts, warm_prompts;
  std::unique_ptr<Discriminator> discriminator;
  Loader loader, heldout;
  BalanceGate gate;
  ReplayBuffer replay;
  AlarmMonitor alarms;
  uint64_t seed;
  int layers_d = 0;  // frozen layers below the discriminator

  Phase phase = Phase::kWarmup;
  int64_t step = 0, warmup_total = 0, total = 0;
  int64_t phase_step = 0;  // steps taken in this phase
  int64_t averaged = 0;    // with cross-entropy alone: steps that the average took in
  Totals totals;
  // For the alarms.
  FollowedMean length, foreign;
  double validation_ce = -1;  // -1: nothing yet
  std::array<double, 4>
      seen{};  // pairs and right ones, of training and of held-out inputs, fading by the step
  SignalCheck signal;
  std::deque<std::string> texts;  // the last answers, for self-BLEU
  std::vector<std::string> raised;
  std::unique_ptr<ContextCache> contexts;  // null: switched off, or nothing is read that could be kept

  // Every rank works on its part of each batch and knows the whole of it: what is random goes by an example's
  // place in the whole batch, counts that a mean divides by are the whole batch's, gradients and losses are
  // summed. The rest of the state (gate, replay, alarms, positions) is the same on all of them.
  OneRank alone;
  Communicator& group;
  OwnedTensor summed;   // (at most kSummedTogether) f32: gradients on their way, with more ranks than one
  bool shared = false;  // all ranks have rank 0's values

  State(Device& d, const Llama& l, const Tokenizer& t, const TrainConfig& c, Data items, Communicator* ranks)
      : device(d),
        llama(l),
        tokenizer(t),
        config(c),
        data(std::move(items)),
        runner(d, l),
        loader(training_loader(c, data.train)),
        heldout(heldout_loader(c, data.train, data.valid)),
        gate(gate_settings(c)),
        replay(kReplayCapacity, derive_key(static_cast<uint64_t>(c.seed), kPurposeReplay)),
        seed(static_cast<uint64_t>(c.seed)),
        group(ranks ? *ranks : alone) {
    const int64_t width = llama.config().hidden_size;
    if (config.train.batch % group.size() != 0)
      fail_usage("train.batch is {}, which {} ranks cannot share evenly; set a multiple of {}",
                 config.train.batch, group.size(), group.size());
    if (several() && width % 4 != 0)
      fail_usage("{} ranks: the model's width is {}, expected a multiple of 4", group.size(), width);
    if (!has_prompt(config.method))
      for (const TokenizedExample& e : data.train)
        if (e.prompt.empty())
          fail_usage("method {}: line {} has no input and the model no BOS token: there is nothing to answer",
                     kMethodNames[static_cast<size_t>(config.method)], e.line);
    // What a prompt or a prefix begins with.
    const bool prefix = config.method == Method::kPrefix;
    std::vector<float> start;
    if (prefix || has_prompt(config.method)) {
      const int64_t length = positions_before(c);
      const std::vector<int32_t> ids = c.generator.init == PromptInit::kText
                                           ? text_tokens(tokenizer.encode(c.generator.init_text), length)
                                           : vocabulary_tokens(llama, length, key(kPurposeInit, 0));
      start = prefix ? keys_and_values(device, llama, ids) : llama.embedding_rows(ids);
    }
    auto make = [&](bool gradients) {
      return Generator::make(device, config, llama, start, key(kPurposeInit, 1), gradients);
    };
    generator = make(true);
    prompts = std::make_unique<GeneratorPrompts>(runner, *generator, config.generator);
    if (adversarial() || config.train.average_from >= 0) {
      average = make(false);
      average_prompts = std::make_unique<GeneratorPrompts>(runner, *average, config.generator);
    }
    const int64_t layers = llama.config().num_layers;
    layers_d = feature_layers(config.discriminator, layers);
    if (config.generator.feature_layer > layers)
      fail_usage("generator.feature_layer: the model has {} layers, got {}", layers,
                 config.generator.feature_layer);
    if (adversarial())
      discriminator =
          std::make_unique<Discriminator>(device, config.discriminator, width, key(kPurposeDiscriminator, 0));

    const bool behind = suffix();
    if (config.train.context_cache > 0 && (behind || adversarial())) {
      // At most as many inputs meet in one batch: its own, held-out ones and, with a discriminator, old ones.
      const int64_t fresh = config.train.batch * std::max(answers_an_input(true), answers_an_input(false));
      const int64_t inputs =
          config.train.batch +
          (adversarial() ? std::max<int64_t>(1, config.train.batch / 2) +
                               static_cast<int64_t>(std::ceil(config.discriminator.replay * fresh)) + 1
                         : 0);
      int64_t longest_input = 0;
      for (const auto* items : {&data.train, &data.valid})
        for (const TokenizedExample& e : *items)
          longest_input = std::max(longest_input, static_cast<int64_t>(e.prompt.size()));
      const int64_t all = data.context_rows >= 0 ? data.context_rows : context_rows(data.train, data.valid),
                    kept =
                        std::min(all, config.train.context_cache / ContextCache::bytes_of_row(device, llama));
      contexts = std::make_unique<ContextCache>(device, llama, kept,
                                                kept == all ? 0 : std::min(all, inputs * longest_input));
    }

    total = steps_of(config, loader.items());
    warmup_total = warmup_steps(config, total);
    if (warmup_total == 0) {
      begin_adversarial();
      phase_step = 0;
    }
  }

  // The training items as tokens: a continued run must see the same ones.
  std::string data_hash() const {
    Digest digest;
    auto mix = [&](const std::vector<int32_t>& ids) {
      for (int32_t id : ids) digest.add(static_cast<uint32_t>(id));
      digest.add(0xffffffffu);
    };
    for (const auto* items : {&data.train, &data.valid})
      for (const TokenizedExample& e : *items) {
        mix(e.prompt);
        mix(e.completion);
      }
    return fmt::format("{:016x}", digest.value);
  }

  bool several() const { return group.size() > 1; }
  Part mine(size_t n) const { return part_of(n, group.rank(), group.size()); }
  // Gradients become the sums over all ranks.
  void sum_gradients(ParameterSet& set) {
    if (!several()) return;
    const Range range(device, "sum over ranks");
    if (summed.empty()) {
      const int64_t most =
          std::max(generator->parameters().count(), discriminator ? discriminator->parameters().count() : 0);
      summed = OwnedTensor(device, DType::kF32, {std::min(most, kSummedTogether)});
    }
    set.sum_gradients(group, summed);
  }
  // The first step begins with rank 0's values everywhere: mathematical functions differ between machines.
  void share() {
    if (shared) return;
    shared = true;
    if (!several()) return;
    const std::vector<std::string> runs =
        group.all_gather(fmt::format("base {:016x} as {}, data {}, step {}", llama.content_hash(),
                                     dtype_name(llama.dtype()), data_hash(), step));
    for (size_t r = 1; r < runs.size(); ++r)
      if (runs[r] != runs[0])
        fail(
            "rank {} has another run than rank 0: {}, rank 0 {}; every rank needs the same model, data and "
            "checkpoint",
            r, runs[r], runs[0]);
    for (Generator* g : {generator.get(), average.get(), frozen_warm.get()})
      if (g) g->parameters().broadcast_values(group);
    if (discriminator) discriminator->parameters().broadcast_values(group);
  }

  // Whether inputs stand before the prompt, so that nothing trained changes what the model makes of them.
  bool suffix() const {
    return has_prompt(config.method) && config.generator.placement == Placement::kSuffix &&
           config.generator.prompt_length > 0;
  }
  // Inputs that stand before their prompts come from the cache.
  void take_contexts(Prompts& made, ExampleSpan inputs) {
    if (!contexts || !suffix()) return;
    std::vector<const std::vector<int32_t>*> tokens;
    for (const TokenizedExample* e : inputs) tokens.push_back(&e->prompt);
    made.contexts = contexts->place(runner, tokens);
    made.adapter.contexts = made.contexts.view;
  }

  bool adversarial() const { return config.loss.kind != LossKind::kCe; }
  // Answers sampled to an input, while the discriminator learns alone or with both players there.
  int64_t answers_an_input(bool alone) const {
    return alone && config.train.discriminator_samples > 0 ? config.train.discriminator_samples
                                                           : config.loss.samples;
  }
  bool credit_by_token() const {  // softmax weighs whole answers
    return config.loss.kind == LossKind::kRloo && config.loss.credit == Credit::kToken &&
           config.loss.weighting == Weighting::kLeaveOneOut;
  }
  uint64_t key(uint64_t purpose, uint64_t index) const { return derive_key(seed, purpose, index); }
  static BalanceSettings gate_settings(const TrainConfig& c) {
    return {.target_low = c.train.target_low,
            .target_high = c.train.target_high,
            .gate_d = c.train.gate_d,
            .gate_g = c.train.gate_g,
            .ema = c.train.gate_ema,
            .warmup_limit = c.train.discriminator_steps,
            .hold_d = c.train.hold_d};
  }
  // Steps of the adversarial phases, and how far we are in them, 0 to 1.
  int64_t adversarial_total() const { return std::max<int64_t>(1, total - warmup_total); }
  double progress() const {
    return std::clamp(static_cast<double>(step - warmup_total) / static_cast<double>(adversarial_total()),
                      0.0, 1.0);
  }

  std::vector<std::vector<const TokenizedExample*>> next_batches() {
    std::vector<std::vector<const TokenizedExample*>> out;
    for (int64_t i = 0; i < config.train.accumulate; ++i) {
      std::vector<const TokenizedExample*> batch;
      for (int64_t n : loader.next()) batch.push_back(&data.train[static_cast<size_t>(n)]);
      out.push_back(std::move(batch));
    }
    return out;
  }

  // The warm generator is kept: reference of the KL term, and an arm of the evaluation.
  void keep_warm() {
    frozen_warm = Generator::make(device, config, llama, {}, key(kPurposeInit, 1), false);
    warm_prompts = std::make_unique<GeneratorPrompts>(runner, *frozen_warm, config.generator);
  }
  void begin_adversarial() {
    phase = gate.turn().warmup ? Phase::kDiscriminator : Phase::kAdversarial;
    phase_step = -1;  // this step was the warm-up's last
    keep_warm();
    frozen_warm->parameters().copy_values_from(generator->parameters());
    average->parameters().copy_values_from(generator->parameters());
    generator->parameters().reset_moments();  // the betas change
  }

  // Whether the next step of cross-entropy alone goes into the average.
  bool averages() const { return !adversarial() && average && step >= config.train.average_from; }
  // The t-th step since the average began as a copy. A short memory at first: it must forget where it began
  // within a short run too.
  void take_into_average(int64_t t) {
    const double n = static_cast<double>(t);
    average->parameters().average_from(
        generator->parameters(), static_cast<float>(std::min(config.train.ema, (1.0 + n) / (10.0 + n))));
  }

  AdamSettings adam_g() const {
    AdamSettings s;
    s.eps = static_cast<float>(config.optimizer.eps);
    s.weight_decay = static_cast<float>(config.optimizer.weight_decay);
    s.clip = static_cast<float>(config.optimizer.clip);
    if (phase == Phase::kWarmup) {
      s.beta1 = 0.9f;
      s.beta2 = 0.999f;
      // A run of cross-entropy alone goes down to lr_end of its own schedule; a warm-up stays up for the next
      // phase.
      const double end = adversarial() ? config.optimizer.lr_ce : 0.0;
      s.lr = static_cast<float>(scheduled(config.optimizer.schedule, config.optimizer.lr_ce, end, step,
                                          warmup_total, config.optimizer.warmup_steps));
    } else {
      s.beta1 = static_cast<float>(config.optimizer.beta1);
      s.beta2 = static_cast<float>(config.optimizer.beta2);
      s.lr = static_cast<float>(scheduled(config.optimizer.schedule, config.optimizer.lr,
                                          config.optimizer.lr_end, step - warmup_total, adversarial_total()));
    }
    return s;
  }
  AdamSettings adam_d() const {
    AdamSettings s = adam_g();
    s.beta1 = static_cast<float>(config.optimizer.beta1);
    s.beta2 = static_cast<float>(config.optimizer.beta2);
    s.weight_decay = 0.0f;
    s.lr = static_cast<float>(scheduled(config.optimizer.schedule, config.optimizer.lr_d,
                                        config.optimizer.lr_d_end, step - warmup_total, adversarial_total()));
    return s;
  }

  // ---- the generator's side
  // ----------------------------------------------------------------------------------------

  // What the generator is asked to do with one sampled answer.
  struct SampledSeed {
    const Rollout* rollout;
    size_t length;               // tokens that carry a seed
    std::vector<float> weights;  // rloo: of each of them (losses/weights.h), times 1 / inputs
  };
  // Of all seeds of a micro-batch. gumbel: (sum of the lengths, C), dL / d(embedding of each token), on the
  // device.
  struct SampledSeeds {
    std::vector<SampledSeed> list;
    OwnedTensor embedding;
  };
  // A rank's part of a micro-batch.
  struct Micro {
    std::vector<const TokenizedExample*> inputs;
    size_t first = 0;  // place of inputs[0] in the whole micro-batch
    size_t whole = 0;  // inputs of all ranks
    // Several ranks whose inputs have prompts of their own: rms of all prompts of the micro-batch, and how
    // many numbers they have.
    double rms = 0, count = 0;
    std::vector<int64_t> places() const {
      std::vector<int64_t> p(inputs.size());
      std::iota(p.begin(), p.end(), static_cast<int64_t>(first));
      return p;
    }
  };
  Micro micro_of(const std::vector<const TokenizedExample*>& whole) const {
    const Part part = mine(whole.size());
    Micro m;
    m.inputs.assign(whole.begin() + static_cast<std::ptrdiff_t>(part.begin),
                    whole.begin() + static_cast<std::ptrdiff_t>(part.end));
    m.first = part.begin;
    m.whole = whole.size();
    return m;
  }
  std::vector<Micro> micros_of(const std::vector<std::vector<const TokenizedExample*>>& batches) const {
    std::vector<Micro> out;
    for (const auto& b : batches) out.push_back(micro_of(b));
    return out;
  }
  // The norm penalty looks at all prompts of a micro-batch at once. `made` has those of m's inputs in front;
  // null: they are made here.
  void measure_prompts(Micro& m, uint64_t noise_key, const Prompts* made) {
    if (!several() || generator->prompt_length() == 0 || generator->prompts(2) == 1) return;
    double own[2] = {0, 0};
    if (!m.inputs.empty()) {
      const Prompts fresh = made ? Prompts() : prompts->make(m.inputs, noise_key, m.places());
      const ConstTensor rows = (made ? *made : fresh).view();
      const int64_t n = static_cast<int64_t>(m.inputs.size()) * generator->prompt_length();
      for (const float v : download(device, rows.rows(0, n))) own[0] += static_cast<double>(v) * v;
      own[1] = static_cast<double>(n * rows.dim(1));
    }
    const std::vector<double> sum = sum_values(group, own);
    m.rms = std::sqrt(sum[0] / sum[1]);
    m.count = sum[1];
  }

  struct GeneratorSums {
    double ce = 0, kl = 0, rms = 0;
    int64_t ce_tokens = 0, kl_tokens = 0, rows = 0;
    // Of all ranks' sums.
    void add_up(Communicator& ranks) {
      if (ranks.size() == 1) return;
      const double own[] = {ce,
                            kl,
                            rms,
                            static_cast<double>(ce_tokens),
                            static_cast<double>(kl_tokens),
                            static_cast<double>(rows)};
      const auto all = gather_values(ranks, own);
      *this = GeneratorSums();
      for (const std::vector<double>& of_rank : all) {
        ce += of_rank[0];
        kl += of_rank[1];
        rms = std::max(rms, of_rank[2]);  // the same where there is one: a rank without inputs has none
        ce_tokens += static_cast<int64_t>(of_rank[3]);
        kl_tokens += static_cast<int64_t>(of_rank[4]);
        rows += static_cast<int64_t>(of_rank[5]);
      }
    }
    // One a micro-batch: what the device is still at. The prompt is kept for the message of a loss that is
    // not finite.
    struct Pass {
      Micro batch;
      Prompts prompts;
      HeadReading reference, sampled;
      Reading<float> rms;
    };
    std::vector<Pass> passes;
  };
  // Reads the losses of the passes; then the sums are those of all ranks.
  void finish(GeneratorSums& sums) {
    for (const GeneratorSums::Pass& pass : sums.passes) {
      for (float nll : pass.reference.get().nll) sums.ce += nll;
      for (float kl : pass.sampled.get().kl) {
        sums.kl += kl;
        ++sums.kl_tokens;
      }
      for (float rms : pass.rms.get()) sums.rms = rms / llama.embedding_rms();
      if (pass.batch.rms > 0) sums.rms = pass.batch.rms / llama.embedding_rms();
    }
    sums.passes.clear();
    sums.add_up(group);
  }

  // A part of a step that waits for nothing: one graph, by the power of two that holds `size`.
  void region(const char* name, int64_t size, const std::function<void()>& work) {
    device.region(name, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(size))), 0, work);
  }
  static int64_t tokens_of(ExampleSpan examples) {
    int64_t n = 0;
    for (const TokenizedExample* e : examples)
      n += static_cast<int64_t>(e->prompt.size() + e->completion.size());
    return n;
  }

  // Forward and backward of one micro-batch: cross-entropy on the references with weight ce_weight a token,
  // and the seeds of the sampled answers. Parameter gradients are accumulated.
  void generator_pass(const Micro& micro, uint64_t noise_key, float ce_weight, const SampledSeeds& seeds,
                      float kl_weight, GeneratorSums& sums) {
    const ExampleSpan inputs = micro.inputs;
    if (inputs.empty()) return;  // a short batch: other ranks have its inputs
    const Placement placement = config.generator.placement;
    GeneratorSums::Pass& pass = sums.passes.emplace_back();
    pass.batch = micro;
    pass.prompts = prompts->make(inputs, noise_key, micro.places());
    take_contexts(pass.prompts, inputs);
    const Prompts& made = pass.prompts;
    // Of the low-rank adapters' inputs some are left out, here alone: answers and losses are read with all.
    Adapters trained = made.adapter;
    if (trained.lora && config.lora.dropout > 0) {
      trained.dropout = static_cast<float>(config.lora.dropout);
      trained.dropout_key = derive_key(noise_key, kPurposeDropout, static_cast<uint64_t>(group.rank()));
    }
    PackedBatch batch = batch_behind(made.adapter);
    ContextBuilder contexts(batch, made, placement);
    HeadRequest reference_head, sampled_head;
    std::vector<int32_t> segment;
    auto continue_with = [&](int32_t context, const std::vector<int32_t>& tokens, size_t scored,
                             HeadRequest& head) {
      const int32_t s = batch.add(context, std::span<const int32_t>(tokens.data(), tokens.size() - 1));
      for (size_t t = 0; t < scored; ++t) {
        head.rows.push_back(t == 0 ? batch.last_row(context)
                                   : batch.segment(s).row_begin + static_cast<int32_t>(t) - 1);
        head.labels.push_back(tokens[t]);
      }
    };
    for (size_t b = 0; b < inputs.size(); ++b) {
      const int32_t context = contexts.add(b, *inputs[b]);
      segment.push_back(context);
      continue_with(context, inputs[b]->completion, inputs[b]->completion.size(), reference_head);
    }
    const bool gumbel = !seeds.embedding.empty();
    for (const SampledSeed& seed : seeds.list) {
      const std::vector<int32_t>& tokens = seed.rollout->tokens;
      // Nothing after the last scored token matters.
      const std::vector<int32_t> read(tokens.begin(),
                                      tokens.begin() + static_cast<std::ptrdiff_t>(seed.length));
      continue_with(segment[seed.rollout->input - micro.first], read, seed.length, sampled_head);
      for (size_t t = 0; t < seed.length; ++t) {
        if (!gumbel) sampled_head.ce_weight.push_back(seed.weights[t]);
        sampled_head.keys.push_back(static_cast<int64_t>(seed.rollout->key));
        sampled_head.counters.push_back(static_cast<int64_t>(t));
        if (kl_weight > 0) sampled_head.kl_weight.push_back(kl_weight);
      }
    }
    // The reference policy's states, if the KL term is on: the same rows under the warm prompt.
    OwnedTensor warm_rows;
    if (kl_weight > 0 && !sampled_head.rows.empty()) {
      Prompts warm = warm_prompts->make(inputs, noise_key, micro.places());
      warm.adapter.contexts = made.adapter.contexts;
      runner.forward(batch, warm.view(), Saving::kNothing, -1, warm.adapter,
                     {.read = sampled_head.rows, .gradient = {}});
      warm_rows = runner.output_rows(sampled_head.rows);
      sampled_head.reference = warm_rows.view();
      if (warm.adapter.weights) sampled_head.policy = warm.adapter.weights->llama;
    }
    if (gumbel) {
      sampled_head.embedding_grad = seeds.embedding.view();
      GT_CHECK(sampled_head.embedding_grad.dim(0) == static_cast<int64_t>(sampled_head.rows.size()),
               "gumbel seeds do not cover the rows");
      sampled_head.tau =
          static_cast<float>(config.loss.tau + (config.loss.tau_end - config.loss.tau) * progress());
      sampled_head.top_k =
          static_cast<int32_t>(std::min<int64_t>(config.loss.top_k, llama.config().vocab_size));
    } else {
      sampled_head.keys.clear();
      sampled_head.counters.clear();
    }

    std::vector<int32_t> scored = reference_head.rows;
    scored.insert(scored.end(), sampled_head.rows.begin(), sampled_head.rows.end());
    runner.forward(batch, made.view(), saving_of(config.train.recompute), -1, trained,
                   {.read = std::move(scored), .gradient = {}});
    runner.begin_backward();
    reference_head.ce_weight.assign(reference_head.rows.size(), ce_weight);
    pass.reference = runner.head_later(reference_head, ce_weight > 0);
    sums.ce_tokens += static_cast<int64_t>(reference_head.rows.size());
    if (!sampled_head.rows.empty()) pass.sampled = runner.head_later(sampled_head, true);
    runner.backward();
    sums.rows += batch.rows();
    if (made.count == 0) {
      // On the model: its backward left every gradient where it belongs. A prompt of no rows has none.
      if (!has_prompt(config.method)) prompts->backward({});
      return;
    }

    OwnedTensor dprompt = zeros(device, made.rows.view().shape());
    runner.add_prompt_gradient(dprompt);
    const double penalty = config.generator.norm_penalty / static_cast<double>(config.train.accumulate);
    if (micro.rms > 0) {
      // Its gradient where the rms is of more prompts than these.
      const double ratio = micro.rms / llama.embedding_rms();
      axpy(device,
           {.x = made.view(),
            .a = static_cast<float>(2.0 * penalty * std::log(ratio) / (micro.count * micro.rms * micro.rms)),
            .y = dprompt});
    } else {
      // A prompt that all ranks share is penalised once: each that has inputs takes its share.
      int sharing = 0;
      for (int r = 0; r < group.size(); ++r) sharing += part_of(micro.whole, r, group.size()).size() > 0;
      OwnedTensor loss(device, DType::kF32, {1}), rms(device, DType::kF32, {1});
      rms_penalty(device, {.prompt = made.view(),
                           .reference_rms = llama.embedding_rms(),
                           .weight = static_cast<float>(penalty / sharing),
                           .loss = loss,
                           .rms = rms,
                           .dprompt = dprompt});
      pass.rms = Reading<float>(device, rms);
    }
    // The warm generator's forward did not touch the trained one's state.
    prompts->backward(dprompt);
  }

  // The last lap of a step: on a device that queues its work the host has waited there for all of it, most of
  // which is forward and backward.
  void lap_of_wait(Clock& clock, double& forward_backward, double& optimizer) const {
    (device.queues_work() ? forward_backward : optimizer) += clock.lap();
  }

  StepRecord warmup_step() {
    StepRecord r;
    Clock clock;
    const auto whole = next_batches();
    int64_t tokens = 0;
    for (const auto& b : whole)
      for (const TokenizedExample* e : b) tokens += static_cast<int64_t>(e->completion.size());
    std::vector<Micro> batches = micros_of(whole);
    for (size_t m = 0; m < batches.size(); ++m)
      measure_prompts(batches[m], key(kPurposeNoise, index(m)), nullptr);
    int64_t size = 1;
    for (const Micro& b : batches) size = std::max(size, tokens_of(b.inputs));
    GeneratorSums sums;
    const AdamSettings adam = adam_g();
    if (averages() && averaged == 0) average->parameters().copy_values_from(generator->parameters());
    const auto optimise = [&] {
      generator->parameters().start_step(adam);
      if (averages()) take_into_average(averaged + 1);
    };
    region("warm-up step", size, [&] {
      generator->parameters().zero_grad();
      for (size_t m = 0; m < batches.size(); ++m)
        generator_pass(batches[m], key(kPurposeNoise, index(m)), 1.0f / static_cast<float>(tokens), {}, 0.0f,
                       sums);
      r.forward_backward_s = clock.lap();
      if (!several()) optimise();
    });
    if (several()) {
      sum_gradients(generator->parameters());
      region("optimizers", 1, optimise);
    }
    finish(sums);
    r.grad_norm_g = generator->parameters().finish_step();
    if (averages()) ++averaged;
    lap_of_wait(clock, r.forward_backward_s, r.optimizer_s);
    r.ce = sums.ce / static_cast<double>(sums.ce_tokens);
    if (config.generator.prompt_length > 0) r.rms_ratio = sums.rms;
    r.tokens = sums.rows;
    r.lr_g = adam.lr;
    r.trained_g = true;
    ++totals.steps_g;
    return r;
  }

  // A number of this step and micro-batch that no other step or micro-batch has.
  uint64_t index(size_t micro) const { return static_cast<uint64_t>(step) * 4096u + micro; }

  // ---- the adversarial phases
  // --------------------------------------------------------------------------------------

  // Scores of both sides of some pairs, no gradient kept.
  struct PairScores {
    std::vector<float> real, fake;
    // Of the pairs that differ: equal answers have equal scores and say nothing about the discriminator.
    double counted() const {
      double n = 0;
      for (size_t i = 0; i < real.size(); ++i) n += real[i] != fake[i];
      return n;
    }
    double right() const {
      double n = 0;
      for (size_t i = 0; i < real.size(); ++i) n += real[i] > fake[i];
      return n;
    }
  };
  static PairScores split(const std::vector<float>& all) {
    const std::ptrdiff_t n = static_cast<std::ptrdiff_t>(all.size() / 2);
    return {{all.begin(), all.begin() + n}, {all.begin() + n, all.end()}};
  }

  // Rows of features that follow each other here, and in the same features of all ranks together from row
  // `first` on.
  struct RowRun {
    int64_t rows = 0, first = 0;
  };
  static void add_run(std::vector<RowRun>& runs, int64_t rows, int64_t first) {
    if (rows == 0) return;
    if (!runs.empty() && runs.back().first + runs.back().rows == first)
      runs.back().rows += rows;
    else
      runs.push_back({rows, first});
  }

  // One discriminator update's gradients, on features f (normalised) of n pairs, whose mean has this share in
  // that of all ranks; returns the loss.
  Reading<float> discriminator_pass(ConstTensor f, const std::vector<int32_t>& offsets, int64_t n,
                                    const std::vector<RowRun>& runs, float share, size_t micro) {
    const DiscriminatorConfig& c = config.discriminator;
    const double gamma = c.gamma + (c.gamma_end - c.gamma) * progress();
    if (gamma <= 0.0) {
      const OwnedTensor d = discriminator->forward(f, offsets);
      return discriminator_seeds(f, d.view(), n, 0.0, false, share);
    }
    // Clean and noisy copies in one batch: rows side by side, answers after answers.
    const int64_t rows = f.dim(0), width = f.dim(1);
    OwnedTensor both(device, DType::kF32, {2 * rows, width});
    device.copy(both.view().rows(0, rows), f);
    int64_t at = 0;
    for (const RowRun& run : runs) {
      add_noise(device, {.x = f.rows(at, run.rows),
                         .sigma = static_cast<float>(c.sigma),
                         .key = key(kPurposeFeatureNoise, index(micro)),
                         .counter = 0,
                         .first = run.first * width,
                         .y = both.view().rows(rows + at, run.rows)});
      at += run.rows;
    }
    GT_CHECK(at == rows, "noise for {} rows of {}", at, rows);
    std::vector<int32_t> twice = offsets;
    for (size_t i = 1; i < offsets.size(); ++i) twice.push_back(offsets.back() + offsets[i]);
    const OwnedTensor d = discriminator->forward(both, twice);
    return discriminator_seeds(both, d.view(), n, gamma / (2.0 * c.sigma * c.sigma), true, share);
  }

  Reading<float> discriminator_seeds(ConstTensor f, ConstTensor d, int64_t n, double lam, bool copies,
                                     float share) {
    const Range range(device, "discriminator");
    const ConstTensor scores = d.view({d.count()});
    OwnedTensor seeds(device, DType::kF32, {d.count()}), loss(device, DType::kF32, {1});
    const Tensor s = seeds.view();
    pair_loss(device, {.dr = scores.rows(0, n),
                       .df = scores.rows(n, n),
                       .dr2 = copies ? scores.rows(2 * n, n) : ConstTensor(),
                       .df2 = copies ? scores.rows(3 * n, n) : ConstTensor(),
                       .kind = config.discriminator.loss,
                       .lam = static_cast<float>(lam),
                       .center = static_cast<float>(config.discriminator.center_penalty),
                       .smooth = static_cast<float>(config.discriminator.label_smoothing),
                       .loss = loss,
                       .ddr = s.rows(0, n),
                       .ddf = s.rows(n, n),
                       .ddr2 = copies ? s.rows(2 * n, n) : Tensor(),
                       .ddf2 = copies ? s.rows(3 * n, n) : Tensor()});
    if (share != 1.0f) {
      OwnedTensor scaled = zeros(device, {d.count()});
      axpy(device, {.x = seeds, .a = share, .y = scaled});
      seeds = std::move(scaled);
    }
    discriminator->backward(f, seeds, {});
    return Reading<float>(device, loss);
  }

  StepRecord adversarial_step() {
    const bool gumbel = config.loss.kind == LossKind::kGumbel;
    const BalanceGate::Turn turn = gate.turn();
    StepRecord r;
    Clock clock;
    const auto batches = next_batches();
    std::vector<Micro> micros = micros_of(batches);
    const int64_t answers_each = answers_an_input(turn.warmup);
    const bool train_d = turn.discriminator;
    bool train_g = turn.generator;
    const float alpha =
        static_cast<float>(scheduled(Schedule::kCosine, config.loss.alpha, config.loss.alpha_end,
                                     step - warmup_total, adversarial_total()));
    // Held back by the gate, the generator goes on with the references alone.
    const bool by_references = !train_g && !turn.warmup && config.train.gate_ce && alpha > 0.0f;
    int64_t reference_tokens = 0, inputs_total = 0;
    for (const auto& b : batches) {
      inputs_total += static_cast<int64_t>(b.size());
      for (const TokenizedExample* e : b) reference_tokens += static_cast<int64_t>(e->completion.size());
    }
    generator->parameters().zero_grad();
    discriminator->parameters().zero_grad();
    GeneratorSums sums;
    std::vector<std::pair<Reading<float>, double>> losses_d;  // and their shares in the micro-batch's loss
    double loss_d = 0, loss_adv = 0, reward = 0, length = 0, non_canonical = 0;
    double right = 0, right_heldout = 0, counted = 0, heldout_counted = 0;
    int64_t pairs_seen = 0, rollouts_seen = 0;

    for (size_t m = 0; m < batches.size(); ++m) {
      const uint64_t noise_key = key(kPurposeNoise, index(m));
      // Training inputs first, then held-out ones, then the inputs of replayed fakes (those need no prompt):
      // of all ranks, and `asked` of this one.
      Micro& micro = micros[m];
      std::vector<const TokenizedExample*> inputs = batches[m];
      const size_t fresh_inputs = inputs.size();
      if (m == 0)
        for (int64_t n : heldout.next())
          inputs.push_back(&(data.valid.empty() ? data.train : data.valid)[static_cast<size_t>(n)]);
      const Part held = mine(inputs.size() - fresh_inputs);
      std::vector<const TokenizedExample*> asked = micro.inputs;
      std::vector<int64_t> places = micro.places();
      for (size_t i = held.begin; i < held.end; ++i) {
        asked.push_back(inputs[fresh_inputs + i]);
        places.push_back(static_cast<int64_t>(fresh_inputs + i));
      }

      // Answers of the model under the present prompts, all decoded together: a step of decoding reads every
      // weight, however many answers it serves. Held-out inputs get one sample each.
      Prompts made;
      std::vector<Rollout> own;
      if (!asked.empty()) {
        region("prompts", tokens_of(asked), [&] {
          made = prompts->make(asked, noise_key, places);
          take_contexts(made, asked);
        });
        const RolloutGroup groups[] = {
            {0, micro.inputs.size(), answers_each, key(kPurposeRollout, index(m)), micro.first},
            {micro.inputs.size(), asked.size(), 1, key(kPurposeRollout, index(m) + 2048), held.begin}};
        own = roll_out(device, llama, tokenizer, made, asked, config.generator.placement, groups,
                       config.train.max_new_tokens, gumbel);
      }
      measure_prompts(micro, noise_key, &made);
      const size_t samples = static_cast<size_t>(answers_each), fresh = fresh_inputs * samples;
      // From here on rollouts and their inputs are numbered as in the whole micro-batch.
      const std::vector<Rollout> rollouts =
          share_rollouts(std::move(own), micro.inputs.size() * samples, places);
      const Part my_fresh{micro.first * samples, (micro.first + micro.inputs.size()) * samples},
          my_held{fresh + held.begin, fresh + held.end};
      for (const Rollout& o : rollouts) {
        totals.sampled_tokens += static_cast<int64_t>(o.tokens.size());
        length += static_cast<double>(o.tokens.size());
        non_canonical += o.canonical ? 0.0 : 1.0;
        if (rollouts_seen++ == 0) r.answers = 2166136261u;
        const auto take = [&](int64_t word) {
          r.answers = (r.answers ^ static_cast<uint32_t>(word)) * 16777619u;
        };
        take(std::ssize(o.tokens));
        for (const int32_t token : o.tokens) take(token);
      }
      for (size_t i = 0; i < fresh; ++i) {
        texts.push_back(tokenizer.decode_text(rollouts[i].text, true));
        if (static_cast<int64_t>(texts.size()) > kTextsKept) texts.pop_front();
      }
      r.rollout_s += clock.lap();

      // Pairs: fresh, then replayed, then held-out.
      std::vector<AnswerPair> pairs;
      auto pair_up = [&](size_t i) {
        const Rollout& o = rollouts[i];
        // Under Gumbel the gradient goes through the sampled tokens themselves.
        const std::vector<int32_t> own =
            o.ended ? std::vector<int32_t>(o.tokens.begin(), o.tokens.end() - 1) : o.tokens;
        if (gumbel && !o.canonical && i < fresh) return;
        if (auto p = make_pair(o.input, i, strip_end(inputs[o.input]->completion, tokenizer.end_ids()),
                               gumbel ? own : o.text))
          pairs.push_back(std::move(*p));
      };
      for (size_t i = 0; i < fresh; ++i) pair_up(i);
      const size_t n_fresh = pairs.size();
      if (config.discriminator.replay > 0 && n_fresh > 0) {
        for (const Fake& old :
             replay.draw(replay.old_of(static_cast<int64_t>(n_fresh), config.discriminator.replay))) {
          inputs.push_back(&data.train[static_cast<size_t>(old.input)]);
          if (auto p = make_pair(inputs.size() - 1, SIZE_MAX,
                                 strip_end(inputs.back()->completion, tokenizer.end_ids()), old.tokens))
            pairs.push_back(std::move(*p));
        }
      }
      const size_t n_train = pairs.size();
      for (size_t i = fresh; i < rollouts.size(); ++i) pair_up(i);
      for (size_t i = 0; i < fresh; ++i)
        if (!rollouts[i].text.empty())
          replay.add({inputs[rollouts[i].input] - data.train.data(), rollouts[i].text});
      // What the seeds of this step will lie on, in all ranks together.
      int64_t seeded = 0;
      for (size_t i = 0; i < n_fresh; ++i)
        seeded +=
            static_cast<int64_t>(std::min(pairs[i].fake.size(), rollouts[pairs[i].rollout].tokens.size()));
      const OwnPairs own_pairs = pairs_of_rank(pairs, n_fresh, n_train, my_fresh, my_held);
      const std::vector<AnswerPair>& my_pairs = own_pairs.pairs;
      const size_t my_n_fresh = own_pairs.fresh, my_n_train = own_pairs.train;
      const double share_fresh =
                       n_fresh > 0 ? static_cast<double>(my_n_fresh) / static_cast<double>(n_fresh) : 0.0,
                   share_train =
                       n_train > 0 ? static_cast<double>(my_n_train) / static_cast<double>(n_train) : 0.0;

      // Frozen features of all of them in one forward; backward to the embeddings only where the generator
      // needs it.
      SampledSeeds seeds;
      ContextCache::Front read_before;
      PairBatch packed;
      OwnedTensor f_train, f_fresh, raw_fresh, ddf;
      PairRows rows_train;
      const bool through = gumbel && train_g;
      pairs_seen += static_cast<int64_t>(n_fresh);
      if (n_fresh > 0 && !my_pairs.empty()) {
        if (contexts) {
          std::vector<const std::vector<int32_t>*> tokens(inputs.size(), nullptr);
          for (const AnswerPair& p : my_pairs) tokens[p.input] = &inputs[p.input]->prompt;
          region("contexts", 1, [&] { read_before = contexts->place(runner, tokens); });
        }
        packed = pack_pairs(inputs, my_pairs, !through, read_before);
        const int64_t n = static_cast<int64_t>(my_n_fresh);
        Reading<float> read_held, read_fresh, read_adv, read_logits;
        PairRows rows_fresh;
        region("features", packed.batch.rows(), [&] {
          runner.forward(packed.batch, {}, through ? Saving::kAll : Saving::kNothing, layers_d,
                         read_before.view,
                         {.read = rows_of_pairs(packed, 0, my_pairs.size()).rows,
                          .gradient = through ? fake_rows_of(packed, my_n_fresh) : std::vector<int32_t>()});
          auto features = [&](size_t begin, size_t end, OwnedTensor* raw) {
            const PairRows rows = rows_of_pairs(packed, begin, end);
            OwnedTensor h = runner.output_rows(rows.rows);
            OwnedTensor f = Discriminator::normalise(device, h);
            if (raw) *raw = std::move(h);
            return std::pair(std::move(f), rows);
          };
          if (my_n_train > 0) std::tie(f_train, rows_train) = features(0, my_n_train, nullptr);
          if (n > 0) std::tie(f_fresh, rows_fresh) = features(0, my_n_fresh, &raw_fresh);
          if (my_pairs.size() > my_n_train) {
            const auto [f_held, rows_held] = features(my_n_train, my_pairs.size(), nullptr);
            const OwnedTensor d = discriminator->forward(f_held, rows_held.offsets);
            read_held = Reading<float>(device, d.view());
          }
          if (n == 0) return;
          // The generator's reward or gradient, from the discriminator as it stands before its own update.
          const OwnedTensor d_fresh = discriminator->forward(f_fresh, rows_fresh.offsets);
          read_fresh = Reading<float>(device, d_fresh.view());
          if (credit_by_token()) read_logits = Reading<float>(device, discriminator->token_logits());
          ddf = OwnedTensor(device, DType::kF32, {n});
          OwnedTensor loss(device, DType::kF32, {1});
          const ConstTensor flat = d_fresh.view().view({2 * n});
          generator_pair_loss(device, {.dr = flat.rows(0, n),
                                       .df = flat.rows(n, n),
                                       .kind = config.discriminator.loss,
                                       .loss = loss,
                                       .ddf = ddf});
          read_adv = Reading<float>(device, loss);
        });
        // The scores are the rewards: what the generator is told next depends on them.
        const PairScores scores = split(read_fresh.get());
        const PairScores held_scores = split(read_held.get());
        right_heldout += held_scores.right();
        heldout_counted += held_scores.counted();
        r.features_s += clock.lap();
        if (n > 0) loss_adv += share_fresh * read_adv.get().front() / static_cast<double>(batches.size());
        for (float s : scores.fake) reward += s;
        right += scores.right();
        counted += scores.counted();
        if (train_g && !through)
          seeds.list = rloo_seeds(my_pairs, my_n_fresh, rollouts, scores.fake, read_logits.get(),
                                  rows_fresh.offsets, inputs_total);
      }
      region("players", std::max<int64_t>({1, tokens_of(micro.inputs), packed.batch.rows()}), [&] {
        if (n_fresh > 0) {
          if (through && my_n_fresh > 0)
            seeds = gumbel_seeds(packed, my_pairs, my_n_fresh, rollouts, f_fresh, raw_fresh, ddf,
                                 static_cast<float>(share_fresh / static_cast<double>(batches.size())));
          if (train_d && my_n_train > 0)
            losses_d.emplace_back(
                discriminator_pass(f_train.view(), rows_train.offsets, static_cast<int64_t>(my_n_train),
                                   own_pairs.rows,
                                   static_cast<float>(share_train / static_cast<double>(batches.size())), m),
                share_train);
          r.discriminator_s += clock.lap();
        }
        if (!train_g && !by_references) return;
        const float kl = train_g && seeded > 0
                             ? static_cast<float>(config.loss.beta / static_cast<double>(seeded) /
                                                  static_cast<double>(batches.size()))
                             : 0.0f;
        generator_pass(micro, noise_key, alpha / static_cast<float>(reference_tokens), seeds, kl, sums);
        r.forward_backward_s += clock.lap();
      });
    }

    // Every answer was empty: the discriminator, whose turn it was, has nothing to read and the gate nothing
    // to go by. The generator learns from the references alone, or neither player would ever move again.
    if (pairs_seen == 0 && !train_g && !turn.warmup) {
      if (!by_references)
        for (size_t m = 0; m < batches.size(); ++m)
          generator_pass(micros[m], key(kPurposeNoise, index(m)), 1.0f / static_cast<float>(reference_tokens),
                         {}, 0.0f, sums);
      train_g = true;
      r.forward_backward_s += clock.lap();
    }
    const bool step_d = train_d && pairs_seen > 0, step_g = train_g || by_references;
    const AdamSettings adam_of_d = adam_d(), adam_of_g = adam_g();
    if (step_d) sum_gradients(discriminator->parameters());
    if (step_g) sum_gradients(generator->parameters());
    region("optimizers", 1, [&] {
      if (step_d) discriminator->parameters().start_step(adam_of_d);
      if (!step_g) return;
      generator->parameters().start_step(adam_of_g);
      take_into_average(generator->parameters().steps());
    });
    finish(sums);
    for (const auto& [loss, share] : losses_d)
      loss_d += share * loss.get().front() / static_cast<double>(batches.size());
    if (several()) {
      const double of_rank[] = {loss_d, loss_adv, reward, right, counted, right_heldout, heldout_counted};
      const std::vector<double> sum = sum_values(group, of_rank);
      loss_d = sum[0], loss_adv = sum[1], reward = sum[2], right = sum[3], counted = sum[4];
      right_heldout = sum[5], heldout_counted = sum[6];
    }
    if (step_d) {
      r.grad_norm_d = discriminator->parameters().finish_step();
      if (config.discriminator.spectral_norm) discriminator->normalise_spectrum();
      r.lr_d = adam_of_d.lr;
      r.trained_d = true;
      ++totals.steps_d;
    }
    if (step_g) {
      r.grad_norm_g = generator->parameters().finish_step();
      r.lr_g = adam_of_g.lr;
    }
    if (train_g) {
      r.trained_g = true;
      ++totals.steps_g;
    }
    lap_of_wait(clock, r.forward_backward_s, r.optimizer_s);
    ++totals.steps_adversarial;

    r.ce = sums.ce_tokens > 0 ? sums.ce / static_cast<double>(sums.ce_tokens) : kNone;
    r.kl = sums.kl_tokens > 0 ? sums.kl / static_cast<double>(sums.kl_tokens) : kNone;
    r.rms_ratio = sums.ce_tokens > 0 && config.generator.prompt_length > 0 ? sums.rms : kNone;
    r.loss_d = r.trained_d ? loss_d : kNone;
    r.loss_adv = pairs_seen > 0 ? loss_adv : kNone;
    r.reward = pairs_seen > 0 ? reward / static_cast<double>(pairs_seen) : kNone;
    r.pair_accuracy = counted > 0 ? right / counted : kNone;
    r.heldout_accuracy = heldout_counted > 0 ? right_heldout / heldout_counted : kNone;
    r.identical = pairs_seen > 0 ? 1.0 - counted / static_cast<double>(pairs_seen) : kNone;
    r.mean_length = rollouts_seen > 0 ? length / static_cast<double>(rollouts_seen) : kNone;
    r.non_canonical = rollouts_seen > 0 ? non_canonical / static_cast<double>(rollouts_seen) : kNone;
    r.tokens = sums.rows;
    // The gate reads the held-out accuracy: a discriminator that remembers its references must not look
    // strong.
    if (heldout_counted > 0) gate.observe(r.heldout_accuracy, heldout_counted);
    for (double& n : seen) n *= kSeenFades;
    seen[0] += counted;
    seen[1] += right;
    seen[2] += heldout_counted;
    seen[3] += right_heldout;
    r.gate_accuracy = gate.accuracy();
    gate.took(turn);
    if (phase == Phase::kDiscriminator && gate.warmed_up()) {
      if (group.rank() == 0) measure_signal();
      r.features_s += clock.lap();
      phase = Phase::kAdversarial;
      phase_step = -1;
    }
    return r;
  }

  // All ranks' rollouts of a micro-batch, as one rank would have them: the answers to its inputs, then those
  // to the held-out ones. `fresh`: how many of `own` belong to the former; places: of this rank's inputs.
  std::vector<Rollout> share_rollouts(std::vector<Rollout> own, size_t fresh,
                                      const std::vector<int64_t>& places) {
    for (Rollout& o : own) o.input = static_cast<size_t>(places[o.input]);
    if (!several()) return own;
    // A rollout as numbers: input, key, ended, canonical, then tokens and text, each after its length.
    std::vector<int64_t> words{static_cast<int64_t>(own.size()), static_cast<int64_t>(fresh)};
    for (const Rollout& o : own) {
      words.insert(words.end(), {static_cast<int64_t>(o.input), std::bit_cast<int64_t>(o.key), o.ended,
                                 o.canonical, static_cast<int64_t>(o.tokens.size())});
      words.insert(words.end(), o.tokens.begin(), o.tokens.end());
      words.push_back(static_cast<int64_t>(o.text.size()));
      words.insert(words.end(), o.text.begin(), o.text.end());
    }
    std::vector<Rollout> all, held;
    for (const std::string& bytes :
         group.all_gather({reinterpret_cast<const char*>(words.data()), words.size() * sizeof(int64_t)})) {
      std::vector<int64_t> w(bytes.size() / sizeof(int64_t));
      if (!w.empty()) std::memcpy(w.data(), bytes.data(), w.size() * sizeof(int64_t));
      size_t at = 0;
      const auto next = [&] { return w.at(at++); };
      const auto list = [&] {
        std::vector<int32_t> tokens(static_cast<size_t>(next()));
        for (int32_t& t : tokens) t = static_cast<int32_t>(next());
        return tokens;
      };
      const int64_t count = next(), first = next();
      for (int64_t i = 0; i < count; ++i) {
        Rollout o;
        o.input = static_cast<size_t>(next());
        o.key = std::bit_cast<uint64_t>(next());
        o.ended = next() != 0;
        o.canonical = next() != 0;
        o.tokens = list();
        o.text = list();
        (i < first ? all : held).push_back(std::move(o));
      }
    }
    std::move(held.begin(), held.end(), std::back_inserter(all));
    return all;
  }

  // This rank's part of a micro-batch's pairs: fresh ones of its own rollouts, some of the replayed ones,
  // held-out ones of its own; and where the rows of the first two lie among the features of all ranks' pairs.
  struct OwnPairs {
    std::vector<AnswerPair> pairs;
    size_t fresh = 0, train = 0;  // of them: pairs [0, fresh) and [fresh, train)
    std::vector<RowRun> rows;
  };
  OwnPairs pairs_of_rank(const std::vector<AnswerPair>& all, size_t n_fresh, size_t n_train, Part my_fresh,
                         Part my_held) const {
    OwnPairs own;
    const auto inside = [](const Part& part, size_t i) { return i >= part.begin && i < part.end; };
    const Part old = mine(n_train - n_fresh);
    int64_t half = 0;  // rows of all references
    std::vector<RowRun> runs;
    for (size_t i = 0; i < n_train; ++i) {
      const auto rows = static_cast<int64_t>(all[i].real.size());
      if (i < n_fresh ? inside(my_fresh, all[i].rollout) : inside(old, i - n_fresh)) {
        own.pairs.push_back(all[i]);
        own.fresh += i < n_fresh;
        add_run(runs, rows, half);
      }
      half += rows;
    }
    own.train = own.pairs.size();
    for (const int64_t side : {int64_t{0}, half})
      for (const RowRun& run : runs) add_run(own.rows, run.rows, side + run.first);
    for (size_t i = n_train; i < all.size(); ++i)
      if (inside(my_held, all[i].rollout)) own.pairs.push_back(all[i]);
    return own;
  }

  // The present discriminator on one answer to each of some held-out inputs, spread over them all.
  void measure_signal() {
    const auto& items = data.valid.empty() ? data.train : data.valid;
    const size_t count = std::min(items.size(), kSignalInputs),
                 batch = static_cast<size_t>(config.train.batch);
    double right = 0, counted = 0;
    for (size_t begin = 0; begin < count; begin += batch) {
      std::vector<const TokenizedExample*> inputs;
      for (size_t i = begin; i < std::min(count, begin + batch); ++i)
        inputs.push_back(&items[i * items.size() / count]);
      const Prompts made = prompts->make(inputs, key(kPurposeSignal, 2 * begin));
      const RolloutGroup all{0, inputs.size(), 1, key(kPurposeSignal, 2 * begin + 1)};
      const std::vector<Rollout> rollouts =
          roll_out(device, llama, tokenizer, made, ExampleSpan(inputs.data(), inputs.size()),
                   config.generator.placement, {&all, 1}, config.train.max_new_tokens,
                   config.loss.kind == LossKind::kGumbel);
      std::vector<AnswerPair> pairs;
      for (size_t i = 0; i < rollouts.size(); ++i) {
        const Rollout& o = rollouts[i];
        totals.sampled_tokens += static_cast<int64_t>(o.tokens.size());
        if (auto p =
                make_pair(o.input, i, strip_end(inputs[o.input]->completion, tokenizer.end_ids()), o.text))
          pairs.push_back(std::move(*p));
      }
      if (pairs.empty()) continue;
      const PairBatch packed = pack_pairs(inputs, pairs, true);
      const PairRows rows = rows_of_pairs(packed, 0, pairs.size());
      runner.forward(packed.batch, {}, Saving::kNothing, layers_d, {}, {.read = rows.rows, .gradient = {}});
      const OwnedTensor f = Discriminator::normalise(device, runner.output_rows(rows.rows));
      const OwnedTensor d = discriminator->forward(f, rows.offsets);
      const PairScores scores = split(download(device, d.view()));
      right += scores.right();
      counted += scores.counted();
    }
    signal.pairs = static_cast<int64_t>(counted);
    signal.discriminator_steps = gate.warmup_steps();
    signal.accuracy = counted > 0 ? right / counted : 0.5;
    signal.standard_error = accuracy_error(signal.accuracy, counted);
  }

  // Holds what was measured against the alarms' limits.
  void watch(const StepRecord& r) {
    auto known = [](double v) { return std::isnan(v) ? std::optional<double>() : std::optional<double>(v); };
    AlarmInput in;
    if (r.phase != Phase::kWarmup) {
      in.accuracy_held_out = known(r.gate_accuracy);
      if (seen[0] > 0) in.accuracy_train = seen[1] / seen[0];
      in.pairs_train = seen[0];
      in.pairs_held_out = seen[2];
      length.add(r.mean_length);
      foreign.add(r.non_canonical);
      in.mean_length = length.value();
      in.non_canonical = foreign.value();
      if (validation_ce >= 0) in.cross_entropy = validation_ce;
      if (config.generator.kind != GeneratorKind::kStatic && config.generator.noise_dim > 0 &&
          r.step % kNoiseEvery == 0)
        in.noise_change = noise_change();
      // Answers of a word or two, such as labels, have no four words in a row that could repeat.
      if (static_cast<int64_t>(texts.size()) >= kTextsKept && r.step % 10 == 0 && length.mean >= 4)
        in.self_bleu = metrics::self_bleu(std::vector<std::string>(texts.begin(), texts.end()), 4) / 100.0;
    }
    in.rms_ratio = known(r.rms_ratio);
    for (const AlarmMonitor::Raised& a : alarms.observe(r.step, in)) raised.push_back(a.text);
  }

  // rms(P(z') - P(z)) / rms(P) for two draws of the noise in front of one input.
  double noise_change() {
    const std::vector<const TokenizedExample*> one{&data.train.front()};
    const auto prompt = [&](uint64_t draw) {
      const Prompts p = prompts->make(one, key(kPurposeSignal, (uint64_t{1} << 32) + draw));
      return download(device, p.view().view({p.view().count()}));
    };
    const std::vector<float> a = prompt(0), b = prompt(1);
    double change = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      change += std::pow(static_cast<double>(b[i]) - static_cast<double>(a[i]), 2);
      size += std::pow(static_cast<double>(a[i]), 2);
    }
    return std::sqrt(change / size);
  }

  // C1: advantages of each input's answers, as weights of the cross-entropy seed on the tokens the
  // discriminator read. `rewards`: of the first n_fresh pairs; `logits`, for credit by token: of their rows
  // in the discriminator's order, which begin at `offsets`.
  std::vector<SampledSeed> rloo_seeds(const std::vector<AnswerPair>& pairs, size_t n_fresh,
                                      const std::vector<Rollout>& rollouts, const std::vector<float>& rewards,
                                      const std::vector<float>& logits, const std::vector<int32_t>& offsets,
                                      int64_t inputs_total) {
    std::vector<SampledSeed> seeds;
    for (size_t begin = 0; begin < n_fresh;) {
      size_t end = begin;
      while (end < n_fresh && pairs[end].input == pairs[begin].input) ++end;
      const int64_t n = static_cast<int64_t>(end - begin), longest = config.train.max_new_tokens;
      std::vector<int32_t> lengths;
      for (size_t i = begin; i < end; ++i) {
        const Rollout& rollout = rollouts[pairs[i].rollout];
        const size_t sampled =
            rollout.tokens.size() - (rollout.ended ? 1 : 0);  // the end token carries nothing
        seeds.push_back(
            {.rollout = &rollout, .length = std::min(pairs[i].fake.size(), sampled), .weights = {}});
        lengths.push_back(static_cast<int32_t>(seeds.back().length));
      }
      std::vector<float> weights;
      if (n < 2) {  // an input with one usable answer has nothing to compare it with
        weights.assign(static_cast<size_t>(lengths.front()), 0.0f);
      } else if (credit_by_token()) {
        std::vector<float> values;
        for (size_t i = begin; i < end; ++i) {
          const Rollout& rollout = rollouts[pairs[i].rollout];
          // The discriminator's order: all references, then all answers.
          const auto first = static_cast<size_t>(offsets[n_fresh + i]),
                     last = static_cast<size_t>(offsets[n_fresh + i + 1]);
          const std::vector<float> own = logits_of_samples(
              std::span(logits).subspan(first, last - first), rollout.text,
              std::span(rollout.tokens).first(rollout.tokens.size() - (rollout.ended ? 1 : 0)),
              seeds[i].length);
          values.insert(values.end(), own.begin(), own.end());
        }
        weights = token_rloo_weights(values, lengths, n, longest);
      } else {
        const std::span<const float> r(rewards.data() + begin, end - begin);
        weights = rloo_weights(config.loss.weighting == Weighting::kSoftmax
                                   ? softmax_advantages(r, n, config.loss.reward_temperature)
                                   : leave_one_out_advantages(r, n),
                               lengths, n, longest);
      }
      size_t at = 0;
      for (size_t i = begin; i < end; ++i)
        for (size_t t = 0; t < seeds[i].length; ++t)
          seeds[i].weights.push_back(weights[at++] / static_cast<float>(inputs_total));
      begin = end;
    }
    return seeds;
  }

  // Rows of the first n pairs' fakes.
  static std::vector<int32_t> fake_rows_of(const PairBatch& packed, size_t n) {
    std::vector<int32_t> rows;
    for (size_t i = 0; i < n; ++i) rows.insert(rows.end(), packed.fake[i].begin(), packed.fake[i].end());
    return rows;
  }

  // C2: the discriminator's gradient at each sampled token's embedding, through the frozen layers it reads
  // with. `share` of the mean over the pairs counts.
  SampledSeeds gumbel_seeds(const PairBatch& packed, const std::vector<AnswerPair>& pairs, size_t n_fresh,
                            const std::vector<Rollout>& rollouts, ConstTensor f, ConstTensor h,
                            ConstTensor ddf, float share) {
    const int64_t n = static_cast<int64_t>(n_fresh);
    const OwnedTensor d_scores = zeros(device, {2 * n});
    OwnedTensor scaled = zeros(device, {n});
    axpy(device, {.x = ddf, .a = share, .y = scaled});
    OwnedTensor d = copy_of(device, d_scores.view());
    device.copy(d.view().rows(n, n), scaled);
    OwnedTensor df = zeros(device, f.shape());
    discriminator->parameters().set_gradients(false);
    discriminator->backward(f, d, df);
    discriminator->parameters().set_gradients(true);
    // f = RMSNorm(h): the statistic is cheap to take again.
    OwnedTensor rstd(device, DType::kF32, {h.dim(0)}), y(device, DType::kF32, h.shape()),
        dh = zeros(device, h.shape());
    rmsnorm_forward(device, {.x = h, .w = {}, .y = y, .rstd = rstd});
    rmsnorm_backward(device, {.x = h, .w = {}, .rstd = rstd, .dy = df, .dx = dh, .dw = {}});
    // References are constants: only the fakes' rows carry a gradient back.
    const std::vector<int32_t> fake_rows = fake_rows_of(packed, n_fresh);
    int64_t first = 0;
    for (size_t i = 0; i < n_fresh; ++i) first += static_cast<int64_t>(packed.real[i].size());
    runner.begin_backward();
    runner.add_output_gradient(dh.view().rows(first, static_cast<int64_t>(fake_rows.size())), fake_rows);
    runner.backward();
    SampledSeeds seeds;
    seeds.embedding = runner.input_gradient_rows(fake_rows);
    for (size_t i = 0; i < n_fresh; ++i)
      seeds.list.push_back(
          {.rollout = &rollouts[pairs[i].rollout], .length = pairs[i].fake.size(), .weights = {}});
    return seeds;
  }
};

Trainer::Trainer(Device& device, const Llama& llama, const Tokenizer& tokenizer, const TrainConfig& config,
                 Data data, Communicator* ranks)
    : s_(std::make_unique<State>(device, llama, tokenizer, config, std::move(data), ranks)) {}
Trainer::~Trainer() = default;

int64_t Trainer::context_rows(const std::vector<TokenizedExample>& train,
                              const std::vector<TokenizedExample>& valid) {
  std::set<std::vector<int32_t>> seen;
  int64_t rows = 0;
  for (const auto* items : {&train, &valid})
    for (const TokenizedExample& e : *items)
      if (seen.insert(e.prompt).second) rows += static_cast<int64_t>(e.prompt.size());
  return rows;
}

int64_t Trainer::steps_of(const TrainConfig& c, int64_t train_items) {
  if (c.train.steps > 0) return c.train.steps;
  const int64_t batches = (train_items + c.train.batch - 1) / c.train.batch;
  const int64_t per_epoch = (batches + c.train.accumulate - 1) / c.train.accumulate;
  return std::max<int64_t>(
      1, static_cast<int64_t>(std::llround(c.train.epochs * static_cast<double>(per_epoch))));
}

void Trainer::visit_batches(
    const TrainConfig& c, const std::vector<TokenizedExample>& train,
    const std::vector<TokenizedExample>& valid,
    const std::function<void(bool heldout, const std::vector<int64_t>& items)>& visit) {
  Loader loader = training_loader(c, train), heldout = heldout_loader(c, train, valid);
  const int64_t steps = steps_of(c, loader.items()), warmup = warmup_steps(c, steps);
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t i = 0; i < c.train.accumulate; ++i) visit(false, loader.next());
    if (step >= warmup) visit(true, heldout.next());
  }
}

bool Trainer::done() const { return s_->step >= s_->total; }
int64_t Trainer::step_number() const { return s_->step; }
int64_t Trainer::total_steps() const { return s_->total; }
Phase Trainer::phase() const { return done() ? Phase::kDone : s_->phase; }
const std::vector<std::string>& Trainer::new_alarms() const { return s_->raised; }
std::map<std::string, int64_t> Trainer::alarms_raised() const {
  std::map<std::string, int64_t> out;
  for (size_t k = 0; k < kAlarmKinds; ++k)
    if (const auto kind = static_cast<AlarmKind>(k); s_->alarms.times_raised(kind) > 0)
      out[alarm_name(kind)] = s_->alarms.times_raised(kind);
  return out;
}
const Totals& Trainer::totals() const { return s_->totals; }
const SignalCheck& Trainer::signal() const { return s_->signal; }
int64_t Trainer::generator_parameters() const { return s_->generator->parameters().count(); }
int64_t Trainer::deployed_parameters() const { return s_->generator->deployed_parameters(); }
int64_t Trainer::discriminator_parameters() const {
  return s_->discriminator ? s_->discriminator->parameters().count() : 0;
}
int64_t Trainer::optimizer_bytes() const {
  return s_->generator->parameters().optimizer_bytes() +
         (s_->discriminator ? s_->discriminator->parameters().optimizer_bytes() : 0);
}

StepRecord Trainer::step() {
  State& s = *s_;
  GT_CHECK(!done(), "the run is over after {} steps", s.total);
  const auto start = std::chrono::steady_clock::now();
  const Phase phase = s.phase;
  const Range range(s.device, "step");
  const int64_t waits = s.device.counters().synchronisations;
  s.raised.clear();
  s.share();
  StepRecord r = phase == Phase::kWarmup ? s.warmup_step() : s.adversarial_step();
  r.phase = phase;
  ++s.step;
  ++s.phase_step;
  r.step = s.step;
  r.synchronisations = s.device.counters().synchronisations - waits;
  if (s.group.rank() == 0) s.watch(r);  // who writes the log
  if (s.phase == Phase::kWarmup && s.adversarial() && s.step >= s.warmup_total) s.begin_adversarial();
  r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  s.totals.rollout += r.rollout_s;
  s.totals.features += r.features_s;
  s.totals.discriminator += r.discriminator_s;
  s.totals.forward_backward += r.forward_backward_s;
  s.totals.optimizer += r.optimizer_s;
  s.totals.all += r.seconds;
  s.totals.tokens += r.tokens;
  return r;
}

void Trainer::compare_ranks() const {
  const State& s = *s_;
  if (!s.several()) return;
  Digest digest;  // of both players
  const auto mix = [&](const ParameterSet& set) {
    set.save("", true, [&](const std::string&, ConstTensor t) {
      for (const float v : download(s.device, t)) digest.add(std::bit_cast<uint32_t>(v));
    });
  };
  mix(s.generator->parameters());
  if (s.discriminator) mix(s.discriminator->parameters());
  const std::vector<std::string> all = s.group.all_gather(fmt::format("{:016x}", digest.value));
  for (size_t r = 1; r < all.size(); ++r)
    if (all[r] != all[0])
      fail(
          "after step {} rank {} has other parameters than rank 0: sums over ranks do not arrive the same "
          "everywhere; nothing was saved",
          s.step, r);
}

PromptMaker& Trainer::deployed() {
  State& s = *s_;
  if (s.phase == Phase::kWarmup && s.averaged == 0) return *s.prompts;
  return *s.average_prompts;
}
PromptMaker* Trainer::warm() { return s_->warm_prompts.get(); }

void Trainer::start_from(const PeftAdapter& adapter, const std::string& folder) {
  State& s = *s_;
  GT_CHECK(s.step == 0, "an adapter to start from after {} steps", s.step);
  ParameterSet& own = s.generator->parameters();
  const bool fits = adapter.is_lora()         ? trains_lora(s.config.method)
                    : adapter.is_prefix()     ? s.config.method == Method::kPrefix
                    : adapter.is_bottleneck() ? s.config.method == Method::kAdapter
                                              : has_prompt(s.config.method);
  if (!fits)
    fail_usage("{}: an adapter of type {}; the run has method {}", folder, adapter.type,
               kMethodNames[static_cast<size_t>(s.config.method)]);
  if (adapter.is_lora()) {
    const LoraShape &theirs = adapter.shape, &ours = s.generator->adapter().lora->shape;
    const auto describe = [](const LoraShape& shape) {
      std::string targets;
      for (size_t t = 0; t < kLoraTargets; ++t) {
        if (!shape.targets[t]) continue;
        if (!targets.empty()) targets += ',';
        targets += kLoraTargetNames[t];
      }
      return fmt::format("lora.rank={} lora.alpha={} lora.rslora={} lora.targets={}", shape.rank, shape.alpha,
                         shape.rslora, targets);
    };
    if (!(theirs == ours))
      fail_usage("{}: has {}, the run {}; set the adapter's", folder, describe(theirs), describe(ours));
    size_t i = 0;
    for (const auto& layer : adapter.layers)
      for (size_t t = 0; t < kLoraTargets; ++t) {
        if (!theirs.targets[t]) continue;
        s.device.copy_in(own.value(i++), layer[t].a.data());
        s.device.copy_in(own.value(i++), layer[t].b.data());
      }
  } else if (adapter.is_prefix()) {
    const int64_t rows = own.value(0).dim(0), given = static_cast<int64_t>(adapter.prefix.size());
    if (given != own.value(0).count())
      fail_usage("{}: has {} positions, prefix.length is {}", folder, given * rows / own.value(0).count(),
                 rows);
    s.device.copy_in(own.value(0), adapter.prefix.data());
  } else if (adapter.is_bottleneck()) {
    const BottleneckShape &theirs = adapter.bottleneck, &ours = s.generator->adapter().bottleneck->shape;
    if (!(theirs == ours))
      fail_usage(
          "{}: is of width {} {}{}; bottleneck.width, bottleneck.places or bottleneck.activation say "
          "otherwise",
          folder, theirs.width, theirs.attention ? "behind attention " : "",
          theirs.mlp ? "behind the MLP" : "");
    size_t i = 0;
    for (const auto& layer : adapter.bottlenecks)
      for (size_t place = 0; place < 2; ++place) {
        if (!theirs.has(place)) continue;
        const BottleneckValues& v = layer[place];
        for (const std::vector<float>* values : {&v.down, &v.down_bias, &v.up, &v.up_bias})
          s.device.copy_in(own.value(i++), values->data());
      }
  } else {
    // Every kind of generator has its hard prompt in front.
    const int64_t rows = static_cast<int64_t>(adapter.prompt.size()) / s.llama.config().hidden_size;
    if (rows != s.config.generator.prompt_length)
      fail_usage("{}: has {} vectors, generator.prompt_length is {}", folder, rows,
                 s.config.generator.prompt_length);
    s.device.copy_in(own.value(0), adapter.prompt.data());
  }
  if (s.phase == Phase::kWarmup) return;
  s.frozen_warm->parameters().copy_values_from(own);
  s.average->parameters().copy_values_from(own);
}

LossResult Trainer::validate() {
  State& s = *s_;
  const Range range(s.device, "validation");
  s.share();
  std::vector<const TokenizedExample*> items;
  const int64_t most =
      s.config.eval.max_items > 0 ? s.config.eval.max_items : std::numeric_limits<int64_t>::max();
  for (const TokenizedExample& e : s.data.valid) {
    if (static_cast<int64_t>(items.size()) >= most) break;
    items.push_back(&e);
  }
  Clock clock;
  const LossResult r = evaluate_loss(s.runner, deployed(), items, s.config.generator.placement,
                                     s.config.train.batch, &s.group);
  s.totals.evaluation += clock.lap();
  if (r.tokens > 0) s.validation_ce = r.ce;
  return r;
}

std::vector<float> Trainer::prompt_table() {
  State& s = *s_;
  const std::vector<const TokenizedExample*> one{&s.data.train.front()};
  const Prompts p = deployed().make(one, 0);
  if (p.count == 0) return {};
  return download(s.device, p.view().rows(0, p.count));
}

void Trainer::save(CheckpointWriter& writer) const {
  const State& s = *s_;
  auto add = [&](const ParameterSet& set, const std::string& prefix, bool moments) {
    set.save(prefix, moments, [&](const std::string& name, ConstTensor t) {
      if (t.device() == DeviceKind::kCpu) return writer.add(name, t);  // where it lies: no second copy
      std::vector<float> values(static_cast<size_t>(t.count()));
      s.device.copy_out(values.data(), t);
      writer.add_copy(name, t.shape(), values);
    });
  };
  add(s.generator->parameters(), "generator.", true);
  if (s.phase != Phase::kWarmup || s.averaged > 0) add(s.average->parameters(), "average.", false);
  if (s.phase != Phase::kWarmup) add(s.frozen_warm->parameters(), "warm.", false);
  if (s.discriminator) add(s.discriminator->parameters(), "discriminator.", true);
  const LoaderPosition a = s.loader.position(), b = s.heldout.position();
  const Totals& t = s.totals;
  nlohmann::json j{
      {"version", 1},
      {"config", to_toml(s.config)},
      {"base", fmt::format("{:016x}", s.llama.content_hash())},
      {"phase", phase_name(s.phase)},
      {"step", s.step},
      {"phase_step", s.phase_step},
      {"averaged", s.averaged},
      {"generator_steps", s.generator->parameters().steps()},
      {"discriminator_steps", s.discriminator ? s.discriminator->parameters().steps() : 0},
      {"loader", {a.epoch, a.batch}},
      {"heldout", {b.epoch, b.batch}},
      {"totals",
       {t.rollout, t.features, t.discriminator, t.forward_backward, t.optimizer, t.evaluation, t.all}},
      {"counts", {t.tokens, t.sampled_tokens, t.steps_g, t.steps_d, t.steps_adversarial}},
      {"running", {s.length.mean, s.length.steps, s.foreign.mean, s.foreign.steps, s.validation_ce}},
      {"seen", s.seen},
      {"signal", {s.signal.pairs, s.signal.discriminator_steps, s.signal.accuracy, s.signal.standard_error}},
      {"data", s.data_hash()}};
  writer.add_json("state", j.dump());
  writer.add_json("texts", nlohmann::json(std::vector<std::string>(s.texts.begin(), s.texts.end())).dump());
  for (const auto& [name, values] :
       {std::pair("gate", s.gate.save()), {"replay", s.replay.save()}, {"alarms", s.alarms.save()}})
    writer.add_values(name, std::span<const int64_t>(values));
}

void Trainer::load(const CheckpointReader& reader) {
  // What stands under the checksums is what this program wrote, or it came from elsewhere.
  try {
    load_state(reader);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: its state is not what this program writes ({}); use another checkpoint of the run",
         reader.path(), error.what());
  }
}

void Trainer::load_state(const CheckpointReader& reader) {
  State& s = *s_;
  const nlohmann::json j = nlohmann::json::parse(reader.json("state"));
  if (j.at("base") != fmt::format("{:016x}", s.llama.content_hash()))
    fail("{}: was written on another base model (content hash {})", reader.path(), j.at("base").dump());
  if (j.at("data") != s.data_hash())
    fail("{}: was written on other data: the training items differ; a continued run needs the same files",
         reader.path());
  auto read = [&](const std::string& name, Shape shape) {
    std::vector<float> v(static_cast<size_t>(shape.count()));
    reader.read_into(name, Tensor(v.data(), DType::kF32, shape));
    return v;
  };
  const std::string phase = j.at("phase");
  for (const Phase p : {Phase::kWarmup, Phase::kDiscriminator, Phase::kAdversarial})
    if (phase == phase_name(p)) s.phase = p;
  if (s.phase != Phase::kWarmup && !s.adversarial())
    fail_usage("{}: its discriminator is trained already; loss.kind = \"ce\" cannot go on from there",
               reader.path());
  s.generator->parameters().load("generator.", true, read);
  s.generator->parameters().set_steps(j.at("generator_steps"));
  // Under another configuration than the checkpoint's the average may be one that is not kept, or not yet.
  if (!s.adversarial() && s.average && j.at("step") >= s.config.train.average_from)
    s.averaged = j.value("averaged", int64_t{0});
  if (s.phase != Phase::kWarmup || s.averaged > 0) s.average->parameters().load("average.", false, read);
  if (s.phase != Phase::kWarmup) {
    if (!s.frozen_warm) s.keep_warm();
    s.frozen_warm->parameters().load("warm.", false, read);
  }
  if (s.discriminator) {
    s.discriminator->parameters().load("discriminator.", true, read);
    s.discriminator->parameters().set_steps(j.at("discriminator_steps"));
  }
  s.step = j.at("step");
  s.phase_step = j.at("phase_step");
  s.loader.restore({j.at("loader").at(0), j.at("loader").at(1)});
  s.heldout.restore({j.at("heldout").at(0), j.at("heldout").at(1)});
  const auto& seconds = j.at("totals");
  const auto& counts = j.at("counts");
  s.totals = {seconds.at(0), seconds.at(1), seconds.at(2), seconds.at(3), seconds.at(4), seconds.at(5),
              seconds.at(6), counts.at(0),  counts.at(1),  counts.at(2),  counts.at(3),  counts.at(4)};
  const auto& running = j.at("running");
  if (running.size() != 5)
    fail("{}: has {} running values, expected 5: another version wrote it, which can go on with it",
         reader.path(), running.size());
  s.length = {running.at(0), running.at(1)};
  s.foreign = {running.at(2), running.at(3)};
  s.validation_ce = running.at(4);
  s.seen = j.at("seen");
  const auto& signal = j.at("signal");
  s.signal = {signal.at(0), signal.at(1), signal.at(2), signal.at(3)};
  s.gate.load(reader.longs("gate"));
  s.replay.load(reader.longs("replay"));
  s.alarms.load(reader.longs("alarms"));
  const nlohmann::json texts = nlohmann::json::parse(reader.json("texts"));
  s.texts.assign(texts.begin(), texts.end());
}

}  // namespace gantrain
