// One training run: generator against discriminator in front of a frozen model.
//
// Phases: warm-up of the generator by cross-entropy (C0); the discriminator alone until it separates the
// generator's answers from the references; then both under the balance gate (docs/method.md). With loss.kind
// = "ce" the first phase is all. Everything random is a function of (seed, step): a run continued from a
// checkpoint has the same bits as one never stopped.
#pragma once

#include <atomic>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>

#include "core/communicator.h"
#include "model/adapters/peft.h"
#include "model/runner.h"
#include "model/tokenizer/tokenizer.h"
#include "train/config.h"
#include "train/data/loader.h"
#include "train/losses/alarms.h"
#include "train/losses/balance.h"
#include "train/losses/replay.h"
#include "train/networks/discriminator.h"
#include "train/networks/generator.h"
#include "train/play/evaluate.h"
#include "train/play/pairs.h"

namespace gantrain {

enum class Phase : uint8_t { kWarmup, kDiscriminator, kAdversarial, kDone };
const char* phase_name(Phase phase);
// What the generator's pass keeps between forward and backward.
Saving saving_of(Recompute recompute);

// What one step did; NaN where it does not apply.
struct StepRecord {
  int64_t step = 0;
  Phase phase = Phase::kWarmup;
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  double ce = kNone, loss_adv = kNone, loss_d = kNone, kl = kNone, reward = kNone;
  double pair_accuracy = kNone, heldout_accuracy = kNone;  // of this step
  double gate_accuracy = kNone;                            // running, what the gate reads
  bool trained_g = false, trained_d = false;
  double grad_norm_g = kNone, grad_norm_d = kNone, lr_g = kNone, lr_d = kNone, rms_ratio = kNone;
  double mean_length = kNone, non_canonical = kNone;  // of the rollouts: tokens, share
  double identical = kNone;                           // share of fresh pairs whose sides are the same
  uint32_t answers = 0;  // hash of the rollouts' tokens: equal where two runs sampled the same; 0: none
  int64_t tokens = 0;    // rows through the whole model, forward
  int64_t synchronisations = 0;  // times the host waited for the device
  double seconds = 0;
  // Seconds by part of the step.
  double rollout_s = 0, features_s = 0, discriminator_s = 0, forward_backward_s = 0, optimizer_s = 0;
};

// Gate G1 (docs/method.md): how often the discriminator, trained alone on C0's answers, tells answers to
// held-out inputs from their references. About 0.5: there is no adversarial signal.
struct SignalCheck {
  int64_t pairs = 0;                // 0: not measured
  int64_t discriminator_steps = 0;  // of its own phase
  double accuracy = 0, standard_error = 0;
};

// Where the time went over a run, seconds; and counts.
struct Totals {
  double rollout = 0, features = 0, discriminator = 0, forward_backward = 0, optimizer = 0, evaluation = 0,
         all = 0;
  int64_t tokens = 0, sampled_tokens = 0;
  int64_t steps_g = 0, steps_d = 0, steps_adversarial = 0;
};

class Trainer {
 public:
  struct Data {
    std::vector<TokenizedExample> train, valid;
    // Rows of all their inputs, each once; -1: counted here. A plan's rehearsal has some of the items.
    int64_t context_rows = -1;
  };
  static int64_t context_rows(const std::vector<TokenizedExample>& train,
                              const std::vector<TokenizedExample>& valid);
  // Every batch that a run takes, in order, as numbers of training items; and, where it has a discriminator,
  // the items held out beside them, once a step, of `valid`, or of `train` where there are none. No model is
  // needed: this is what a run's largest batch is known from before it begins.
  static void visit_batches(
      const TrainConfig& config, const std::vector<TokenizedExample>& train,
      const std::vector<TokenizedExample>& valid,
      const std::function<void(bool heldout, const std::vector<int64_t>& items)>& visit);
  // Steps that a run over so many training items takes.
  static int64_t steps_of(const TrainConfig& config, int64_t train_items);
  // With several `ranks` each is given the same and trains on its part of every batch (docs/distributed.md);
  // null: this process is alone. step() is then something all of them do together.
  Trainer(Device& device, const Llama& llama, const Tokenizer& tokenizer, const TrainConfig& config,
          Data data, Communicator* ranks = nullptr);
  ~Trainer();

  // Gradients that are summed over ranks in one call, numbers: what a rank keeps besides is at most this.
  static constexpr int64_t kSummedTogether = int64_t{16} << 20;

  bool done() const;
  int64_t step_number() const;  // steps taken
  int64_t total_steps() const;  // planned; the discriminator's own phase may end earlier
  Phase phase() const;
  StepRecord step();  // takes one step; throws Error naming layer and op of a value that is not finite

  // Every rank calls it: throws Error if they do not have the same parameters, bit for bit.
  void compare_ranks() const;

  // Begins with the values of this adapter and not with the configuration's own, before the first step.
  // Throws Error if it is of another kind or size than what is trained.
  void start_from(const PeftAdapter& adapter, const std::string& folder);

  // Cross-entropy on the validation items with the weights that would be deployed; watched by an alarm. All
  // ranks call it.
  LossResult validate();
  // The deployed prompt maker: the averaged generator in the adversarial phase. `warm`: as it was after
  // warm-up.
  PromptMaker& deployed();
  PromptMaker* warm();  // nullptr before the adversarial phase

  const std::vector<std::string>& new_alarms() const;  // raised by the last step
  // How often each alarm went off over the run, by name (train/losses/alarms.h).
  std::map<std::string, int64_t> alarms_raised() const;
  const Totals& totals() const;
  const SignalCheck& signal() const;  // measured when the discriminator's own phase ends
  int64_t generator_parameters() const, deployed_parameters() const, discriminator_parameters() const;
  int64_t optimizer_bytes() const;
  // The generator's learned table or its output, for a look at nearest tokens: (P, C); empty without a
  // prompt.
  std::vector<float> prompt_table();

  // Everything a continued run needs: parameters of both players, moments, averages, gate, replay, loader,
  // counters. The writer must be committed before the next step: it may look at this trainer's own memory.
  void save(class CheckpointWriter& writer) const;
  void load(const class CheckpointReader& reader);

 private:
  struct State;
  void load_state(const class CheckpointReader& reader);
  std::unique_ptr<State> s_;
};

}  // namespace gantrain
