// What a soft prompt does to the model's answers: loss, labels, generated text, drift.
#pragma once

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/communicator.h"
#include "model/generate.h"
#include "model/runner.h"
#include "model/tokenizer/tokenizer.h"
#include "train/play/choosing.h"
#include "train/play/prompts.h"

namespace gantrain {

struct LossResult {
  double ce = 0;       // mean negative log-likelihood of a scored token, nats
  int64_t tokens = 0;  // scored
  double perplexity() const;
};
// Cross-entropy of the completions (end token included) under the maker's prompts, `batch` examples at a
// time. Several ranks take turns, and each gets the whole result.
LossResult evaluate_loss(Runner& runner, PromptMaker& maker, ExampleSpan examples, Placement placement,
                         int64_t batch, Communicator* ranks = nullptr);

// For each example the summed log-likelihood of each candidate completion: (examples, labels), row-major.
std::vector<double> label_scores(Runner& runner, PromptMaker& maker, ExampleSpan examples,
                                 const std::vector<std::vector<int32_t>>& labels, Placement placement,
                                 int64_t batch);

// The distinct completions of the training items, if there are 2 to `limit` of them and at least 8 items a
// completion: the labels of a classification task. Empty otherwise.
std::vector<std::vector<int32_t>> find_labels(ExampleSpan train, size_t limit = 16);

struct GenerationSettings {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  int32_t max_new = 64;
  int64_t samples = 1;
  uint64_t seed = 1;
  int64_t batch = 64;          // examples whose prompts are made, and whose texts decoded, together
  Chooser* chooser = nullptr;  // each one of several
};
struct GeneratedTexts {
  std::vector<std::string> texts;  // `samples` an example (example-major), end tokens removed
  // Where a chooser draws: the sum of Chooser::reference_gain over the examples, in nats, and their
  // completions' tokens (the first max_new of each: no answer has more).
  double gain = 0;
  int64_t gain_tokens = 0;
};
// Draws depend on (seed, example, sample).
GeneratedTexts generate_texts(Runner& runner, const Tokenizer& tokenizer, PromptMaker& maker,
                              ExampleSpan examples, Placement placement, const GenerationSettings& settings);

// Quality and diversity of one arm at one temperature. Scores in percent, distinct as shares.
struct TextScores {
  double temperature = 0;
  double exact_match = 0;
  double bleu = 0, rouge_l = 0;  // corpus BLEU (sacrebleu's defaults); mean ROUGE-L F
  double distinct_1 = 0, distinct_2 = 0, distinct_3 = 0;
  double self_bleu[4] = {0, 0, 0, 0};  // n = 2..5, over the first sample of each example
  double mean_length = 0;              // words
  int64_t texts = 0;
  // Of answers drawn by a discriminator's odds: cross-entropy on the references is at most the generator's at
  // this temperature less so many nats a token (Chooser::reference_gain). NaN: not so drawn.
  double chosen_gain = std::numeric_limits<double>::quiet_NaN();
};
TextScores score_texts(ExampleSpan examples, const std::vector<std::string>& texts, int64_t samples,
                       double temperature);

// Mean loss on running text in windows of `window` tokens, with or without the maker's prompt in front.
LossResult evaluate_drift(Runner& runner, const Tokenizer& tokenizer, PromptMaker& maker,
                          const std::string& text, int64_t window, int64_t max_windows, Placement placement);

}  // namespace gantrain
