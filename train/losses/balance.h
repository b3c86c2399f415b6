// Who trains in this step: the two players as equals (METHOD, section 4).
//
// Warm-up: D alone, until its running pair accuracy is at least target_low (or `warmup_limit` steps have gone
// by: then signal() is false, there was nothing to learn). Afterwards D trains while the accuracy is below
// gate_d and G while it is above gate_g; never are both off. With hold_d G trains and D does not. Feed it the
// accuracy on held-out inputs: on training pairs a D that memorises references looks strong.
//
// The running accuracy is the share of right pairs among all seen, each weighted by ema to the power of its
// age in steps, and begins as if kPrior pairs had been half right: a step has few held-out pairs, and neither
// the first one's luck nor a step with a single pair may decide who trains for the next twenty.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gantrain {

struct BalanceSettings {
  double target_low = 0.65, target_high = 0.80;
  double gate_d = 0.80, gate_g = 0.55;
  double ema = 0.9;            // what a step's pairs weigh, for each step gone by since
  int64_t warmup_limit = 200;  // steps of D alone, at most; 0: no warm-up
  bool hold_d = false;         // after its warm-up D never trains and G always does
};

class BalanceGate {
 public:
  // Throws Error of kind usage unless 0 <= targets, gates <= 1, target_low <= target_high, 0 <= ema < 1.
  explicit BalanceGate(const BalanceSettings& settings);

  static constexpr double kPrior = 8;  // pairs

  // A pair accuracy, 0 to 1, just measured on so many pairs, more than 0; NaN is an Error.
  void observe(double accuracy, double pairs);
  struct Turn {
    bool discriminator = false, generator = false;
    bool warmup = false;
  };
  Turn turn() const;            // for the step to come
  void took(const Turn& turn);  // that step is done: counts the shares and ends the warm-up

  bool warmed_up() const { return warmed_up_; }
  bool signal() const { return signal_; }              // false: D never reached target_low in its warm-up
  double accuracy() const { return right_ / pairs_; }  // running; 0.5 before the first observation
  bool in_target() const { return accuracy() >= settings_.target_low && accuracy() <= settings_.target_high; }
  int64_t warmup_steps() const { return warmup_steps_; }
  int64_t steps() const { return steps_; }  // after the warm-up
  // Shares of the steps after the warm-up in which each side trained; 0 before the first.
  double discriminator_share() const;
  double generator_share() const;

  std::vector<int64_t> save() const;          // for a checkpoint, exact
  void load(std::span<const int64_t> state);  // throws Error on a state of another size

 private:
  BalanceSettings settings_;
  double right_ = kPrior / 2, pairs_ = kPrior;
  bool observed_ = false, warmed_up_ = false, signal_ = true;
  int64_t warmup_steps_ = 0, steps_ = 0, discriminator_steps_ = 0, generator_steps_ = 0;
};

}  // namespace gantrain
