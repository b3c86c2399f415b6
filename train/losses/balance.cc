#include "train/losses/balance.h"

#include <bit>

#include "core/check.h"

namespace gantrain {

BalanceGate::BalanceGate(const BalanceSettings& s) : settings_(s), warmed_up_(s.warmup_limit <= 0) {
  const auto share = [](double x) { return x >= 0.0 && x <= 1.0; };
  if (!share(s.target_low) || !share(s.target_high) || !share(s.gate_d) || !share(s.gate_g) ||
      s.target_low > s.target_high || !(s.ema >= 0.0 && s.ema < 1.0))
    fail_usage(
        "balance: targets [{}, {}] and gates {} and {} must lie in [0, 1], the lower target first, and ema "
        "{} in [0, 1)",
        s.target_low, s.target_high, s.gate_d, s.gate_g, s.ema);
}

void BalanceGate::observe(double accuracy, double pairs) {
  GT_CHECK(accuracy >= 0.0 && accuracy <= 1.0, "a pair accuracy of {}, expected 0 to 1", accuracy);
  GT_CHECK(pairs > 0.0, "a pair accuracy of {} pairs", pairs);
  right_ = settings_.ema * right_ + accuracy * pairs;
  pairs_ = settings_.ema * pairs_ + pairs;
  observed_ = true;
}

BalanceGate::Turn BalanceGate::turn() const {
  if (!warmed_up_) return {.discriminator = true, .generator = false, .warmup = true};
  if (settings_.hold_d) return {.discriminator = false, .generator = true, .warmup = false};
  Turn turn;
  turn.discriminator = accuracy() < settings_.gate_d;
  turn.generator = accuracy() > settings_.gate_g;
  // Possible only with gates set the wrong way round: then both train.
  if (!turn.discriminator && !turn.generator) turn.discriminator = turn.generator = true;
  return turn;
}

void BalanceGate::took(const Turn& turn) {
  if (turn.warmup) {
    ++warmup_steps_;
    // Above target_high D is stronger than wanted, and the gate lets G catch up: the warm-up is over as well.
    if (observed_ && accuracy() >= settings_.target_low) {
      warmed_up_ = true;
    } else if (warmup_steps_ >= settings_.warmup_limit) {
      warmed_up_ = true;
      signal_ = false;
    }
    return;
  }
  ++steps_;
  discriminator_steps_ += turn.discriminator;
  generator_steps_ += turn.generator;
}

double BalanceGate::discriminator_share() const {
  return steps_ == 0 ? 0.0 : static_cast<double>(discriminator_steps_) / static_cast<double>(steps_);
}
double BalanceGate::generator_share() const {
  return steps_ == 0 ? 0.0 : static_cast<double>(generator_steps_) / static_cast<double>(steps_);
}

std::vector<int64_t> BalanceGate::save() const {
  return {std::bit_cast<int64_t>(right_),
          std::bit_cast<int64_t>(pairs_),
          observed_,
          warmed_up_,
          signal_,
          warmup_steps_,
          steps_,
          discriminator_steps_,
          generator_steps_};
}

void BalanceGate::load(std::span<const int64_t> s) {
  if (s.size() != 9)
    fail("the balance gate's state has {} values, expected 9: another version wrote it", s.size());
  const auto right = std::bit_cast<double>(s[0]), pairs = std::bit_cast<double>(s[1]);
  if (!(pairs > 0.0 && right >= 0.0 && right <= pairs) || s[5] < 0 || s[6] < 0 || s[7] < 0 || s[8] < 0)
    fail("the balance gate's state is damaged: {} of {} pairs right, steps {} and {}", right, pairs, s[5],
         s[6]);
  right_ = right;
  pairs_ = pairs;
  observed_ = s[2] != 0;
  warmed_up_ = s[3] != 0;
  signal_ = s[4] != 0;
  warmup_steps_ = s[5];
  steps_ = s[6];
  discriminator_steps_ = s[7];
  generator_steps_ = s[8];
}

}  // namespace gantrain
