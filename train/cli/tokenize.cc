#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "core/check.h"
#include "model/tokenizer/tokenize_command.h"
#include "train/cli/parse.h"

namespace gantrain::cli {

Action add_tokenize(CLI::App& program) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App& verb = *program.add_subcommand("tokenize", "text to token ids and back, a JSON value a line");
  verb.footer(
      "Reads JSON strings from standard input and writes JSON arrays of ids; --decode the other way round.");
  verb.add_option("-m,--model", options->model, "model or tokenizer file, or a model's folder");
  verb.add_flag("--decode", options->decode, "ids to text");
  verb.add_flag("--special", options->special, "added tokens in the text are recognised");
  return [options] {
    need(!options->model.empty(), "tokenize", "--model");
    std::ios::sync_with_stdio(false);
    const int code = tokenize_command(*options, std::cin, std::cout);
    std::cout.flush();
    if (!std::cout) fail("standard output cannot be written");
    return code;
  };
}

}  // namespace gantrain::cli
