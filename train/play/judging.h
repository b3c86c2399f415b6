// Fresh judges: how well a network that no training saw tells a model's answers from the references
// (docs/method.md, 6). About 0.5 is the best an answerer can do.
#pragma once

#include <vector>

#include "model/runner.h"
#include "train/config.h"
#include "train/play/choosing.h"
#include "train/play/pairs.h"

namespace gantrain {

struct JudgeSettings {
  int64_t judges = 3;    // independent ones: other weights, another order of the pairs
  int64_t width = 64;    // of a token's embedding and of the head
  int64_t epochs = 8;    // over the training pairs at most; the best epoch on pairs set aside for that counts
  int64_t patience = 2;  // epochs in a row without a better one that end it
  int64_t batch = 32;    // pairs a step
  double lr = 3e-3;
  uint64_t seed = 1;
};

struct Verdict {
  int64_t train_pairs = 0, held_out_pairs = 0;
  std::vector<int64_t> epochs;     // that each judge learned for
  std::vector<double> accuracies;  // of each judge: answers it named rightly, real and false alike, 0 to 1
  double accuracy = 0.5;           // their median
  double ranking = 0.5;            // of the held-out pairs those whose reference scores higher; median
  double standard_error = 0;       // of the median judge's accuracy, over the held-out pairs
};

// Rows of features of the pairs' answers, one a token: pair i's reference from row begin[2 i], its answer
// from begin[2 i + 1] on; (N, C) f32, normalised as the discriminator's are.
struct AnswerFeatures {
  OwnedTensor rows;
  std::vector<int32_t> begin;
};
// What the first `layers` layers of the runner's frozen model make, without a prompt, of the answers behind
// their inputs. `batch` pairs at a time; memory: 4 C bytes a token.
AnswerFeatures answer_features(Runner& runner, ExampleSpan inputs, const std::vector<AnswerPair>& pairs,
                               int layers, int64_t batch);

// Trains judges on pairs and asks them about held-out ones. Each judge reads its own embedding of the tokens
// (0 .. vocabulary - 1) and knows nothing of the model. A tenth of `train`, at least one pair, chooses the
// epoch. Throws Error where there are fewer than 20 pairs to train on or none held out.
Verdict judge_answers(Device& device, int64_t vocabulary, const std::vector<AnswerPair>& train,
                      const std::vector<AnswerPair>& held_out, const JudgeSettings& settings);
// The same with judges that read these features of the pairs: what the discriminator reads, by a network that
// no generator was trained against.
Verdict judge_features(Device& device, const std::vector<AnswerPair>& train,
                       const AnswerFeatures& train_features, const std::vector<AnswerPair>& held_out,
                       const AnswerFeatures& held_out_features, const JudgeSettings& settings);

// `count` pairs of references and the maker's answers at this temperature, over all inputs evenly: of each
// the first answers, as many as it takes, each one of several where there is a chooser. A pair's input
// is its place in `inputs`. Cut as the discriminator's
// pairs are (pairs.h); empty answers give none.
std::vector<AnswerPair> answer_pairs(Runner& runner, const Tokenizer& tokenizer, PromptMaker& maker,
                                     ExampleSpan inputs, Placement placement, int64_t count, int64_t max_new,
                                     double temperature, uint64_t seed, Chooser* chooser = nullptr);

}  // namespace gantrain
