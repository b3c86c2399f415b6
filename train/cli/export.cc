#include <CLI/CLI.hpp>
#include <memory>

#include "core/check.h"
#include "train/cli/parse.h"

namespace gantrain::cli {

Action add_export(CLI::App& program, const VerbTable& verbs) {
  struct Flags {
    ExportOptions options;
    std::string device = "cpu";
  };
  auto flags = std::make_shared<Flags>();
  ExportOptions& o = flags->options;
  CLI::App& verb = *program.add_subcommand("export", "write what a run trained as files of other programs");
  verb.footer("Example: gantrain export --run runs/reviews --format peft --output reviews-peft --verify");
  verb.add_option("-r,--run", o.run, "run folder or checkpoint file");
  verb.add_option("-m,--model", o.model, "the frozen model, when it has moved since the training");
  verb.add_option(
          "-f,--format", o.format,
          "peft: an adapter folder; merged: the model with the adapter in its weights, a Hugging Face "
          "folder; gguf-lora: an adapter file of llama.cpp")
      ->capture_default_str();
  verb.add_option("-o,--output", o.output, "folder to write; gguf-lora: file");
  verb.add_option("--weights", o.weights, "merged: f32 or bf16")->capture_default_str();
  verb.add_option("-p,--prompt", o.prompt, "a conditional generator's input");
  verb.add_option("-i,--input", o.input_file,
                  "one input a line, each into a folder of its own: OUTPUT/1, OUTPUT/2, ...");
  verb.add_option("-s,--seed", o.seed, "of the generator's noise")->capture_default_str();
  verb.add_flag("--verify", o.verify, "read what was written and hold its logits against the run's");
  verb.add_option("--device", flags->device, "cpu or cuda")
      ->envname("GANTRAIN_DEVICE")
      ->capture_default_str();
  verb.add_option("--threads", o.device.threads, "CPU threads; 0: one a core")
      ->envname("GANTRAIN_THREADS")
      ->capture_default_str();
  return [flags, run = verbs.export_run] {
    ExportOptions& options = flags->options;
    need(!options.run.empty(), "export", "--run");
    need(!options.output.empty(), "export", "--output");
    check_choice("--format", options.format, {"peft", "merged", "gguf-lora"});
    check_choice("--weights", options.weights, {"f32", "bf16"});
    check_range("--seed", static_cast<double>(options.seed), 0, 9.3e18);
    if (!options.prompt.empty() && !options.input_file.empty())
      fail_usage("export: --prompt and --input: give one or the other");
    DeviceFlags device{.device = flags->device, .dtype = "f32", .threads = options.device.threads};
    options.device = device_choice(device);
    return run(options);
  };
}

}  // namespace gantrain::cli
