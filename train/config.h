// The resolved configuration of one training run. Every key, its type, range, default and one line of
// documentation stand in ONE table (config.cc): reading, checking, writing, --help-config and
// docs/configuration.md all come from it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/ops/adversarial.h"
#include "core/ops/trainable.h"
#include "model/packing.h"

namespace gantrain {

enum class DTypeChoice : uint8_t { kAuto, kF32, kBF16 };
enum class Tristate : uint8_t { kAuto, kYes, kNo };
enum class DataFormat : uint8_t { kAuto, kJsonl, kTsv, kCsv, kLines };
enum class TextEncoding : uint8_t { kUtf8, kLatin1 };
enum class ChatTemplateChoice : uint8_t { kNone, kAuto, kChatML, kLlama2, kLlama3 };
enum class BadItems : uint8_t { kError, kDrop };
enum class Duplicates : uint8_t { kError, kDrop };
enum class Method : uint8_t { kGan, kPrompt, kPtuning, kLora, kQlora, kPrefix, kAdapter, kFull };
inline constexpr const char* kMethodNames[] = {"gan",   "prompt", "ptuning", "lora",
                                               "qlora", "prefix", "adapter", "full"};
// Low-rank adapters; kQlora: over a base that stays packed.
constexpr bool trains_lora(Method m) { return m == Method::kLora || m == Method::kQlora; }
// Whether what is trained stands before the input as rows of its own; else it is on the model.
constexpr bool has_prompt(Method m) {
  return m == Method::kGan || m == Method::kPrompt || m == Method::kPtuning;
}
enum class GeneratorKind : uint8_t { kStatic, kMlp, kConditional };
enum class PromptInit : uint8_t { kText, kVocabulary };
enum class Placement : uint8_t { kPrefix, kSuffix };
enum class LossKind : uint8_t { kCe, kRloo, kGumbel };
enum class Weighting : uint8_t { kLeaveOneOut, kSoftmax };
enum class Credit : uint8_t { kAnswer, kToken };
enum class Schedule : uint8_t { kCosine, kLinear, kConstant };
// What each layer's backward computes again (Saving of model/activations.h).
enum class Recompute : uint8_t { kNone, kGateUp, kMlp, kLayer };
inline constexpr const char* kRecomputeNames[] = {"none", "gate_up", "mlp", "layer"};

struct DataConfig {
  std::string train, valid, test;
  DataFormat format = DataFormat::kAuto;
  TextEncoding encoding = TextEncoding::kUtf8;
  std::string prompt_template, completion_template;
  std::vector<std::string> columns;
  Tristate header = Tristate::kAuto;
  std::string delimiter;
  std::string line_pattern = "{label} {text}";
  std::map<std::string, std::string> label_map;
  std::string label_column = "label";
  ChatTemplateChoice chat_template = ChatTemplateChoice::kNone;
  std::string system;
  int64_t max_prompt_tokens = 512, max_completion_tokens = 256;
  Tristate add_bos = Tristate::kAuto;
  bool append_eos = true;
  double valid_fraction = 0.0, test_fraction = 0.0;
  BadItems bad_items = BadItems::kError;
  Duplicates duplicates = Duplicates::kError;
  int64_t max_train_items = 0, max_valid_items = 0;
  bool bucket = true;
};

struct GeneratorConfig {
  GeneratorKind kind = GeneratorKind::kConditional;
  int64_t prompt_length = 20;
  PromptInit init = PromptInit::kVocabulary;
  std::string init_text;
  int64_t width = 256, blocks = 1, noise_dim = 32, hidden = 512;
  int64_t feature_layer = 0;
  Placement placement = Placement::kPrefix;
  double norm_penalty = 1e-3;
};

struct LoraConfig {
  int64_t rank = 8;
  double alpha = 16.0;
  bool rslora = false;
  std::vector<std::string> targets = {"q", "v"};
  double dropout = 0.0;
};

struct PrefixConfig {
  int64_t length = 20;
  bool projection = false;
  int64_t hidden = 512;
};

struct BottleneckConfig {
  int64_t width = 64;
  Activation activation = Activation::kGelu;
  std::vector<std::string> places = {"mlp"};
};

struct DiscriminatorConfig {
  int64_t feature_layer = -1;
  int64_t width = 256;
  PairLossKind loss = PairLossKind::kRelativistic;
  double gamma = 1.0, gamma_end = 0.1;
  double sigma = 0.07;
  double center_penalty = 1e-3;
  double label_smoothing = 0.1;
  bool spectral_norm = false;
  double replay = 0.25;
};

struct LossConfig {
  LossKind kind = LossKind::kRloo;
  double alpha = 1.0, alpha_end = 0.1;
  double beta = -1.0;
  int64_t samples = 8;
  Weighting weighting = Weighting::kLeaveOneOut;
  Credit credit = Credit::kToken;
  double reward_temperature = 1.0;
  double tau = 1.0, tau_end = 0.5;
  int64_t top_k = 64;
};

// In a loaded configuration the values "chosen by" other keys are already filled in.
struct OptimizerConfig {
  double lr = 0.0, lr_end = -1.0;
  double lr_ce = 0.0;
  double lr_d = 1e-3, lr_d_end = 2e-4;
  double beta1 = -1.0, beta2 = -1.0;
  double eps = 1e-8;
  double weight_decay = 0.0;
  double clip = 1.0;
  int64_t warmup_steps = 10;
  Schedule schedule = Schedule::kCosine;
};

struct TrainingConfig {
  double epochs = 3.0;
  int64_t steps = 0;
  int64_t batch = 8, accumulate = 1;
  int64_t warmup_ce_steps = 200, discriminator_steps = 200;
  int64_t discriminator_samples = 0;  // 0: loss.samples
  double target_low = 0.65, target_high = 0.80;
  double gate_d = 0.80, gate_g = 0.55, gate_ema = 0.9;
  bool gate_ce = true;
  bool hold_d = false;
  double ema = 0.999;
  int64_t average_from = -1;
  int64_t max_new_tokens = 64;
  Recompute recompute = Recompute::kNone;
  int64_t context_cache = int64_t{256} << 20;
  int64_t eval_every = 200, save_every = 200, keep = 2;
};

struct EvalConfig {
  std::vector<double> temperatures = {0.7, 0.85, 1.0};
  int64_t samples = 4;
  int64_t max_items = 200;
};

struct TrainConfig {
  std::string model;
  Method method = Method::kGan;
  BasePacking model_quantize = BasePacking::kAuto;  // loaded: never kAuto
  std::string adapter;
  DeviceKind device = DeviceKind::kCpu;
  Gemm gemm = Gemm::kDefault;
  DTypeChoice dtype = DTypeChoice::kAuto;
  int64_t threads = 0;
  int64_t seed = 1;
  std::string output;
  int64_t memory_limit = 0;
  DataConfig data;
  GeneratorConfig generator;
  LoraConfig lora;
  PrefixConfig prefix;
  BottleneckConfig bottleneck;
  DiscriminatorConfig discriminator;
  LossConfig loss;
  OptimizerConfig optimizer;
  TrainingConfig train;
  EvalConfig eval;
};

// Positions that what is trained takes before the input.
inline int64_t positions_before(const TrainConfig& c) {
  return c.method == Method::kPrefix ? c.prefix.length : c.generator.prompt_length;
}

// Reads a TOML file (or none: an empty path), then lays `overrides` ("section.key=value", in order) over it,
// fills in the values chosen by other keys and checks ranges and the keys against each other. A value in an
// override may be bare (train.batch=8, data.train=my file.jsonl) or TOML ("a\tb", [0.7, 1.0], {"0"="no"}); a
// list may be bare words with commas. Throws Error of kind usage with file, line, key, expected and got;
// unknown keys come with a suggestion.
// `own`: settings of one run among several that share file and overrides: they win over both, and a shared
// one that this run's method has no use for is no contradiction.
TrainConfig load_train_config(const std::filesystem::path& file,
                              const std::vector<std::string>& overrides = {},
                              const std::vector<std::string>& own = {});

// The same over TOML text already in memory; `name` stands for the file in messages.
TrainConfig parse_train_config(std::string_view text, const std::string& name,
                               const std::vector<std::string>& overrides = {},
                               const std::vector<std::string>& own = {});

// Every key with its value, as TOML that loads back to the same configuration.
std::string to_toml(const TrainConfig& config);

// What `to` changes, a line a key: "train.batch: 8 -> 16". Without `output` and `threads`, which a continued
// run may have otherwise.
std::vector<std::string> config_changes(const TrainConfig& from, const TrainConfig& to);

// One line a key: name, type and range, default, meaning; for terminals.
std::string config_help();

// The same as a Markdown page (docs/configuration.md).
std::string config_markdown();

// Bytes from "8GiB", "512 MB", "1000": KB, MB, GB, TB are powers of 1000; KiB, ... of 1024.
int64_t parse_bytes(const std::string& text, const std::string& place);

}  // namespace gantrain
