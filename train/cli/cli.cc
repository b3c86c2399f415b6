#include "train/cli/cli.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <new>

#include "core/check.h"
#include "train/cli/parse.h"
#include "train/suggest.h"
#include "train/text.h"

namespace gantrain {
namespace {

#ifndef GANTRAIN_VERSION
#define GANTRAIN_VERSION "unknown"
#endif

std::string version_text() {
  const char* instructions =
#if defined(__AVX512BF16__)
      "AVX-512 with bf16";
#elif defined(__AVX512F__)
      "AVX-512";
#elif defined(__AVX2__)
      "AVX2";
#else
      "baseline";
#endif
  return fmt::format("gantrain {} (g++ {}.{}, {})", GANTRAIN_VERSION, __GNUC__, __GNUC_MINOR__, instructions);
}

// The words as a shell would read them again.
std::string command_line(int argc, const char* const* argv) {
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) words.emplace_back(argv[i]);
  return shell_line(words);
}

// Every "-x" and "--long" of a verb.
std::vector<std::string> flag_names(const CLI::App& verb) {
  std::vector<std::string> names;
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

int parse_and_run(int argc, const char* const* argv, const VerbTable& table) {
  CLI::App program("Adversarial soft-prompt training of a frozen Llama.", "gantrain");
  program.set_help_flag("-h,--help", "print this and leave");
  bool version = false;
  program.add_flag("-V,--version", version, "print the version and leave");
  program.require_subcommand(0, 1);
  std::map<std::string, cli::Action> actions;
  if (table.train) actions["train"] = cli::add_train(program, table);
  if (table.eval) actions["eval"] = cli::add_eval(program, table);
  if (table.compare)
    actions["compare"] = cli::add_compare(program, table, command_line(argc, argv), version_text());
  if (table.generate) actions["generate"] = cli::add_generate(program, table);
  if (table.export_run) actions["export"] = cli::add_export(program, table);
  if (table.probe) actions["probe"] = cli::add_probe(program, table);
  actions["tokenize"] = cli::add_tokenize(program);
  actions["inspect"] = cli::add_inspect(program);
  program.add_subcommand("version", "print the version");
  actions["version"] = [] {
    fmt::print("{}\n", version_text());
    return 0;
  };
  std::vector<std::string> verbs;
  for (CLI::App* verb : program.get_subcommands([](CLI::App*) { return true; })) {
    verbs.push_back(verb->get_name());
    verb->allow_extras();  // so that an unknown flag gets a suggestion below
    verb->prefix_command(false);
  }

  // An unknown verb gets a suggestion, not CLI11's "unexpected argument".
  if (argc >= 2 && argv[1][0] != '-' && !actions.contains(argv[1]))
    fail_usage("unknown verb '{}'{} (gantrain --help lists them)", argv[1], did_you_mean(argv[1], verbs));
  try {
    program.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", program.help());  // of the chosen verb, if there is one
    return 0;
  } catch (const CLI::ExtrasError&) {
    const std::vector<std::string> words = program.remaining();
    const std::string word = words.empty() ? std::string(argv[1]) : words[0];
    fail_usage("unknown flag '{}'{} (gantrain --help)", word, did_you_mean(word, flag_names(program)));
  } catch (const CLI::ParseError& error) {
    fail_usage("{}", error.what());
  }
  if (version) return actions.at("version")();
  const std::vector<CLI::App*> chosen = program.get_subcommands();
  if (chosen.empty()) {
    fmt::print(stderr, "{}", program.help());
    return 2;
  }
  const CLI::App& verb = *chosen[0];
  if (const std::vector<std::string> words = verb.remaining(); !words.empty()) {
    const std::string flag = words[0].substr(0, words[0].find('='));
    const std::vector<std::string> known = flag_names(verb);
    fail_usage("{}: unknown {} '{}'{} (gantrain {} --help)", verb.get_name(),
               flag.starts_with('-') ? "flag" : "word", flag, did_you_mean(flag, known), verb.get_name());
  }
  return actions.at(verb.get_name())();
}

}  // namespace

int run_cli(int argc, const char* const* argv, const VerbTable& verbs) {
  try {
    const int code = parse_and_run(argc, argv, verbs);
    // Data that never reached its file or pipe is a failure, whatever was computed.
    if (std::fflush(stdout) != 0 || std::ferror(stdout))
      fail("standard output cannot be written: {}", std::strerror(errno));
    return code;
  } catch (const Error& error) {
    std::fflush(stdout);
    fmt::print(stderr, "gantrain: error: {}\n", error.what());
    return error.exit_code();
  } catch (const std::bad_alloc&) {
    fmt::print(stderr,
               "gantrain: error: out of memory; a smaller train.batch, dtype=bf16 or train.recompute=layer "
               "needs less\n");
    return static_cast<int>(ErrorKind::kOutOfMemory);
  } catch (const std::exception& error) {
    fmt::print(stderr, "gantrain: error: {}\n", error.what());
    return static_cast<int>(ErrorKind::kFailure);
  }
}

}  // namespace gantrain
