// Shared by the verbs' parsers. Each adds its sub-command to the program and returns what to run when the
// command line chose it; the sub-command's options live as long as the returned function.
#pragma once

#include <functional>
#include <string>

#include "train/cli/cli.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace gantrain::cli {

using Action = std::function<int()>;

Action add_train(CLI::App& program, const VerbTable& verbs);
Action add_eval(CLI::App& program, const VerbTable& verbs);
// `command`, `version`: the command line as it was given and the program, for the report.
Action add_compare(CLI::App& program, const VerbTable& verbs, const std::string& command,
                   const std::string& version);
Action add_generate(CLI::App& program, const VerbTable& verbs);
Action add_export(CLI::App& program, const VerbTable& verbs);
Action add_probe(CLI::App& program, const VerbTable& verbs);
Action add_tokenize(CLI::App& program);
Action add_inspect(CLI::App& program);

inline constexpr const char* kGemmHelp =
    "on a GPU, products by our own kernels (own), by cuBLASLt (cublaslt) or by what timing finds faster "
    "(auto); "
    "default: $GANTRAIN_GEMM, else own";
inline constexpr const char* kJudgeReadsHelp =
    "what judges read: tokens (their own embedding of them), features (what the frozen model makes of input "
    "and "
    "answer, as the discriminator does), or both with a comma, which is judges of their own for each; "
    "default tokens";
// --device, --gemm, --dtype and --threads, all but --gemm also read from GANTRAIN_DEVICE, GANTRAIN_DTYPE and
// GANTRAIN_THREADS. The words arrive in strings; the two functions below turn them into values.
struct DeviceFlags {
  std::string device = "cpu", dtype, gemm = "default";
  int threads = 0;
};
// --model-quantize, for verbs that open a model without a run's configuration.
void add_packing_flag(CLI::App& verb, std::string& packing);
BasePacking packing_choice(const std::string& packing);
void add_device_flags(CLI::App& verb, DeviceFlags& flags, const char* default_dtype);
DeviceChoice device_choice(const DeviceFlags& flags);
DTypeChoice dtype_choice(const DeviceFlags& flags);
// --best-of and --choose-temperature; the second throws a usage Error where they are out of range or do not
// go together.
void add_choosing_flags(CLI::App& verb, ChoosingOptions& options);
void check_choosing(const char* verb, const ChoosingOptions& options);

// Throws a usage Error, with a suggestion, unless `value` is one of `choices`.
void check_choice(const char* flag, const std::string& value, const std::vector<std::string>& choices);
// Throws a usage Error when a needed flag was not given.
void need(bool given, const char* verb, const char* flag);
// Throws a usage Error unless low <= value <= high (so never lets NaN pass).
void check_range(const char* flag, double value, double low, double high);

}  // namespace gantrain::cli
