// The parts of `gantrain compare` that are not processes: what the methods' names mean, which runs there are,
// and what their results come to.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/verbs/verbs.h"

namespace gantrain {

// One thing that is compared. `settings` are "key=value" words over the base configuration.
struct ComparedArm {
  std::string name;  // as in tables and folders: letters, digits and . _ + -
  std::vector<std::string> settings;
  int64_t shots = 0;   // few-shot: examples before every input
  bool trains = true;  // false: zero-shot and few-shot, measured and not trained
};

// "METHOD", "METHOD+LOSS" (a method and a loss of the configuration; without a loss cross-entropy, for `gan`
// the policy gradient; `placebo`: that with a discriminator that never learns), "zero-shot", "few-shot:K".
// Throws Error of kind usage with a suggestion.
ComparedArm parse_method(const std::string& text);
// "NAME: METHOD KEY=VALUE ...", words parted by spaces. Throws Error of kind usage, also where a setting
// would make the comparison unequal (data, batches, steps, model, seed).
ComparedArm parse_arm(const std::string& text);

// A prompt template with `shots` of the configuration's training items before every input, drawn by the
// seed: over the labels in turn where there are at most 16 different completions, else over all. Throws Error
// where the data are chats or there are too few items.
std::string few_shot_template(const DataConfig& data, int64_t shots, uint64_t seed);

// Figures of one run: "ce", "bleu", "train_seconds", ... from its summary.json and, if there is one,
// eval.json. Those that a run does not have are left out.
std::map<std::string, double> run_figures(const nlohmann::json& summary, const nlohmann::json& eval);
// Why a finished run counts as collapsed, or "": a loss above that of the model without it, or an alarm about
// self-BLEU, length or cross-entropy.
std::string collapse_of(const nlohmann::json& summary);

// Over a list of runs (objects with budget, arm, seed, status, figures): medians and quartiles a budget and
// arm, in the order they first appear.
nlohmann::json summarise_runs(const nlohmann::json& runs);
// The columns of the tables, in their order: key, title, decimals, and what a value is multiplied by.
nlohmann::json compared_figures();
// About {"from": step, "arms": names}: arms of cross-entropy alone that `gantrain compare` has keep an
// average.
std::string averaged_text(const nlohmann::json& averaged);
// Tables for people and for papers.
std::string compare_markdown(const nlohmann::json& comparison);
std::string compare_csv(const nlohmann::json& comparison);
// One run in the shape of the files in PEFT's method_comparison/*/results.
nlohmann::json peft_result(const nlohmann::json& run, const nlohmann::json& summary,
                           const TrainConfig& config);

}  // namespace gantrain
