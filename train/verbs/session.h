// A model opened for work: device, weights, tokenizer; and a trained generator out of a checkpoint.
#pragma once

#include "model/runner.h"
#include "model/tokenizer/tokenizer.h"
#include "train/checkpoint/checkpoint.h"
#include "train/networks/discriminator.h"
#include "train/networks/generator.h"
#include "train/play/choosing.h"
#include "train/play/generator_prompts.h"
#include "train/verbs/verbs.h"

namespace gantrain {

struct Session {
  std::unique_ptr<Device> device;
  std::unique_ptr<const Llama> llama;
  std::unique_ptr<Tokenizer> tokenizer;
  double load_seconds = 0;
};
DType choose_dtype(DTypeChoice choice, const Device& device);
// Opens the model; says in a few lines on standard error what was opened, unless `quiet`.
Session open_session(const std::string& model, BasePacking packing, const DeviceChoice& device,
                     DTypeChoice dtype, const DeviceFactory& devices, bool quiet = false);
// The model alone. Its matrices stay packed unless `packing` is kNone.
std::unique_ptr<const Llama> open_llama(Device& device, std::shared_ptr<const Weights> weights,
                                        BasePacking packing, DType dtype);
// The device a run's configuration asks for.
DeviceChoice device_choice(const TrainConfig& config);

// The generator of a checkpoint, with the weights that are deployed, or as it was after its warm-up (nullptr
// if the run had none). Throws Error if the checkpoint belongs to another base model.
std::unique_ptr<Generator> load_generator(const CheckpointReader& checkpoint, const TrainConfig& config,
                                          Device& device, const Llama& llama, bool warm);
// Its discriminator; nullptr if the run is one of cross-entropy alone.
std::unique_ptr<Discriminator> load_discriminator(const CheckpointReader& checkpoint,
                                                  const TrainConfig& config, Device& device,
                                                  const Llama& llama);

// What answers compete by; no chooser where best_of is 1. Throws Error if the run has no discriminator.
struct RunChooser {
  std::unique_ptr<Discriminator> discriminator;
  std::unique_ptr<Chooser> chooser;
};
RunChooser load_chooser(const CheckpointReader& checkpoint, const TrainConfig& config, Runner& runner,
                        const ChoosingOptions& options);

// The configuration a checkpoint was trained with.
TrainConfig checkpoint_config(const CheckpointReader& checkpoint, const std::vector<std::string>& overrides);

}  // namespace gantrain
