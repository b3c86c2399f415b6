#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "model/runner.h"
#include "train/checkpoint/run_folder.h"
#include "train/communicator/launch.h"
#include "train/communicator/tcp.h"
#include "train/log/events.h"
#include "train/log/progress.h"
#include "train/log/tensorboard.h"
#include "train/plan/memory_plan.h"
#include "train/trainer.h"
#include "train/verbs/arms.h"
#include "train/verbs/dataset.h"
#include "train/verbs/session.h"

namespace gantrain {
namespace {

using nlohmann::json;

volatile std::sig_atomic_t g_stop = 0;   // the signal that asked for an end, or 0
volatile std::sig_atomic_t g_quiet = 0;  // whether that is said

// The first SIGINT or SIGTERM asks for an end after this step, the second one of either kind stops at once.
class StopSignals {
 public:
  explicit StopSignals(bool quiet) {
    g_stop = 0;
    g_quiet = quiet;
    for (int i = 0; i < 2; ++i) {
      struct sigaction action {};
      action.sa_handler = handle;
      action.sa_flags = SA_RESTART;
      ::sigaction(kSignals[i], &action, &before_[i]);
    }
  }
  ~StopSignals() {
    for (int i = 0; i < 2; ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  // Only calls that a signal handler may make.
  static void handle(int signal) {
    if (g_stop != 0) {
      ::signal(signal, SIG_DFL);
      ::raise(signal);  // takes effect when this returns
      return;
    }
    g_stop = signal;
    if (g_quiet) return;
    constexpr char kText[] = "\nstopping after this step; once more to stop at once\n";
    if (::write(STDERR_FILENO, kText, sizeof kText - 1) < 0) g_stop = signal;  // nobody to tell
  }
  static constexpr int kSignals[2] = {SIGINT, SIGTERM};
  struct sigaction before_[2];
};

json finite(double v) { return std::isfinite(v) ? json(v) : json(nullptr); }

json device_counters(const Device& device) {
  const DeviceCounters c = device.counters();
  return {{"synchronisations", c.synchronisations},
          {"reserved_bytes", c.reserved_bytes},
          {"reservations", c.reservations},
          {"peak_bytes", c.peak_bytes},
          {"graphs_instantiated", c.graphs_instantiated},
          {"graphs_updated", c.graphs_updated},
          {"graphs_replayed", c.graphs_replayed},
          {"graphs_kept", c.graphs_kept}};
}

std::vector<std::string> nearest_tokens(const Llama& llama, const Tokenizer& tokenizer,
                                        const std::vector<float>& table) {
  // By cosine, over the whole vocabulary: a look at what the prompt resembles, nothing more.
  const int64_t width = llama.config().hidden_size,
                vocab = std::min(llama.config().vocab_size, tokenizer.vocab_size());
  const int64_t count = static_cast<int64_t>(table.size()) / width;
  std::vector<double> best(static_cast<size_t>(count), -2.0);
  std::vector<int32_t> id(static_cast<size_t>(count), 0);
  constexpr int64_t kChunk = 4096;
  for (int64_t at = 0; at < vocab; at += kChunk) {
    std::vector<int32_t> ids;
    for (int64_t i = at; i < std::min(vocab, at + kChunk); ++i) ids.push_back(static_cast<int32_t>(i));
    const std::vector<float> rows = llama.embedding_rows(ids);
    for (size_t r = 0; r < ids.size(); ++r) {
      const float* e = rows.data() + r * static_cast<size_t>(width);
      float norm = 0;
      for (int64_t c = 0; c < width; ++c) norm += e[c] * e[c];
      if (norm == 0) continue;
      for (int64_t p = 0; p < count; ++p) {
        const float* q = table.data() + p * width;
        float dot = 0, own = 0;
        for (int64_t c = 0; c < width; ++c) {
          dot += e[c] * q[c];
          own += q[c] * q[c];
        }
        const double cosine = own > 0 ? dot / std::sqrt(static_cast<double>(norm) * own) : -1.0;
        if (cosine > best[static_cast<size_t>(p)]) {
          best[static_cast<size_t>(p)] = cosine;
          id[static_cast<size_t>(p)] = ids[r];
        }
      }
    }
  }
  std::vector<std::string> out;
  for (int64_t p = 0; p < count; ++p)
    out.push_back(fmt::format("{} ({:.2f})", tokenizer.token_text(id[static_cast<size_t>(p)]),
                              best[static_cast<size_t>(p)]));
  return out;
}

// The signal that any rank has been sent, or 0: all of them stop after the same step.
int agreed_stop(Communicator& group) {
  if (group.size() == 1) return g_stop;
  const double own[] = {static_cast<double>(g_stop)};
  double most = 0;
  for (const std::vector<double>& of_rank : gather_values(group, own)) most = std::max(most, of_rank[0]);
  return static_cast<int>(most);
}

// Every rank trains under the configuration that rank 0 has.
void compare_configurations(Communicator& group, TrainConfig config, bool resume) {
  if (group.size() == 1) return;
  config.output.clear();
  config.threads = 0;
  const std::vector<std::string> all =
      group.all_gather(fmt::format("{}{}", resume ? 'R' : 'N', to_toml(config)));
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r] == all[0]) continue;
    if (all[r][0] != all[0][0]) fail_usage("--resume is given to some ranks and not to others");
    std::string listed;
    for (const std::string& change : config_changes(parse_train_config(all[0].substr(1), "rank 0"),
                                                    parse_train_config(all[r].substr(1), "a rank")))
      listed.append("\n  ").append(change);
    fail_usage("rank {} has another configuration than rank 0:{}", r, listed);
  }
}

// What all ranks do together after a step, by the configuration that they share.
bool evaluates_at(const TrainConfig& c, const Trainer& trainer) {
  return trainer.done() || (c.train.eval_every > 0 && trainer.step_number() % c.train.eval_every == 0);
}
bool saves_at(const TrainConfig& c, const Trainer& trainer) {
  return trainer.done() || (c.train.save_every > 0 && trainer.step_number() % c.train.save_every == 0);
}

// The training of a rank that is not 0: it works and writes nothing.
int follow(Trainer& trainer, Communicator& group, const TrainConfig& config, bool resume, bool validates) {
  const StopSignals signals(true);
  if (validates && !resume && trainer.step_number() == 0) trainer.validate();
  int stop = 0;
  while (!trainer.done() && (stop = agreed_stop(group)) == 0) {
    trainer.step();
    if (validates && evaluates_at(config, trainer)) trainer.validate();
    if (saves_at(config, trainer)) trainer.compare_ranks();
  }
  if (stop == 0) stop = agreed_stop(group);
  group.leave();
  return stop == 0 ? 0 : 128 + stop;
}

// This process is one of the ranks.
int train_as(const Ranks& ranks, const TrainOptions& options, TrainConfig config,
             const std::vector<std::string>& changes, const DeviceFactory& devices,
             const CommunicatorFactory& communicators);

}  // namespace

int run_train(const TrainOptions& options, const DeviceFactory& devices,
              const CommunicatorFactory& communicators) {
  namespace fs = std::filesystem;
  TrainConfig config = load_train_config(options.config_file, options.overrides);
  std::vector<std::string> changes;  // against the configuration that the run was started with
  if (options.allow_config_change && !options.resume) fail_usage("--allow-config-change is for --resume");
  if (options.resume) {
    // The run's own configuration counts, and what the command line says is held against it.
    if (config.output.empty()) fail_usage("--resume needs the run folder: output=FOLDER");
    const fs::path saved = fs::path(config.output) / "config.toml";
    if (!fs::exists(saved))
      fail("{}: no such run ({} is missing); there is nothing to resume", config.output, saved.string());
    const TrainConfig own = load_train_config(saved);
    TrainConfig asked = options.config_file.empty() ? load_train_config(saved, options.overrides) : config;
    changes = config_changes(own, asked);
    std::string listed;
    for (const std::string& change : changes) listed.append("\n  ").append(change);
    if (!changes.empty() && !options.allow_config_change)
      fail_usage(
          "{}: the run was started with another configuration:{}\nleave these out, or add "
          "--allow-config-change to go on with the new values",
          saved.string(), listed);
    if (asked.threads == 0) asked.threads = own.threads;
    asked.output = config.output;
    config = asked;
  }
  if (config.data.train.empty()) fail_usage("no training data: set data.train");
  if (config.output.empty() && !options.dry_run) fail_usage("no run folder: set output (or --output FOLDER)");

  Ranks ranks = ranks_from_environment();
  if (options.ranks > 0 && ranks.size > 1)
    fail_usage("--ranks starts processes itself, and WORLD_SIZE says that this is one of {} already",
               ranks.size);
  const auto as = [&](const Ranks& r) {
    return train_as(r, options, config, changes, devices, communicators);
  };
  if (options.ranks > 1 && !options.dry_run) return run_ranks(options.ranks, as);
  if (options.ranks > 1) ranks.size = ranks.local_size = options.ranks;
  return as(ranks);
}

namespace {

int train_as(const Ranks& ranks, const TrainOptions& options, TrainConfig config,
             const std::vector<std::string>& changes, const DeviceFactory& devices,
             const CommunicatorFactory& communicators) {
  namespace fs = std::filesystem;
  const bool first = ranks.rank == 0;
  if (config.train.batch % ranks.size != 0)
    fail_usage("train.batch is {}, which {} ranks cannot share evenly; set a multiple of {}",
               config.train.batch, ranks.size, ranks.size);
  if (options.dry_run && !first) return 0;
  std::unique_ptr<HostCommunicator> hosts;
  if (ranks.size > 1 && !options.dry_run) {
    hosts = meet_over_tcp(ranks);
    compare_configurations(*hosts, config, options.resume);
  }
  DeviceChoice choice = device_choice(config);
  choice.index = ranks.local_rank;
  if (choice.threads == 0 && ranks.local_size > 1)
    choice.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks.local_size);
  Session session = open_session(config.model, config.model_quantize, choice, config.dtype, devices, !first);
  Device& device = *session.device;
  std::unique_ptr<Communicator> joined;
  if (hosts) joined = communicators(device, std::move(hosts));
  OneRank alone;
  Communicator& group = joined ? *joined : static_cast<Communicator&>(alone);
  if (joined && first) fmt::print(stderr, "ranks: {}\n", group.description());
  device.set_graphs(options.graphs);
  const Llama& llama = *session.llama;
  const Tokenizer& tokenizer = *session.tokenizer;
  TokenizedDataset data = open_dataset(config.data, static_cast<uint64_t>(config.seed), tokenizer,
                                       llama.config().max_position_embeddings - positions_before(config));
  if (first) fmt::print(stderr, "{}", data.report);

  const ProcessMemory before = process_memory();
  const auto plan_of = [&](const TrainConfig& c) {
    TrainConfig own = c;
    own.threads = choice.threads;
    return plan_memory(device, llama, tokenizer, own, data, before, ranks.size);
  };
  const MemoryPlan plan = plan_of(config);
  if (options.dry_run) fmt::print("{}", to_toml(config));
  if (first) fmt::print(stderr, "{}", plan.text());
  // What a GPU has free is not this process's memory: there only a limit that was set counts.
  if (device.kind() == DeviceKind::kCpu || config.memory_limit > 0) {
    MemoryLimit limit = memory_limit(config.memory_limit, before);
    if (config.memory_limit == 0 && ranks.local_size > 1) {
      limit.bytes /= ranks.local_size;
      limit.source += fmt::format(", shared by {} ranks", ranks.local_size);
    }
    check_memory(plan, limit, config, plan_of);
  }
  if (options.dry_run) return 0;

  std::optional<PeftAdapter> start;
  if (!options.resume && !config.adapter.empty()) start = read_peft(config.adapter, llama.config());
  std::optional<RunFolder> own_folder;  // rank 0's
  if (first)
    own_folder.emplace(config.output, options.resume ? RunFolder::Mode::kResume : RunFolder::Mode::kNew);
  // The others read what rank 0 has found, in the same folder.
  std::string note;
  std::string latest = options.resume && first ? own_folder->latest(&note).string() : "";
  if (options.resume && group.size() > 1) latest = group.all_gather(latest).front();
  device.reserve(plan.buffers);
  Trainer trainer(device, llama, tokenizer, config, {data.train, data.valid}, &group);
  if (!first) {
    if (options.resume)
      trainer.load(CheckpointReader(latest));
    else if (start)
      trainer.start_from(*start, config.adapter);
    return follow(trainer, group, config, options.resume, !data.valid.empty());
  }
  RunFolder& folder = *own_folder;
  int64_t events_kept = -1;
  double best = std::numeric_limits<double>::infinity();
  std::vector<std::string> alarms;
  if (options.resume) {
    const fs::path path = latest;
    if (!note.empty()) fmt::print(stderr, "{}\n", note);
    const CheckpointReader reader(path.string());
    trainer.load(reader);
    if (own_folder && trainer.done()) own_folder->remove_old(trainer.step_number(), config.train.keep);
    const json run = json::parse(reader.json("run"));
    try {
      events_kept = run.at("events_bytes");
      best = run.at("best").is_null() ? best : run.at("best").get<double>();
      alarms = run.at("alarms").get<std::vector<std::string>>();
    } catch (const json::exception& error) {
      fail("{}: text 'run' is not what this program writes ({}); use another checkpoint of the run",
           path.string(), error.what());
    }
    fmt::print(stderr, "continuing {} at step {} of {}\n", path.string(), trainer.step_number(),
               trainer.total_steps());
    if (!changes.empty()) {
      std::string listed;
      for (const std::string& change : changes) listed.append("\n  ").append(change);
      fmt::print(stderr, "changed:{}\n", listed);
      folder.write(folder.config_file(), to_toml(config));
    }
  } else {
    if (start) trainer.start_from(*start, config.adapter);
    folder.write(folder.config_file(), to_toml(config));
  }
  EventLog events(folder.events_file(), events_kept);
  TensorBoard board(folder.tensorboard(), options.resume ? trainer.step_number() : -1);
  const uint64_t base_before = llama.memory_hash();
  for (const std::string& change : changes)
    events.write("config", trainer.step_number(), {{"change", change}});
  if (!options.resume)
    events.write("start", 0,
                 {{"model", config.model},
                  {"parameters_base", llama.parameters()},
                  {"parameters_generator", trainer.generator_parameters()},
                  {"parameters_discriminator", trainer.discriminator_parameters()},
                  {"train_items", static_cast<int64_t>(data.train.size())},
                  {"valid_items", static_cast<int64_t>(data.valid.size())},
                  {"dtype", std::string(dtype_name(llama.dtype()))},
                  {"device", device.description()},
                  {"ranks", static_cast<int64_t>(group.size())}});

  auto save = [&](bool is_best) {
    CheckpointWriter writer;
    trainer.save(writer);
    board.flush();
    writer.add_json(
        "run", json{{"events_bytes", events.bytes()}, {"best", finite(best)}, {"alarms", alarms}}.dump());
    folder.save(trainer.step_number(), writer, is_best, config.train.keep);
  };
  auto validate = [&] {
    if (data.valid.empty()) return false;
    const LossResult r = trainer.validate();
    events.write("eval", trainer.step_number(),
                 {{"ce", r.ce}, {"ppl", r.perplexity()}, {"scored_tokens", r.tokens}});
    board.scalar("eval/ce", trainer.step_number(), r.ce);
    const bool better = r.ce < best;
    if (better) best = r.ce;
    return better;
  };

  std::optional<StopSignals> signals(std::in_place,
                                     false);  // until the training is over: what follows need not be saved
  Progress progress("train", trainer.total_steps(), trainer.step_number());
  if (!options.resume && trainer.step_number() == 0) validate();
  int stop = 0;
  while (!trainer.done() && (stop = agreed_stop(group)) == 0) {
    if (trainer.step_number() == options.profile_begin) device.record(true);
    const StepRecord r = trainer.step();
    if (r.step == options.profile_end) device.record(false);
    events.write("step", r.step,
                 {{"phase", std::string(phase_name(r.phase))},
                  {"ce", r.ce},
                  {"loss_g", r.loss_adv},
                  {"loss_d", r.loss_d},
                  {"kl", r.kl},
                  {"reward", r.reward},
                  {"pair_accuracy", r.pair_accuracy},
                  {"pair_accuracy_heldout", r.heldout_accuracy},
                  {"gate_accuracy", r.gate_accuracy},
                  {"trained_g", r.trained_g},
                  {"trained_d", r.trained_d},
                  {"grad_norm_g", r.grad_norm_g},
                  {"grad_norm_d", r.grad_norm_d},
                  {"lr_g", r.lr_g},
                  {"lr_d", r.lr_d},
                  {"rms_ratio", r.rms_ratio},
                  {"length", r.mean_length},
                  {"non_canonical", r.non_canonical},
                  {"identical", r.identical},
                  {"answers", static_cast<int64_t>(r.answers)},
                  {"tokens", r.tokens},
                  {"synchronisations", r.synchronisations},
                  {"step_seconds", r.seconds},
                  {"rollout_seconds", r.rollout_s},
                  {"features_seconds", r.features_s},
                  {"discriminator_seconds", r.discriminator_s},
                  {"forward_backward_seconds", r.forward_backward_s},
                  {"optimizer_seconds", r.optimizer_s}});
    for (const auto& [tag, value] : {std::pair("train/ce", r.ce),
                                     {"train/loss_g", r.loss_adv},
                                     {"train/loss_d", r.loss_d},
                                     {"train/pair_accuracy", r.pair_accuracy},
                                     {"train/pair_accuracy_heldout", r.heldout_accuracy},
                                     {"train/rms_ratio", r.rms_ratio},
                                     {"train/lr_g", r.lr_g},
                                     {"train/step_seconds", r.seconds}})
      if (std::isfinite(value)) board.scalar(tag, r.step, value);
    for (const std::string& alarm : trainer.new_alarms()) {
      events.write("alarm", r.step, {{"text", alarm}});
      progress.say("alarm: " + alarm);
      alarms.push_back(fmt::format("step {}: {}", r.step, alarm));
    }
    std::string facts = fmt::format("{}", phase_name(r.phase));
    if (std::isfinite(r.ce)) facts += fmt::format("  ce {:.3f}", r.ce);
    if (r.phase != Phase::kWarmup)
      facts += fmt::format("  acc {:.2f}  {}{}", r.gate_accuracy, r.trained_g ? "G" : "-",
                           r.trained_d ? "D" : "-");
    progress.update(r.step, facts);
    bool better = false;
    if (evaluates_at(config, trainer)) better = validate();
    if (saves_at(config, trainer)) trainer.compare_ranks();
    if (better || saves_at(config, trainer)) save(better);
  }
  progress.finish();
  if (stop == 0) stop = agreed_stop(group);
  if (stop == 0) signals.reset();
  if (stop != 0) {
    save(false);
    group.leave();
    fmt::print(stderr, "stopped at step {} of {}; continue with: gantrain train --resume output={}\n",
               trainer.step_number(), trainer.total_steps(), config.output);
    return 128 + stop;
  }
  group.leave();

  json used = device_counters(device);  // of the training; the evaluation may take more
  used["planned_bytes"] = plan.buffers;

  // What came of it: every arm on the held-out items.
  const auto eval_start = std::chrono::steady_clock::now();
  const bool has_test = !data.test.empty();
  const std::vector<TokenizedExample>& split = has_test ? data.test : data.valid;
  const std::vector<TokenizedExample>& merged = has_test ? data.test_merged : data.valid_merged;
  std::vector<ArmResult> results;
  Runner runner(device, llama);
  NoPrompt none;
  const auto train_items = pointers(data.train);
  const auto items = pointers(split, config.eval.max_items),
             merged_items = pointers(merged, config.eval.max_items);
  if (!items.empty()) {
    const std::vector<std::vector<int32_t>> labels = find_labels(train_items);
    ArmSettings settings;
    settings.placement = config.generator.placement;
    settings.batch = config.train.batch;
    settings.temperatures = config.eval.temperatures;
    settings.samples = config.eval.samples;
    settings.max_new = config.train.max_new_tokens;
    settings.max_generate =
        config.eval.max_items > 0 ? config.eval.max_items : static_cast<int64_t>(merged.size());
    settings.seed = static_cast<uint64_t>(config.seed);
    settings.generate = labels.empty();
    const auto say = [&](const char* arm) {
      fmt::print(stderr, "evaluating: {} ({} items)\n", arm, items.size());
    };
    const auto measure = [&](const Arm& arm) {
      say(arm.name.c_str());
      results.push_back(evaluate_arm(runner, tokenizer, arm, items, merged_items, labels, settings));
    };
    if (options.untrained.empty()) {
      measure({"no prompt", &none});
    } else {
      say("no prompt");
      const std::string base = fmt::format("{:016x} {} {} {}", base_before, dtype_name(llama.dtype()),
                                           device.description(), static_cast<int>(choice.gemm));
      results.push_back(evaluate_untrained(options.untrained, base, runner, tokenizer, items, merged_items,
                                           labels, settings));
    }
    if (trainer.warm() && trainer.totals().steps_adversarial > 0) {
      // Runs side by side have an arm that ends there: of this one G0 asks the loss alone.
      ArmSettings of_warm = settings;
      of_warm.generate = settings.generate && options.untrained.empty();
      say("warm");
      results.push_back(
          evaluate_arm(runner, tokenizer, {"warm", trainer.warm()}, items, merged_items, labels, of_warm));
    }
    if (trainer.generator_parameters() > 0) {
      measure({"trained", &trainer.deployed()});
    } else {  // nothing was trained: the model without a prompt, by another name
      results.push_back(results.front());
      results.back().name = "trained";
    }
  }
  const double eval_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - eval_start).count();
  if (llama.memory_hash() != base_before)
    fail("the frozen base changed during training; this is a bug in the engine, please report it");

  const Totals& t = trainer.totals();
  json summary;
  summary["run"] = {{"model", config.model},
                    {"method", kMethodNames[static_cast<size_t>(config.method)]},
                    {"generator", config.generator.kind == GeneratorKind::kStatic ? "static"
                                  : config.generator.kind == GeneratorKind::kMlp  ? "mlp"
                                                                                  : "conditional"},
                    {"loss", config.loss.kind == LossKind::kCe     ? "ce"
                             : config.loss.kind == LossKind::kRloo ? "rloo"
                                                                   : "gumbel"},
                    {"dtype", dtype_name(llama.dtype())},
                    {"device", device.description()},
                    {"ranks", group.size()},
                    {"steps", trainer.step_number()},
                    {"seed", config.seed},
                    {"split", has_test ? "test" : "valid"},
                    {"items", items.size()},
                    {"base_unchanged", true}};
  summary["arms"] = json::array();
  summary["sweep"] = json::array();
  for (const ArmResult& r : results) {
    json j = json::parse(to_json(r));
    for (const json& row : j["temperatures"]) summary["sweep"].push_back(row);
    summary["arms"].push_back(j);
  }
  auto flat = [](const ArmResult& r) {
    json j = json::parse(to_json(r)), out{{"ce", j["ce"]}, {"ppl", j["ppl"]}};
    if (j.contains("label_likelihood")) out["label_likelihood"] = j["label_likelihood"];
    if (!j["temperatures"].empty()) {
      // The temperature that answers are drawn at by default: 1, or the nearest to it.
      const json* at = &j["temperatures"][0];
      for (const json& row : j["temperatures"])
        if (std::abs(row["temperature"].get<double>() - 1.0) <
            std::abs((*at)["temperature"].get<double>() - 1.0))
          at = &row;
      for (const char* key : {"temperature", "bleu", "rouge_l", "exact_match", "distinct_1", "distinct_2",
                              "self_bleu_4", "length"})
        out[key] = (*at)[key];
    }
    return out;
  };
  if (!results.empty()) {
    summary["before"] = flat(results.front());
    summary["after"] = flat(results.back());
    summary["samples"] = json::array();
    for (size_t i = 0; i < results.front().samples.size() && i < 12; ++i)
      summary["samples"].push_back({{"prompt", merged_items[i]->prompt_text},
                                    {"references", merged_items[i]->references},
                                    {"before", results.front().samples[i]},
                                    {"after", results.back().samples[i]}});
  }
  summary["cost"] = {
      {"parameters_base", llama.parameters()},
      {"parameters_trained", trainer.generator_parameters()},
      {"parameters_deployed", trainer.deployed_parameters()},
      {"parameters_discriminator", trainer.discriminator_parameters()},
      {"optimizer_bytes", trainer.optimizer_bytes()},
      {"peak_memory_bytes", process_memory().peak},
      {"planned_memory_bytes", plan.total()},
      {"device", used},
      {"train_seconds", t.all},
      {"seconds",
       {{"rollout", t.rollout},
        {"features", t.features},
        {"discriminator", t.discriminator},
        {"generator forward and backward", t.forward_backward},
        {"optimizer", t.optimizer},
        {"validation", t.evaluation},
        {"final evaluation", eval_seconds},
        {"loading", session.load_seconds}}},
      {"rows", t.tokens},
      {"rows_per_second", t.all > 0 ? static_cast<double>(t.tokens) / t.all : 0.0},
      {"sampled_tokens", t.sampled_tokens},
      {"sampled_tokens_per_second", t.rollout > 0 ? static_cast<double>(t.sampled_tokens) / t.rollout : 0.0},
      {"share_generator_trained",
       t.steps_adversarial ? static_cast<double>(t.steps_g - (trainer.step_number() - t.steps_adversarial)) /
                                 static_cast<double>(t.steps_adversarial)
                           : 1.0},
      {"share_discriminator_trained",
       t.steps_adversarial ? static_cast<double>(t.steps_d) / static_cast<double>(t.steps_adversarial)
                           : 0.0}};
  // The gates of docs/method.md that one run can answer.
  constexpr double kSignal = 0.6;
  std::string gates_text;
  summary["gates"] = json::array();
  const auto gate = [&](const char* name, const char* asks, double value, const json& error, double limit,
                        int64_t count, bool passed, const std::string& text) {
    summary["gates"].push_back({{"gate", name},
                                {"asks", asks},
                                {"value", value},
                                {"standard_error", error},
                                {"limit", limit},
                                {"count", count},
                                {"passed", passed}});
    gates_text += fmt::format("gate {} {}: {}\n", name, passed ? "passed" : "not passed", text);
  };
  if (results.size() > 1) {
    const ArmResult &none_arm = results.front(), &c0 = results[1];
    gate("G0", "cross-entropy alone (C0) lowers the loss below no prompt's", c0.loss.ce, nullptr,
         none_arm.loss.ce, static_cast<int64_t>(items.size()), c0.loss.ce < none_arm.loss.ce,
         fmt::format("cross-entropy alone (C0) has a loss of {:.3f}, no prompt {:.3f}", c0.loss.ce,
                     none_arm.loss.ce));
  }
  if (const SignalCheck& signal = trainer.signal(); signal.pairs > 0)
    gate(
        "G1", "a fresh discriminator tells C0's answers to held-out inputs from references", signal.accuracy,
        signal.standard_error, kSignal, signal.pairs, signal.accuracy > kSignal,
        fmt::format("after {} steps of its own the discriminator is right on {:.2f} +- {:.2f} of {} held-out "
                    "pairs{}",
                    signal.discriminator_steps, signal.accuracy, signal.standard_error, signal.pairs,
                    signal.accuracy > kSignal ? "" : ": there is no adversarial signal"));
  summary["alarms"] = alarms;
  summary["alarms_raised"] = trainer.alarms_raised();
  summary["nearest_tokens"] = nearest_tokens(llama, tokenizer, trainer.prompt_table());
  // Answers of a model need not be UTF-8.
  folder.write(folder.summary_file(), summary.dump(2, ' ', false, json::error_handler_t::replace) + "\n");

  if (!results.empty()) {
    fmt::print("{} items of the {} split\n\n{}", items.size(), has_test ? "test" : "valid",
               arms_table(results));
    if (!gates_text.empty()) fmt::print("\n{}", gates_text);
    for (size_t i = 0; i < results.front().samples.size() && i < 3; ++i)
      fmt::print("\ninput    {}\nbefore   {}\nafter    {}\nreference {}\n", merged_items[i]->prompt_text,
                 results.front().samples[i], results.back().samples[i],
                 merged_items[i]->references.empty() ? "" : merged_items[i]->references.front());
  }
  fmt::print(stderr, "run folder: {}\n", config.output);
  return 0;
}

}  // namespace
}  // namespace gantrain
