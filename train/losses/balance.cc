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

void BalanceGate::observe(double accuracy) {
  GT_CHECK(accuracy >= 0.0 && accuracy <= 1.0, "a pair accuracy of {}, expected 0 to 1", accuracy);
  running_ = observed_ ? settings_.ema * running_ + (1.0 - settings_.ema) * accuracy : accuracy;
  observed_ = true;
}

BalanceGate::Turn BalanceGate::turn() const {
  if (!warmed_up_) return {.discriminator = true, .generator = false, .warmup = true};
  Turn turn{.discriminator = running_<settings_.gate_d, .generator = running_> settings_.gate_g,
            .warmup = false};
  // Possible only with gates set the wrong way round: then both train.
  if (!turn.discriminator && !turn.generator) turn.discriminator = turn.generator = true;
  return turn;
}

void BalanceGate::took(const Turn& turn) {
  if (turn.warmup) {
    ++warmup_steps_;
    // Above target_high D is stronger than wanted, and the gate lets G catch up: the warm-up is over as well.
    if (observed_ && running_ >= settings_.target_low) {
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
  return {std::bit_cast<int64_t>(running_),
          observed_,
          warmed_up_,
          signal_,
          warmup_steps_,
          steps_,
          discriminator_steps_,
          generator_steps_};
}

void BalanceGate::load(std::span<const int64_t> s) {
  if (s.size() != 8)
    fail("the balance gate's state has {} values, expected 8: another version wrote it", s.size());
  const double running = std::bit_cast<double>(s[0]);
  if (!(running >= 0.0 && running <= 1.0) || s[4] < 0 || s[5] < 0 || s[6] < 0 || s[7] < 0)
    fail("the balance gate's state is damaged: running accuracy {}, steps {} and {}", running, s[4], s[5]);
  running_ = running;
  observed_ = s[1] != 0;
  warmed_up_ = s[2] != 0;
  signal_ = s[3] != 0;
  warmup_steps_ = s[4];
  steps_ = s[5];
  discriminator_steps_ = s[6];
  generator_steps_ = s[7];
}

}  // namespace gantrain
