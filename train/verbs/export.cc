#include <cmath>
#include <filesystem>
#include <fstream>

#include "core/rng.h"
#include "model/adapters/merge.h"
#include "model/adapters/trained_weights.h"
#include "train/checkpoint/run_folder.h"
#include "train/data/template.h"
#include "train/verbs/dataset.h"
#include "train/verbs/session.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;

// Logits of the model on token ids drawn by a fixed key: two sequences of 24 rows, each token of each.
std::vector<float> test_logits(Device& device, const Llama& llama, ConstTensor prompt, int64_t count,
                               const Adapters& adapters) {
  PackedBatch batch = batch_behind(adapters);
  std::vector<int32_t> rows;
  const int32_t parent = count > 0 ? batch.add_prompt(0, count) : -1;
  for (uint64_t s = 0; s < 2; ++s) {
    std::vector<int32_t> ids;
    for (uint64_t i = 0; i < 24; ++i)
      ids.push_back(static_cast<int32_t>(
          uint64_t{Philox{17}(s, i)[0]} * static_cast<uint64_t>(llama.config().vocab_size) >> 32));
    const int32_t segment = batch.add(parent, ids);
    for (int32_t i = 0; i < batch.segment(segment).rows; ++i)
      rows.push_back(batch.segment(segment).row_begin + i);
  }
  Runner runner(device, llama);
  runner.forward(batch, prompt, Saving::kNothing, -1, adapters, {.read = rows, .gradient = {}});
  return runner.logits(rows);
}

struct Difference {
  double largest = 0, logit = 0;  // largest |difference|, largest |logit|
};
Difference compare(const std::vector<float>& a, const std::vector<float>& b) {
  Difference d;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = a[i], y = b.at(i);
    if (!std::isfinite(x) || !std::isfinite(y)) fail("--verify: logit {} is not finite: {} and {}", i, x, y);
    d.largest = std::max(d.largest, std::abs(x - y));
    d.logit = std::max(d.logit, std::abs(x));
  }
  return d;
}
// share 0: the same bits.
void accept(const std::string& what, const Difference& d, double share) {
  if (!(d.largest <= share * d.logit))
    fail("{}: read again, its logits are off by {:.3g} of at most {:.3g}; expected {}", what, d.largest,
         d.logit, share == 0 ? "none" : fmt::format("{:.3g} at most", share * d.logit));
  fmt::print(stderr, "verified: {}: largest difference of a logit {:.3g}, largest logit {:.3g}\n", what,
             d.largest, d.logit);
}

std::vector<std::string> input_lines(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail("{}: cannot open", path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  if (lines.empty()) fail("{}: no line", path);
  return lines;
}

// What a run trained has its form in other programs, or none.
void refuse_format(Method method, const std::string& format) {
  const auto refuse = [&](const char* why) {
    fail_usage("export: --format {}: this run has method {}: {}", format,
               kMethodNames[static_cast<size_t>(method)], why);
  };
  if (method == Method::kFull && format != "merged")
    refuse("it trained the weights themselves; expected --format merged");
  if (method == Method::kPrefix && format != "peft")
    refuse("keys and values in front of a layer's are no change of weights; expected --format peft");
  if (method == Method::kAdapter && format != "peft")
    refuse(
        "a bottleneck has a nonlinearity and cannot be merged into weights, and llama.cpp has no such "
        "adapter; "
        "expected --format peft, a folder that gantrain reads");
}

// The trained weights of a generator that has them all, as a model of its own.
void write_trained(const std::string& folder, const Llama& base, Generator& generator, Device& device,
                   DType dtype) {
  struct Place {
    size_t tensor;
    int64_t first;
  };
  std::map<std::string, Place> places;
  const std::vector<TrainedTensor> tensors = trained_tensors(base);
  for (size_t i = 0; i < tensors.size(); ++i) {
    int64_t first = 0;
    for (const TrainedTensor::Part& p : tensors[i].parts) {
      places[p.name] = {i, first};
      first += p.shape.count();
    }
  }
  write_model(folder, base.weights(), dtype, [&](const TensorEntry& e, std::vector<float>& values) {
    const Place& place = places.at(e.name);
    const ConstTensor all = std::as_const(generator).parameters().value(place.tensor);
    device.copy_out(values.data(),
                    all.view({all.count()}).rows(place.first, static_cast<int64_t>(values.size())));
  });
}

}  // namespace

int run_export(const ExportOptions& options, const DeviceFactory& devices) {
  const CheckpointReader checkpoint(find_checkpoint(options.run).string());
  TrainConfig config = checkpoint_config(checkpoint, {});
  const std::string model = options.model.empty() ? config.model : options.model;
  // f32: what is written is f32, and --verify compares without the rounding of a storage type.
  Session session = open_session(model, config.model_quantize, options.device, DTypeChoice::kF32, devices);
  Device& device = *session.device;
  const Llama& llama = *session.llama;
  const LlamaConfig& shape = llama.config();
  const std::unique_ptr<Generator> generator = load_generator(checkpoint, config, device, llama, false);

  if (!has_prompt(config.method)) {
    if (!options.prompt.empty() || !options.input_file.empty())
      fail_usage(
          "export: --prompt and --input are for generators that read their input; this run trained "
          "adapters, the same for all inputs");
    refuse_format(config.method, options.format);
    generator->forward({});
    const Adapters trained = generator->adapter();
    const std::vector<float> expected =
        options.verify ? test_logits(device, llama, {}, 0, trained) : std::vector<float>();
    const DType dtype = options.weights == "f32" ? DType::kF32 : DType::kBF16;
    if (trained.weights) {
      write_trained(options.output, llama, *generator, device, dtype);
      if (options.verify) {
        const auto again = Llama::load(device, open_weights(options.output), DType::kF32);
        accept(options.output, compare(expected, test_logits(device, *again, {}, 0, nullptr)),
               dtype == DType::kF32 ? 0 : 0.05);  // bf16: every weight is rounded by up to 2^-8 of itself
      }
      fmt::print(stderr, "written: {}\n", options.output);
      return 0;
    }
    const PeftAdapter adapter = adapter_from_device(device, trained);
    if (options.format == "peft") {
      write_peft(options.output, adapter, shape, model);
      if (options.verify) {
        const OwnedAdapter again(device, shape, read_peft(options.output, shape), false);
        accept(options.output, compare(expected, test_logits(device, llama, {}, 0, again.adapters())), 0);
      }
      if (trained.bottleneck)
        fmt::print(stderr,
                   "note: PEFT has no bottleneck adapters; gantrain alone reads this folder (--adapter)\n");
    } else if (options.format == "gguf-lora") {
      write_lora_gguf(options.output, adapter, shape);
      if (options.verify) {
        // rsLoRA's scale comes back as alpha / rank: rounded once more, and with it every product.
        const auto again = lora_on_device(device, shape, read_lora_gguf(options.output, shape), false);
        accept(options.output, compare(expected, test_logits(device, llama, {}, 0, &again->adapter())),
               adapter.shape.rslora ? 1e-5 : 0);
      }
    } else {
      // Into the values of the base that was trained over: those of its blocks, where it was quantised.
      write_merged(options.output, *with_packing(open_weights(model), config.model_quantize), adapter, dtype);
      if (options.verify) {
        // f32: W x + s B A x and (W + s B A) x are sums of the same terms in another order, some 1e-6 of the
        // largest logit; bf16: every weight is rounded by up to 2^-8 of itself.
        const auto merged = Llama::load(device, open_weights(options.output), DType::kF32);
        accept(options.output, compare(expected, test_logits(device, *merged, {}, 0, nullptr)),
               dtype == DType::kF32 ? 1e-4 : 0.05);
      }
    }
    fmt::print(stderr, "written: {}\n", options.output);
    return 0;
  }

  if (options.format != "peft")
    fail_usage(
        "export: --format {}: this run trained a soft prompt, which is no change of weights; expected "
        "--format peft",
        options.format);
  const bool per_input = generator->reads_input();
  const std::vector<std::string> inputs =
      !options.input_file.empty() ? input_lines(options.input_file) : std::vector{options.prompt};
  if (per_input && options.prompt.empty() && options.input_file.empty())
    fail_usage(
        "export: this generator makes a prompt for each input: give one with --prompt TEXT, or a file of "
        "them with --input FILE");
  if (!per_input && (!options.prompt.empty() || !options.input_file.empty()))
    fail_usage("export: this generator does not read its input: leave --prompt and --input out");

  Runner runner(device, llama);
  GeneratorPrompts maker(runner, *generator, config.generator);
  for (size_t i = 0; i < inputs.size(); ++i) {
    TokenizedExample example;
    if (per_input)
      example.prompt = tokenize_prompt(prompt_of_text(inputs[i], config.data.prompt_template),
                                       *session.tokenizer, config.data);
    example.line = static_cast<int64_t>(i) + 1;
    const std::vector<const TokenizedExample*> one{&example};
    // The noise of `gantrain generate --seed` in front of its i-th prompt.
    const Prompts made = maker.make(one, derive_key(static_cast<uint64_t>(options.seed), 2, i));
    PeftAdapter adapter;
    adapter.type = config.method == Method::kPtuning ? "P_TUNING" : "PROMPT_TUNING";
    adapter.encoder_hidden = config.generator.hidden;
    const ConstTensor rows = made.view().rows(0, made.count);
    adapter.prompt = download(device, rows.view({rows.count()}));
    const std::string folder = options.input_file.empty()
                                   ? options.output
                                   : (fs::path(options.output) / fmt::format("{}", i + 1)).string();
    write_peft(folder, adapter, shape, model);
    if (options.verify) {
      PeftPrompts again(device, shape, read_peft(folder, shape));
      const Prompts read = again.make(one, 0);
      accept(folder,
             compare(test_logits(device, llama, rows, made.count, nullptr),
                     test_logits(device, llama, read.view(), read.count, nullptr)),
             0);
    }
    fmt::print(stderr, "written: {}\n", folder);
  }
  if (config.generator.placement == Placement::kSuffix)
    fmt::print(stderr, "note: this run placed its prompt after the input; PEFT places it before\n");
  return 0;
}

}  // namespace gantrain
