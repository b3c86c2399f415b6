#include <CLI/CLI.hpp>
#include <memory>

#include "core/check.h"
#include "train/cli/parse.h"

namespace gantrain::cli {

Action add_eval(CLI::App& program, const VerbTable& verbs) {
  struct Flags {
    EvalOptions options;
    std::string model, data, gemm;
    bool no_generate = false;
  };
  auto flags = std::make_shared<Flags>();
  EvalOptions& o = flags->options;
  CLI::App& verb =
      *program.add_subcommand("eval", "measure a trained prompt: loss, quality, diversity, drift, cost");
  verb.footer("Example: gantrain eval --run runs/first --temperatures 0.7,1.0 --json out.json");
  verb.add_option("-r,--run", o.run, "run folder or checkpoint file");
  verb.add_option("-m,--model", flags->model, "the frozen model, when it has moved since the training");
  verb.add_option("--data", flags->data, "another file to evaluate on, as data.test=FILE");
  verb.add_option("--split", o.split, "test, valid or train")->capture_default_str();
  verb.add_option("--temperatures", o.temperatures, "temperatures to sample at, with commas; 0 is greedy")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb.add_option("--max-items", o.max_items, "items at most; 0: all; -1: as the run says")
      ->capture_default_str();
  verb.add_option("--drift", o.drift_file, "a text: the loss on it with the prompt on and off");
  verb.add_option("--json", o.json_file,
                  "write the results here as JSON; -: to standard output instead of the table");
  verb.add_option("--gemm", flags->gemm, std::string(kGemmHelp) + "; as gemm=WHO");
  verb.add_flag("--no-generate", flags->no_generate, "loss and label likelihood only");
  verb.add_option("--arms", o.arms, "which to measure: none, warm, trained, with commas; default all")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb.add_option(
          "--judges", o.judges,
          "train this many fresh judges an arm and temperature, and say how often they tell its answers "
          "from references")
      ->capture_default_str();
  verb.add_option("--judge-pairs", o.judge_pairs,
                  "held-out pairs that a judge is asked about; it learns from twice as many")
      ->capture_default_str();
  verb.add_option("--judge-arms", o.judged, "of the arms, those that are judged, with commas; default all")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb.add_option("--judge-reads", o.judge_reads, kJudgeReadsHelp)->delimiter(',')->allow_extra_args(false);
  add_choosing_flags(verb, o.choosing);
  verb.add_option("settings", o.overrides, "key=value settings over the run's own");
  return [flags, run = verbs.eval] {
    EvalOptions& options = flags->options;
    need(!options.run.empty(), "eval", "--run");
    check_choice("--split", options.split, {"test", "valid", "train"});
    for (const double t : options.temperatures) check_range("--temperatures", t, 0.0, 10.0);
    for (const std::string& arm : options.arms) check_choice("--arms", arm, {"none", "warm", "trained"});
    for (const std::string& arm : options.judged)
      check_choice("--judge-arms", arm, {"none", "warm", "trained"});
    for (const std::string& what : options.judge_reads)
      check_choice("--judge-reads", what, {"tokens", "features"});
    check_choosing("eval", options.choosing);
    if (flags->no_generate && options.choosing.best_of > 1)
      fail_usage("eval: --best-of chooses among generated answers; leave --no-generate out");
    check_range("--judges", static_cast<double>(options.judges), 0, 1000);
    check_range("--judge-pairs", static_cast<double>(options.judge_pairs), 1, 1e9);
    if (flags->no_generate && options.judges > 0)
      fail_usage("eval: --judges reads generated answers; leave --no-generate out");
    check_range("--max-items", static_cast<double>(options.max_items), -1, 1e12);
    for (const std::string& word : options.overrides)
      if (word.find('=') == std::string::npos) fail_usage("eval: expected key=value, got '{}'", word);
    if (!flags->model.empty()) options.overrides.push_back("model=" + flags->model);
    if (!flags->gemm.empty()) options.overrides.push_back("gemm=" + flags->gemm);
    if (!flags->data.empty()) {
      // A file of its own: nothing of it is split off, and none of the run's files is read beside it.
      for (const char* setting :
           {"data.train=", "data.valid=", "data.valid_fraction=0", "data.test_fraction=0"})
        options.overrides.push_back(setting);
      options.overrides.push_back("data.test=" + flags->data);
      options.split = "test";
    }
    options.generate = !flags->no_generate;
    return run(options);
  };
}

}  // namespace gantrain::cli
