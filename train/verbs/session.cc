#include "train/verbs/session.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "model/weights.h"
#include "train/log/progress.h"

namespace gantrain {

DType choose_dtype(DTypeChoice choice, const Device& device) {
  switch (choice) {
    case DTypeChoice::kF32:
      return DType::kF32;
    case DTypeChoice::kBF16:
      return DType::kBF16;
    case DTypeChoice::kAuto:
      break;
  }
  return device.has_fast_bf16() ? DType::kBF16 : DType::kF32;
}

DeviceChoice device_choice(const TrainConfig& config) {
  return {.kind = config.device, .threads = static_cast<int>(config.threads), .gemm = config.gemm};
}

std::unique_ptr<const Llama> open_llama(Device& device, std::shared_ptr<const Weights> weights,
                                        BasePacking packing, DType dtype) {
  const std::string path = weights->path();
  auto llama = Llama::load(device, with_packing(std::move(weights), packing), dtype, {},
                           packing != BasePacking::kNone);
  if (packing != BasePacking::kNone && llama->packed_parameters() == 0)
    fail(
        "{}: nothing of it lies packed, with model_quantize = \"{}\": expected a .gguf file with packed "
        "tensors, or "
        "a model whose layers are multiples of 32 wide (nf4: 64) to be quantised",
        path, kBasePackingNames[static_cast<size_t>(packing)]);
  return llama;
}

Session open_session(const std::string& model, BasePacking packing, const DeviceChoice& device,
                     DTypeChoice dtype, const DeviceFactory& devices, bool quiet) {
  if (model.empty())
    fail_usage("no model given; --model FOLDER_OR_FILE (or model = \"...\" in the configuration)");
  const auto start = std::chrono::steady_clock::now();
  Session s;
  s.device = devices(device);
  std::shared_ptr<const Weights> weights = open_weights(model);
  for (const std::string& note : weights->notes())
    if (!quiet) fmt::print(stderr, "{}: {}\n", model, note);
  s.tokenizer = open_tokenizer(model);
  const DType type = choose_dtype(dtype, *s.device);
  const std::string format = weights->format();
  s.llama = open_llama(*s.device, std::move(weights), packing, type);
  const LlamaConfig& c = s.llama->config();
  if (s.tokenizer->vocab_size() > c.vocab_size)
    fail("{}: the tokenizer has {} tokens, the model {}; they do not belong together", model,
         s.tokenizer->vocab_size(), c.vocab_size);
  s.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (quiet) return s;
  fmt::print(stderr,
             "model: {} ({}), {:.1f} M parameters, {} layers, width {}, {} in memory as {}, opened in {:.1f} "
             "s\ndevice: {}\n",
             model, format, static_cast<double>(s.llama->parameters()) * 1e-6, c.num_layers, c.hidden_size,
             fmt::format("{:.0f} MB", static_cast<double>(s.llama->weight_bytes()) * 1e-6), dtype_name(type),
             s.load_seconds, s.device->description());
  if (packing != BasePacking::kNone)
    fmt::print(stderr, "packed: {} of {:.1f} M parameters\n", s.llama->packing(),
               static_cast<double>(s.llama->parameters()) * 1e-6);
  return s;
}

namespace {

nlohmann::json state_of(const CheckpointReader& checkpoint) {
  return nlohmann::json::parse(checkpoint.json("state"));
}

// A string of the checkpoint's text "state".
std::string state_text(const CheckpointReader& checkpoint, const char* field) {
  const nlohmann::json state = state_of(checkpoint);
  const auto found = state.is_object() ? state.find(field) : state.end();
  if (found == state.end() || !found->is_string())
    fail("{}: text 'state': expected a string '{}'; another program wrote it, or another version of this one",
         checkpoint.path(), field);
  return found->get<std::string>();
}

}  // namespace

RunChooser load_chooser(const CheckpointReader& checkpoint, const TrainConfig& config, Runner& runner,
                        const ChoosingOptions& options) {
  RunChooser r;
  if (options.best_of == 1) return r;
  const Llama& llama = runner.llama();
  r.discriminator = load_discriminator(checkpoint, config, runner.device(), llama);
  if (!r.discriminator)
    fail_usage("--best-of: {} has no discriminator to choose by: loss.kind is ce", checkpoint.path());
  r.chooser = std::make_unique<Chooser>(runner, *r.discriminator,
                                        feature_layers(config.discriminator, llama.config().num_layers),
                                        options.best_of, config.train.batch, options.temperature);
  return r;
}

TrainConfig checkpoint_config(const CheckpointReader& checkpoint, const std::vector<std::string>& overrides) {
  return parse_train_config(state_text(checkpoint, "config"), checkpoint.path() + " (configuration)",
                            overrides);
}

namespace {

void load_values(const CheckpointReader& checkpoint, ParameterSet& parameters, const std::string& prefix) {
  parameters.load(prefix, false, [&](const std::string& name, Shape shape) {
    const ConstTensor t = checkpoint.tensor(name);
    if (!(t.shape() == shape))
      fail("{}: tensor {}: expected {}, got {}; another configuration wrote it", checkpoint.path(), name,
           to_string(shape), to_string(t.shape()));
    std::vector<float> v(static_cast<size_t>(shape.count()));
    checkpoint.read_into(name, Tensor(v.data(), DType::kF32, shape));
    return v;
  });
}

}  // namespace

std::unique_ptr<Generator> load_generator(const CheckpointReader& checkpoint, const TrainConfig& config,
                                          Device& device, const Llama& llama, bool warm) {
  const std::string base = fmt::format("{:016x}", llama.content_hash()), own = state_text(checkpoint, "base");
  if (own != base)
    fail(
        "{}: was trained on a base model with content hash {}, this one has {}; open it with the model it "
        "was trained on",
        checkpoint.path(), own, base);
  const bool adversarial = state_text(checkpoint, "phase") != "warmup";
  if (warm && !adversarial) return nullptr;
  // What the trainer would deploy: cross-entropy alone has an average behind train.average_from.
  const bool average = adversarial || state_of(checkpoint).value("averaged", int64_t{0}) > 0;
  auto g = Generator::make(device, config, llama, {}, 0, false);
  load_values(checkpoint, g->parameters(), warm ? "warm." : average ? "average." : "generator.");
  return g;
}

std::unique_ptr<Discriminator> load_discriminator(const CheckpointReader& checkpoint,
                                                  const TrainConfig& config, Device& device,
                                                  const Llama& llama) {
  if (config.loss.kind == LossKind::kCe) return nullptr;
  auto d = std::make_unique<Discriminator>(device, config.discriminator, llama.config().hidden_size, 0);
  load_values(checkpoint, d->parameters(), "discriminator.");
  return d;
}

}  // namespace gantrain
