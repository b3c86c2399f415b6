// The command line: verbs and flags in, an exit code out (0 fine, 1 failure, 2 usage, 3 out of memory).
// stdout is data, stderr is talk; errors are lines `gantrain: error: ...`.
#pragma once

#include <functional>
#include <string>

#include "train/verbs/verbs.h"

namespace gantrain {

// What the verbs do. A verb without a function is not offered.
struct VerbTable {
  std::function<int(const TrainOptions&)> train;
  std::function<int(const EvalOptions&)> eval;
  std::function<int(const CompareOptions&)> compare;
  std::function<int(const GenerateOptions&)> generate;
  std::function<int(const ProbeOptions&)> probe;
  std::function<int(const ExportOptions&)> export_run;
};

int run_cli(int argc, const char* const* argv, const VerbTable& verbs);

}  // namespace gantrain
