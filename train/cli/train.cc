#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "core/check.h"
#include "train/cli/parse.h"

namespace gantrain::cli {

Action add_train(CLI::App& program, const VerbTable& verbs) {
  struct Flags {
    std::vector<std::string> words;
    std::string output;
    bool dry_run = false, resume = false, help_config = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App& verb = *program.add_subcommand("train", "train a soft-prompt generator against a discriminator");
  verb.footer("Example: gantrain train run.toml train.batch=16 loss.kind=ce output=runs/first");
  verb.add_option("config", flags->words, "a TOML file (optional), then key=value settings that win over it");
  verb.add_option("-o,--output", flags->output, "run folder, as output=FOLDER");
  verb.add_flag(
      "--dry-run", flags->dry_run,
      "print the resolved configuration, what became of the data, and the memory plan; train nothing");
  verb.add_flag("--resume", flags->resume,
                "go on with the run in the output folder from its latest checkpoint");
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
    options.dry_run = flags->dry_run;
    options.resume = flags->resume;
    return run(options);
  };
}

}  // namespace gantrain::cli
