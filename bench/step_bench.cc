// Whole training steps, a method a case: what one costs in time and memory, and where the time goes.
#include <chrono>
#include <cmath>
#include <fstream>

#include "bench/exact_step.h"
#include "bench/support/random_llama.h"
#include "train/trainer.h"

namespace gantrain::bench {
namespace {

// A method is a row: what it sets in the configuration of a run (docs/configuration.md).
struct MethodRow {
  const char* name;
  bool adversarial;
  std::vector<std::string> overrides;
  bool is(const char* m) const { return overrides.front() == std::string("method=") + m; }
  // Has virtual positions before the text: rows of its own, or keys and values.
  bool has_positions() const { return !is("lora") && !is("qlora") && !is("adapter") && !is("full"); }
};
const std::vector<MethodRow>& methods() {
  static const std::vector<MethodRow> table{
      // Cross-entropy: prompt tuning, P-tuning, LoRA on two targets and on all.
      {"prompt", false, {"method=prompt", "loss.kind=ce"}},
      {"prompt_gate_up", false, {"method=prompt", "loss.kind=ce", "train.recompute=gate_up"}},
      {"prompt_mlp", false, {"method=prompt", "loss.kind=ce", "train.recompute=mlp"}},
      {"prompt_layer", false, {"method=prompt", "loss.kind=ce", "train.recompute=layer"}},
      {"ptuning", false, {"method=ptuning", "loss.kind=ce"}},
      // The prompt behind the input, whose keys and values are kept, or run anew.
      {"prompt_suffix", false, {"method=prompt", "loss.kind=ce", "generator.placement=suffix"}},
      {"prompt_suffix_anew",
       false,
       {"method=prompt", "loss.kind=ce", "generator.placement=suffix", "train.context_cache=0"}},
      {"lora_qv", false, {"method=lora", "lora.rank=8", "lora.alpha=16", "lora.targets=q,v", "loss.kind=ce"}},
      {"lora_all",
       false,
       {"method=lora", "lora.rank=8", "lora.alpha=16", "lora.targets=all", "loss.kind=ce"}},
      // LoRA on two targets over a base that stays packed.
      {"qlora_nf4",
       false,
       {"method=qlora", "model_quantize=nf4", "lora.rank=8", "lora.alpha=16", "lora.targets=q,v",
        "loss.kind=ce"}},
      {"qlora_q8_0",
       false,
       {"method=qlora", "model_quantize=q8_0", "lora.rank=8", "lora.alpha=16", "lora.targets=q,v",
        "loss.kind=ce"}},
      // Keys and values before every layer's, bottlenecks behind every MLP, all weights (in f32).
      {"prefix", false, {"method=prefix", "loss.kind=ce"}},
      {"adapter", false, {"method=adapter", "loss.kind=ce"}},
      {"full", false, {"method=full", "loss.kind=ce"}},
      // The conditional generator: C0 cross-entropy alone, C1 rewards, C2 straight-through Gumbel.
      {"gan_c0", false, {"method=gan", "loss.kind=ce"}},
      {"gan_c1", true, {"method=gan", "loss.kind=rloo"}},
      {"gan_c2", true, {"method=gan", "loss.kind=gumbel"}},
      // The same two losses on a learned table and on adapters.
      {"prompt_c1", true, {"method=prompt", "loss.kind=rloo"}},
      {"prompt_c1_anew", true, {"method=prompt", "loss.kind=rloo", "train.context_cache=0"}},
      {"prompt_suffix_c1", true, {"method=prompt", "loss.kind=rloo", "generator.placement=suffix"}},
      {"prompt_c2", true, {"method=prompt", "loss.kind=gumbel"}},
      {"lora_qv_c1",
       true,
       {"method=lora", "lora.rank=8", "lora.alpha=16", "lora.targets=q,v", "loss.kind=rloo"}},
      {"lora_qv_c2",
       true,
       {"method=lora", "lora.rank=8", "lora.alpha=16", "lora.targets=q,v", "loss.kind=gumbel"}},
  };
  return table;
}

// Texts of `length` random tokens, the second half scored.
std::vector<TokenizedExample> random_items(int64_t count, int64_t length, int64_t vocab, uint64_t first) {
  std::vector<TokenizedExample> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) {
    const std::vector<int32_t> text = random_tokens(length, vocab, first + i);
    out[i].prompt.assign(text.begin(), text.begin() + length / 2);
    out[i].completion.assign(text.begin() + length / 2, text.end());
  }
  return out;
}

std::string first_step_file;
void note_first_step() {
  if (first_step_file.empty()) return;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::ofstream(first_step_file) << fmt::format("{:.6f}\n", std::chrono::duration<double>(now).count());
}

constexpr int64_t kBatches = 4;     // of the data
constexpr int64_t kMostTries = 12;  // steps until one trains both players

Timed prepare(const MethodRow& method, const Point& p, Device& device) {
  const int64_t batch = p.at("batch"), length = p.at("length");
  if (length < 2) fail_usage("--axis length={}: expected 2 or more, one to read and one to score", length);
  std::vector<std::string> settings{"model=memory",
                                    "data.train=memory",
                                    "data.bucket=false",
                                    "train.steps=1000000",
                                    "train.warmup_ce_steps=0",
                                    "train.discriminator_steps=0",
                                    fmt::format("train.batch={}", batch)};
  if (method.has_positions())
    settings.push_back(fmt::format("{}={}", method.is("prefix") ? "prefix.length" : "generator.prompt_length",
                                   p.at("prompt")));
  if (method.adversarial)
    settings.insert(settings.end(), {fmt::format("loss.samples={}", p.at("samples")),
                                     fmt::format("train.max_new_tokens={}", length - length / 2),
                                     // Both players train in every step, whatever the accuracy.
                                     "train.gate_d=1", "train.gate_g=0"});
  settings.insert(settings.end(), method.overrides.begin(), method.overrides.end());
  const TrainConfig config = parse_train_config("", "step_bench", settings);

  const bool on_model = !has_prompt(config.method);  // what is trained; needs no input
  struct Run {
    BenchModel model;  // outlives the trainer
    std::unique_ptr<Trainer> trainer;
  };
  const auto run = std::make_shared<Run>();
  run->model = open_bench_model(device, p.model, p.config, p.dtype, config.model_quantize);
  const int64_t vocab = run->model.llama->config().vocab_size;
  run->trainer = std::make_unique<Trainer>(device, *run->model.llama, *run->model.tokenizer, config,
                                           Trainer::Data{random_items(kBatches * batch, length, vocab, 0),
                                                         random_items(batch, length, vocab, 1u << 20)});
  // The gate leaves a player out while every held-out pair so far came out alike: that is no whole step.
  const auto whole_step = [run, adversarial = method.adversarial] {
    for (int64_t i = 0; i < kMostTries; ++i) {
      const StepRecord r = run->trainer->step();
      if (!adversarial || (r.trained_g && r.trained_d)) return r;
    }
    fail("in {} steps there was none that trains both players", kMostTries);
  };
  whole_step();  // not timed: memory is taken, kernels are written
  note_first_step();
  if (method.adversarial || config.generator.placement == Placement::kSuffix)
    for (int i = 1; i < kBatches; ++i) whole_step();  // until all inputs that are kept have been run
  return [run, whole_step, on_model, batch, length, saving = saving_of(config.train.recompute), &device] {
    const StepRecord r = whole_step();
    Measured m;
    m.seconds = r.seconds;
    m.counters = {{"tokens/s", static_cast<double>(batch * length) / r.seconds},
                  {"forward_backward_seconds", r.forward_backward_s},
                  {"optimizer_seconds", r.optimizer_s},
                  {"rows", static_cast<double>(r.tokens)},
                  {"weight_bytes", static_cast<double>(run->model.llama->weight_bytes())},
                  {"parameters", static_cast<double>(run->trainer->generator_parameters())},
                  {"saved_activation_bytes",
                   static_cast<double>(
                       saved_bytes(device, *run->model.llama, r.tokens, saving,
                                   on_model ? run->trainer->deployed().make({}, 0).adapter : Adapters()))},
                  {"peak_memory_bytes", static_cast<double>(peak_resident_bytes())}};
    if (r.phase != Phase::kWarmup) {
      m.counters["rollout_seconds"] = r.rollout_s;
      m.counters["features_seconds"] = r.features_s;
      m.counters["discriminator_seconds"] = r.discriminator_s;
    }
    return m;
  };
}

void define(Suite& suite) {
  for (const MethodRow& method : methods()) {
    Suite::Axes axes{{"batch", {8}}, {"length", {128}}};
    if (method.has_positions()) axes["prompt"] = {20};
    if (method.adversarial) axes["samples"] = {2};
    suite.timed(method.name, axes,
                [&method](const Point& p, Device& device) { return prepare(method, p, device); });
  }
  for (const ExactMethod& method : exact_methods()) {
    Suite::Axes axes{{"batch", {8}}, {"length", {128}}, {"prompt", {20}}};
    if (method.answers) axes["samples"] = {2};
    suite.timed(method.name, axes, [&method](const Point& p, Device& device) {
      return prepare_exact(method, p, device, note_first_step);
    });
  }
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  using namespace gantrain::bench;
  const ExtraOptions extra{
      {{"--first-step",
        {"a file for the time (Unix, seconds) at which the first step ended, untimed as it is",
         &first_step_file}}}};
  return run_suite(argc, argv, "Training steps by method", define, extra);
}
