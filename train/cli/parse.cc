#include "train/cli/parse.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "core/check.h"
#include "train/suggest.h"

namespace gantrain::cli {

void add_device_flags(CLI::App& verb, DeviceFlags& flags, const char* default_dtype) {
  flags.dtype = default_dtype;
  verb.add_option("--device", flags.device, "cpu or cuda")->envname("GANTRAIN_DEVICE")->capture_default_str();
  verb.add_option(
          "--dtype", flags.dtype,
          "storage of weights and activations: f32, bf16, or auto: bf16 where the hardware multiplies it")
      ->envname("GANTRAIN_DTYPE")
      ->capture_default_str();
  verb.add_option("--gemm", flags.gemm, kGemmHelp)->capture_default_str();
  verb.add_option("--threads", flags.threads, "CPU threads; 0: one a core")
      ->envname("GANTRAIN_THREADS")
      ->capture_default_str();
}

void add_packing_flag(CLI::App& verb, std::string& packing) {
  verb.add_option("--model-quantize", packing,
                  "how the model's matrices lie in memory: none, file, nf4, q8_0, q4_0 or q4_1 "
                  "(docs/configuration.md); auto: as the run says, else none")
      ->capture_default_str();
}

BasePacking packing_choice(const std::string& packing) {
  const std::vector<std::string> names(std::begin(kBasePackingNames), std::end(kBasePackingNames));
  check_choice("--model-quantize", packing, names);
  return static_cast<BasePacking>(std::find(names.begin(), names.end(), packing) - names.begin());
}

DeviceChoice device_choice(const DeviceFlags& flags) {
  check_choice("--device", flags.device, {"cpu", "cuda"});
  check_choice("--gemm", flags.gemm, {"default", "own", "cublaslt", "auto"});
  check_range("--threads", flags.threads, 0, 1024);
  return {.kind = flags.device == "cpu" ? DeviceKind::kCpu : DeviceKind::kCuda,
          .threads = flags.threads,
          .gemm = flags.gemm == "own"        ? Gemm::kOwn
                  : flags.gemm == "cublaslt" ? Gemm::kCublasLt
                  : flags.gemm == "auto"     ? Gemm::kAuto
                                             : Gemm::kDefault};
}

DTypeChoice dtype_choice(const DeviceFlags& flags) {
  check_choice("--dtype", flags.dtype, {"auto", "f32", "bf16"});
  return flags.dtype == "auto"  ? DTypeChoice::kAuto
         : flags.dtype == "f32" ? DTypeChoice::kF32
                                : DTypeChoice::kBF16;
}

void check_choice(const char* flag, const std::string& value, const std::vector<std::string>& choices) {
  std::string list;
  for (const std::string& choice : choices) {
    if (choice == value) return;
    if (!list.empty()) list += ", ";
    list += choice;
  }
  fail_usage("{}: expected one of {}, got '{}'{}", flag, list, value, did_you_mean(value, choices));
}

void need(bool given, const char* verb, const char* flag) {
  if (!given) fail_usage("{}: {} is needed (gantrain {} --help)", verb, flag, verb);
}

void add_choosing_flags(CLI::App& verb, ChoosingOptions& options) {
  verb.add_option("--best-of", options.best_of,
                  "of so many sampled answers take the one that the run's discriminator scores highest")
      ->capture_default_str();
  verb.add_option(
          "--choose-temperature", options.temperature,
          "with --best-of: 0 takes the highest score; T draws with odds exp(score / T), at 1 those that "
          "the discriminator itself gives an answer of being the reference's equal")
      ->capture_default_str();
}

void check_choosing(const char* verb, const ChoosingOptions& options) {
  check_range("--best-of", static_cast<double>(options.best_of), 1, 256);
  check_range("--choose-temperature", options.temperature, 0.0, 100.0);
  if (options.temperature > 0 && options.best_of == 1)
    fail_usage("{}: --choose-temperature draws among several answers; give --best-of too", verb);
}

void check_range(const char* flag, double value, double low, double high) {
  if (!(value >= low && value <= high))
    fail_usage("{}: expected a number from {} to {}, got {}", flag, low, high, value);
}

}  // namespace gantrain::cli
