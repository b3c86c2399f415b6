// Arms of an evaluation: the same items under no prompt, the warm prompt, the trained one; and their figures
// as JSON.
#pragma once

#include <string>
#include <vector>

#include "train/play/evaluate.h"
#include "train/play/judging.h"

namespace gantrain {

struct Arm {
  std::string name;  // "no prompt", "warm", "trained"
  PromptMaker* maker;
};
struct ArmSettings {
  Placement placement = Placement::kPrefix;
  int64_t batch = 8;
  std::vector<double> temperatures;
  int64_t samples = 1;  // texts an item and temperature
  int64_t max_new = 64;
  int64_t max_generate = 100;  // items texts are generated for
  uint64_t seed = 1;
  bool generate = true;
  std::string drift_text;      // may be empty
  int64_t judges = 0;          // fresh judges a temperature; 0: none
  int64_t judge_pairs = 2000;  // held out, of `merged`; they learn from twice as many of judge_train
  ExampleSpan judge_train;
  bool judge_tokens = true, judge_features = false;  // what they read: judges of their own for each
  Chooser* chooser = nullptr;                        // texts and judged answers are each one of several
  int feature_layers = 0;                            // of the base, that the latter are read behind
};
struct ArmResult {
  std::string name;
  LossResult loss;
  double label_accuracy = -1;             // -1: not a classification task
  std::vector<TextScores> texts;          // one a temperature
  std::vector<Verdict> verdicts;          // of judges that read tokens, one a temperature
  std::vector<Verdict> feature_verdicts;  // of judges that read the frozen model's features
  double drift = -1;                      // cross-entropy on the second text; -1: not asked for
  std::vector<std::string> samples;       // the first items' texts at the first temperature
};

// `items`: every item, for loss and labels. `merged`: one an input, all its references, for generated text.
ArmResult evaluate_arm(Runner& runner, const Tokenizer& tokenizer, const Arm& arm, ExampleSpan items,
                       ExampleSpan merged, const std::vector<std::vector<int32_t>>& labels,
                       const ArmSettings& settings);

// The arm "no prompt", which the runs of one comparison have in common. A file in `folder` has it where one
// of them asked for the same: this base (`base` names its weights, type and device), items and settings. Else
// it is measured and left there, whole or not at all. Judges and a second text are not kept: an Error.
ArmResult evaluate_untrained(const std::string& folder, const std::string& base, Runner& runner,
                             const Tokenizer& tokenizer, ExampleSpan items, ExampleSpan merged,
                             const std::vector<std::vector<int32_t>>& labels, const ArmSettings& settings);

// The same as a JSON object.
std::string to_json(const ArmResult& result);
// A table for people: a line an arm, a block a temperature.
std::string arms_table(const std::vector<ArmResult>& results);

}  // namespace gantrain
