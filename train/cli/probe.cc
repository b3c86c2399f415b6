#include <CLI/CLI.hpp>
#include <memory>

#include "train/cli/parse.h"

namespace gantrain::cli {

Action add_probe(CLI::App& program, const VerbTable& verbs) {
  struct Flags {
    ProbeOptions options;
    DeviceFlags device;
    std::string packing = "auto";
  };
  auto flags = std::make_shared<Flags>();
  ProbeOptions& o = flags->options;
  CLI::App& verb = *program.add_subcommand(
      "probe", "logits, loss and soft-prompt gradient of given tokens, for other programs");
  verb.footer(
      "Tensors in: tokens, lengths, labels, soft_prompt; out: logits, loss, soft_prompt_grad. See "
      "docs/cli.md.");
  verb.add_option("-m,--model", o.model, "the frozen model");
  verb.add_option("-i,--input", o.input,
                  "safetensors file with tokens, and perhaps lengths, labels, soft_prompt");
  verb.add_option("-o,--output", o.output, "safetensors file to write");
  verb.add_option("--adapter", o.adapter, "PEFT folder: its gradients are written too");
  add_packing_flag(verb, flags->packing);
  verb.add_flag("--weights", o.weights, "write the gradient of every weight of the model too, in f32");
  add_device_flags(verb, flags->device, "f32");
  return [flags, run = verbs.probe] {
    ProbeOptions& options = flags->options;
    need(!options.model.empty(), "probe", "--model");
    need(!options.input.empty(), "probe", "--input");
    need(!options.output.empty(), "probe", "--output");
    options.device = device_choice(flags->device);
    options.dtype = dtype_choice(flags->device);
    options.packing = packing_choice(flags->packing);
    return run(options);
  };
}

}  // namespace gantrain::cli
