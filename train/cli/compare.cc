#include <CLI/CLI.hpp>
#include <memory>

#include "core/check.h"
#include "train/cli/parse.h"

namespace gantrain::cli {

Action add_compare(CLI::App& program, const VerbTable& verbs, const std::string& command,
                   const std::string& version) {
  struct Flags {
    CompareOptions options;
    std::vector<std::string> words;
    std::string output;
  };
  auto flags = std::make_shared<Flags>();
  CompareOptions& o = flags->options;
  o.command = command;
  o.version = version;
  o.seeds = {1};
  CLI::App& verb = *program.add_subcommand(
      "compare", "train and measure several methods on one model and one data set, and report");
  verb.footer(
      "Example: gantrain compare run.toml --methods zero-shot,few-shot:4,prompt,lora,gan+rloo --seeds 1,2,3 "
      "\\\n"
      "           --judges 3 -o runs/compare\n"
      "The same command goes on where it was stopped.");
  verb.add_option("config", flags->words, "a TOML file (optional), then key=value settings, for all arms");
  verb.add_option(
          "--methods", o.methods,
          "with commas: zero-shot, few-shot:K, a method, or METHOD+LOSS (loss ce, rloo, gumbel or placebo)")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb.add_option("--arm", o.arms, "one more: 'NAME: METHOD KEY=VALUE ...'; may be given several times")
      ->allow_extra_args(false);
  verb.add_option("--seeds", o.seeds, "with commas; every arm is run with each (default 1)")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb.add_option("--seconds", o.seconds,
                  "besides, at equal wall clock: every arm with the steps that fit into these seconds");
  verb.add_option("--jobs", o.jobs, "runs side by side, sharing the CPU's cores")->capture_default_str();
  verb.add_option("--judges", o.judges, "fresh judges an arm and temperature (as gantrain eval)")
      ->capture_default_str();
  verb.add_option("--judge-pairs", o.judge_pairs, "held-out pairs that a judge is asked about")
      ->capture_default_str();
  verb.add_option("--judge-reads", o.judge_reads, kJudgeReadsHelp)->delimiter(',')->allow_extra_args(false);
  verb.add_option("--drift", o.drift_file, "a text: how much worse the model reads it afterwards");
  verb.add_option("-o,--output", flags->output, "folder of the comparison, as output=FOLDER");
  verb.add_flag("--dry-run", o.dry_run, "print the runs' commands; run nothing");
  return [flags, run = verbs.compare] {
    CompareOptions& options = flags->options;
    for (const std::string& word : flags->words) {
      if (word.find('=') != std::string::npos)
        options.overrides.push_back(word);
      else if (options.config_file.empty() && options.overrides.empty())
        options.config_file = word;
      else
        fail_usage(
            "compare: expected key=value, got '{}' (the configuration file comes first, and there is one)",
            word);
    }
    if (!flags->output.empty()) options.overrides.push_back("output=" + flags->output);
    need(!options.methods.empty() || !options.arms.empty(), "compare", "--methods");
    need(!options.seeds.empty(), "compare", "--seeds");
    for (const int64_t seed : options.seeds) check_range("--seeds", static_cast<double>(seed), 0, 1e15);
    if (options.seconds != 0) check_range("--seconds", options.seconds, 0.1, 1e9);
    check_range("--jobs", static_cast<double>(options.jobs), 1, 1024);
    check_range("--judges", static_cast<double>(options.judges), 0, 1000);
    check_range("--judge-pairs", static_cast<double>(options.judge_pairs), 1, 1e9);
    for (const std::string& what : options.judge_reads)
      check_choice("--judge-reads", what, {"tokens", "features"});
    return run(options);
  };
}

}  // namespace gantrain::cli
