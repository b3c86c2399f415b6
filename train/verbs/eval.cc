#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "model/runner.h"
#include "train/checkpoint/run_folder.h"
#include "train/plan/memory_plan.h"
#include "train/text.h"
#include "train/verbs/arms.h"
#include "train/verbs/dataset.h"
#include "train/verbs/session.h"

namespace gantrain {

int run_eval(const EvalOptions& options, const DeviceFactory& devices) {
  if (options.run.empty()) fail_usage("eval needs a run: gantrain eval --run FOLDER");
  const CheckpointReader checkpoint(find_checkpoint(options.run).string());
  const TrainConfig config = checkpoint_config(checkpoint, options.overrides);
  Session session =
      open_session(config.model, config.model_quantize, device_choice(config), config.dtype, devices);
  Device& device = *session.device;
  const Llama& llama = *session.llama;
  const TokenizedDataset data =
      open_dataset(config.data, static_cast<uint64_t>(config.seed), *session.tokenizer,
                   llama.config().max_position_embeddings - positions_before(config));
  fmt::print(stderr, "{}", data.report);
  const std::vector<TokenizedExample>*split = nullptr, *merged = nullptr;
  if (options.split == "test")
    split = &data.test, merged = &data.test_merged;
  else if (options.split == "valid")
    split = &data.valid, merged = &data.valid_merged;
  else if (options.split == "train")
    split = &data.train, merged = &data.train;
  else
    fail_usage("--split: expected test, valid or train, got '{}'", options.split);
  if (split->empty())
    fail_usage("the run's data has no {} split; set data.{} or data.{}_fraction", options.split,
               options.split, options.split);

  const uint64_t base = llama.memory_hash();
  Runner runner(device, llama);
  const std::unique_ptr<Generator> trained = load_generator(checkpoint, config, device, llama, false);
  const std::unique_ptr<Generator> warm = load_generator(checkpoint, config, device, llama, true);
  NoPrompt none;
  GeneratorPrompts trained_prompts(runner, *trained, config.generator);
  std::unique_ptr<GeneratorPrompts> warm_prompts;
  const auto among = [](const std::vector<std::string>& names, const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  struct Asked {
    Arm arm;
    bool judged;
  };
  std::vector<Asked> arms;
  const auto add = [&](const char* name, const char* title, PromptMaker& maker) {
    if (among(options.arms, name)) arms.push_back({{title, &maker}, among(options.judged, name)});
  };
  add("none", "no prompt", none);
  if (warm) {
    warm_prompts = std::make_unique<GeneratorPrompts>(runner, *warm, config.generator);
    add("warm", "warm", *warm_prompts);
  }
  add("trained", "trained", trained_prompts);

  const int64_t most = options.max_items >= 0 ? options.max_items : config.eval.max_items;
  const auto items = pointers(*split, most), merged_items = pointers(*merged, most);
  const auto labels = find_labels(pointers(data.train));
  ArmSettings settings;
  settings.placement = config.generator.placement;
  settings.batch = config.train.batch;
  settings.temperatures = options.temperatures.empty() ? config.eval.temperatures : options.temperatures;
  settings.samples = config.eval.samples;
  settings.max_new = config.train.max_new_tokens;
  settings.max_generate = static_cast<int64_t>(merged_items.size());
  settings.seed = static_cast<uint64_t>(config.seed);
  settings.generate = options.generate;
  const auto train_items = pointers(data.train);
  settings.judge_pairs = options.judge_pairs;
  settings.judge_train = train_items;
  settings.judge_tokens = among(options.judge_reads, "tokens");
  settings.judge_features = among(options.judge_reads, "features");
  settings.feature_layers = feature_layers(config.discriminator, llama.config().num_layers);
  if (options.judges > 0 && train_items.empty())
    fail_usage("--judges needs the run's training items to learn from: leave --data out, or set data.train");
  const RunChooser choosing = load_chooser(checkpoint, config, runner, options.choosing);
  settings.chooser = choosing.chooser.get();
  if (!options.drift_file.empty())
    settings.drift_text = read_text_file(options.drift_file, int64_t{64} << 20);

  std::vector<ArmResult> results;
  nlohmann::json seconds;
  for (const auto& [arm, judged] : arms) {
    settings.judges = judged ? options.judges : 0;
    fmt::print(stderr, "evaluating: {} ({} items)\n", arm.name, items.size());
    const auto start = std::chrono::steady_clock::now();
    results.push_back(evaluate_arm(runner, *session.tokenizer, arm, items, merged_items, labels, settings));
    seconds[arm.name] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  // With the prompt off nothing may have changed: the base's bytes are the proof.
  if (llama.memory_hash() != base)
    fail("the frozen base changed during the evaluation; this is a bug in the engine, please report it");

  nlohmann::json j{{"checkpoint", checkpoint.path()},
                   {"model", config.model},
                   {"base", fmt::format("{:016x}", llama.content_hash())},
                   {"base_unchanged", true},
                   {"split", options.split},
                   {"items", items.size()},
                   {"best_of", options.choosing.best_of},
                   {"choose_temperature", options.choosing.temperature},
                   {"cost",
                    {{"parameters_base", llama.parameters()},
                     {"parameters_trained", trained->parameters().count()},
                     {"parameters_deployed", trained->deployed_parameters()},
                     {"load_seconds", session.load_seconds},
                     {"seconds", seconds},
                     {"peak_memory_bytes", process_memory().peak}}},
                   {"arms", nlohmann::json::array()}};
  for (const ArmResult& r : results) j["arms"].push_back(nlohmann::json::parse(to_json(r)));
  if (options.json_file == "-") {
    fmt::print("{}\n", j.dump(2));
    return 0;
  }
  if (!options.json_file.empty()) {
    const std::string text = j.dump(2) + "\n";
    write_file_atomically(options.json_file, {{text.data(), text.size()}});
  }
  fmt::print("{}", arms_table(results));
  fmt::print("\ncost: {} parameters trained, {} deployed in front of {}; {:.1f} s to load, ",
             trained->parameters().count(), trained->deployed_parameters(), llama.parameters(),
             session.load_seconds);
  for (const auto& [arm, judged] : arms)
    fmt::print("{:.1f} s for {}, ", seconds[arm.name].get<double>(), arm.name);
  fmt::print("{:.0f} MB at most\n", static_cast<double>(process_memory().peak) * 1e-6);
  return 0;
}

}  // namespace gantrain
