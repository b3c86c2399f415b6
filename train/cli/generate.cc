#include <CLI/CLI.hpp>
#include <memory>

#include "core/check.h"
#include "train/cli/parse.h"

namespace gantrain::cli {

Action add_generate(CLI::App& program, const VerbTable& verbs) {
  struct Flags {
    GenerateOptions options;
    DeviceFlags device;
    std::string packing = "auto";
  };
  auto flags = std::make_shared<Flags>();
  GenerateOptions& o = flags->options;
  CLI::App& verb =
      *program.add_subcommand("generate", "continue prompts, with or without a trained soft prompt");
  verb.footer(
      "Example: gantrain generate --model smollm2.gguf --prompt \"Once upon a time\" --max-new 40 --seed 7");
  verb.add_option("-m,--model", o.model,
                  "the frozen model; with --checkpoint: when it has moved since the training");
  verb.add_option("-c,--checkpoint", o.checkpoint, "run folder or checkpoint file: use what it trained");
  verb.add_option("--adapter", o.adapter,
                  "PEFT folder (PROMPT_TUNING, P_TUNING, PREFIX_TUNING or LORA), or a folder of bottleneck "
                  "adapters: use it");
  // One value a flag: a prompt may look like anything, the next word included.
  verb.add_option("-p,--prompt", o.prompts, "text to continue; may be given several times")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  verb.add_option("-i,--input", o.input_file, "a file with one prompt a line; -: standard input");
  verb.add_option("-n,--max-new", o.max_new, "tokens at most")->capture_default_str();
  verb.add_option("--samples", o.samples, "answers a prompt")->capture_default_str();
  verb.add_option("-t,--temperature", o.temperature, "0 is greedy")->capture_default_str();
  verb.add_option("--top-k", o.top_k, "sample from the k likeliest tokens; 0: all")->capture_default_str();
  verb.add_option("--top-p", o.top_p, "sample from the likeliest tokens of this total probability; 1: all")
      ->capture_default_str();
  verb.add_option("-s,--seed", o.seed, "the same seed gives the same text")->capture_default_str();
  add_choosing_flags(verb, o.choosing);
  verb.add_flag("--json", o.json,
                "one JSON object a line: prompt, ids, text, finish reason, with --best-of the score");
  verb.add_flag("--raw", o.raw,
                "with --checkpoint: the text is the whole prompt; else it fills the run's prompt_template");
  verb.add_option("--chat-template", o.chat_template,
                  "none, auto, chatml, llama2 or llama3: each prompt is a user's turn")
      ->capture_default_str();
  verb.add_option("--system", o.system, "system message of the chat template");
  add_packing_flag(verb, flags->packing);
  add_device_flags(verb, flags->device, "auto");
  return [flags, run = verbs.generate] {
    GenerateOptions& options = flags->options;
    need(!options.model.empty() || !options.checkpoint.empty(), "generate", "--model or --checkpoint");
    if (!options.checkpoint.empty() && !options.adapter.empty())
      fail_usage("generate: --checkpoint and --adapter: give one or the other");
    need(!options.prompts.empty() || !options.input_file.empty(), "generate", "--prompt or --input");
    if (!options.prompts.empty() && !options.input_file.empty())
      fail_usage("generate: --prompt and --input: give one or the other");
    check_range("--max-new", static_cast<double>(options.max_new), 1, 1 << 20);
    check_range("--samples", static_cast<double>(options.samples), 1, 65536);
    check_range("--temperature", options.temperature, 0.0, 100.0);
    check_choosing("generate", options.choosing);
    if (options.choosing.best_of > 1) {
      if (options.checkpoint.empty())
        fail_usage("generate: --best-of chooses by the discriminator of a run; give --checkpoint");
      if (options.temperature == 0)
        fail_usage("generate: --temperature 0 gives one answer alone; --best-of chooses among sampled ones");
    }
    check_range("--top-k", static_cast<double>(options.top_k), 0, 1 << 24);
    check_range("--top-p", options.top_p, 1e-6, 1.0);
    check_range("--seed", static_cast<double>(options.seed), 0, 9.3e18);
    check_choice("--chat-template", options.chat_template, {"none", "auto", "chatml", "llama2", "llama3"});
    options.device = device_choice(flags->device);
    options.dtype = dtype_choice(flags->device);
    options.packing = packing_choice(flags->packing);
    return run(options);
  };
}

}  // namespace gantrain::cli
