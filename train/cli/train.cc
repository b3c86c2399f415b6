#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <memory>

#include "core/check.h"
#include "train/cli/parse.h"

namespace gantrain::cli {

Action add_train(CLI::App& program, const VerbTable& verbs) {
  struct Flags {
    std::vector<std::string> words;
    std::string output;
    std::string device, gemm, dtype, profile, untrained;
    int ranks = 0;
    bool dry_run = false, resume = false, allow_config_change = false, no_graphs = false, help_config = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App& verb = *program.add_subcommand("train", "train a soft-prompt generator against a discriminator");
  verb.footer("Example: gantrain train run.toml train.batch=16 loss.kind=ce output=runs/first");
  verb.add_option("config", flags->words, "a TOML file (optional), then key=value settings that win over it");
  verb.add_option("-o,--output", flags->output, "run folder, as output=FOLDER");
  verb.add_option("--device", flags->device, "cpu or cuda, as device=DEVICE");
  verb.add_option("--gemm", flags->gemm, std::string(kGemmHelp) + "; as gemm=WHO");
  verb.add_option("--dtype", flags->dtype, "f32, bf16 or auto, as dtype=TYPE");
  verb.add_option("--profile", flags->profile,
                  "A:B: a profiler records steps A to B - 1 alone (tools/profile), counted from 0");
  verb.add_option(
          "--ranks", flags->ranks,
          "train in N processes on this machine, each on its part of every batch; other launchers set "
          "RANK and WORLD_SIZE instead (docs/distributed.md)")
      ->check(CLI::Range(1, 1024));
  verb.add_option(
      "--untrained", flags->untrained,
      "a folder where runs leave for each other what the model does without training, so that it is "
      "measured once, and of the warm-up's end the loss alone; gantrain compare gives it to its runs");
  verb.add_flag(
      "--dry-run", flags->dry_run,
      "print the resolved configuration, what became of the data, and the memory plan; train nothing");
  verb.add_flag("--resume", flags->resume,
                "go on with the run in the output folder from its latest checkpoint");
  verb.add_flag("--allow-config-change", flags->allow_config_change,
                "with --resume: go on under another configuration than the run was started with");
  verb.add_flag("--no-graphs", flags->no_graphs,
                "on a GPU: launch every kernel by itself, not as parts of CUDA graphs; the same bits");
  verb.add_flag("--help-config", flags->help_config, "print every key with its default, meaning and range");
  return [flags, run = verbs.train] {
    if (flags->help_config) {
      fmt::print("{}", config_help());
      return 0;
    }
    TrainOptions options;
    for (const std::string& word : flags->words) {
      if (word.find('=') != std::string::npos)
        options.overrides.push_back(word);
      else if (options.config_file.empty() && options.overrides.empty())
        options.config_file = word;
      else
        fail_usage(
            "train: expected key=value, got '{}' (the configuration file comes first, and there is one)",
            word);
    }
    if (!flags->output.empty()) options.overrides.push_back("output=" + flags->output);
    if (!flags->device.empty()) options.overrides.push_back("device=" + flags->device);
    if (!flags->gemm.empty()) options.overrides.push_back("gemm=" + flags->gemm);
    if (!flags->dtype.empty()) options.overrides.push_back("dtype=" + flags->dtype);
    if (!flags->profile.empty()) {
      const size_t colon = flags->profile.find(':');
      const auto number = [&](const std::string& text) {
        int64_t value = -1;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        return error == std::errc() && end == text.data() + text.size() ? value : -1;
      };
      if (colon != std::string::npos) {
        options.profile_begin = number(flags->profile.substr(0, colon));
        options.profile_end = number(flags->profile.substr(colon + 1));
      }
      if (options.profile_begin < 0 || options.profile_end <= options.profile_begin)
        fail_usage("--profile: expected A:B, two step numbers with A < B, got '{}'", flags->profile);
    }
    options.ranks = flags->ranks;
    options.untrained = flags->untrained;
    options.dry_run = flags->dry_run;
    options.resume = flags->resume;
    options.graphs = !flags->no_graphs;
    options.allow_config_change = flags->allow_config_change;
    return run(options);
  };
}

}  // namespace gantrain::cli
