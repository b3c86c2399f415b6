// The alarms of METHOD, section 4.5: signs that the game went wrong, each with its number.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace gantrain {

enum class AlarmKind : uint8_t {
  kAccuracyHigh,  // D's held-out pair accuracy above 0.97 for 200 steps: G gets no signal
  kAccuracyLow,   // below 0.52 for 200 steps: D gives no signal
  kMemorising,    // accuracy on training pairs more than 0.1, and more than chance allows, above the held-out
                  // one
  kLength,        // mean length of samples more than 25 % from where it started
  kSelfBleu,      // self-BLEU-4 up by more than 0.1: collapse
  kCrossEntropy,  // cross-entropy on held-out references up by more than 20 %
  kRms,           // rms(P) / rms(E) outside [0.5, 2]
  kNonCanonical,  // samples that re-tokenise differently: more than 5 %, a shortcut for D
  kNoiseUnused,   // redrawing z changes the output by less than 0.1 %
};
inline constexpr size_t kAlarmKinds = 9;
const char* alarm_name(AlarmKind kind);  // "accuracy_high", ...

// The standard error of an accuracy, 0 to 1, measured on so many pairs.
double accuracy_error(double accuracy, double pairs);

// A measurement of which one step sees little: the mean of the first steps, then one that fades by the step.
struct FollowedMean {
  static constexpr int64_t kSteps = 10;
  double mean = 0;
  int64_t steps = 0;  // that had a value

  void add(double now) {
    if (std::isnan(now)) return;
    ++steps;
    mean += (now - mean) / static_cast<double>(std::min(steps, kSteps));
  }
  // Nothing before kSteps: a drift is held against where it started, which has to be known as well.
  std::optional<double> value() const { return steps < kSteps ? std::nullopt : std::optional<double>(mean); }
};

// What was measured at a step; leave out what was not.
struct AlarmInput {
  std::optional<double> accuracy_held_out, accuracy_train;  // pair accuracies, running
  double pairs_held_out = 0, pairs_train = 0;  // how many pairs they stand for: their standard errors
  std::optional<double> mean_length;           // tokens a sample
  std::optional<double> self_bleu;             // self-BLEU-4, 0 to 1
  std::optional<double> cross_entropy;         // nats a token, held-out references
  std::optional<double> rms_ratio;             // rms(P) / rms(E)
  std::optional<double> non_canonical;         // share of samples, 0 to 1
  std::optional<double> noise_change;          // rms(P(z') - P(z)) / rms(P) for redrawn z; of runs with noise
};

struct AlarmSettings {
  double accuracy_high = 0.97, accuracy_low = 0.52;
  int64_t accuracy_steps = 200;
  double memorising_gap = 0.1, memorising_errors = 3.0;  // accuracy, and standard errors of the difference
  double length_drift = 0.25, self_bleu_rise = 0.1, cross_entropy_rise = 0.2;
  double rms_low = 0.5, rms_high = 2.0, non_canonical = 0.05, noise_change = 1e-3;
};

class AlarmMonitor {
 public:
  explicit AlarmMonitor(const AlarmSettings& settings = {}) : settings_(settings) {}

  struct Raised {
    AlarmKind kind;
    std::string text;  // what, measured against the limit, what to try
  };
  // Looks at one step's measurements; steps ascend. The first length, self-BLEU and cross-entropy seen are
  // where the run started. Returns the alarms that begin now: one that stays on is not repeated, one that
  // went off and comes back is. A value that is not finite raises its alarm.
  std::vector<Raised> observe(int64_t step, const AlarmInput& input);

  bool active(AlarmKind kind) const { return state_[static_cast<size_t>(kind)].active; }
  std::vector<AlarmKind> active() const;
  int64_t times_raised(AlarmKind kind) const { return state_[static_cast<size_t>(kind)].raised; }

  std::vector<int64_t> save() const;
  void load(std::span<const int64_t> state);

 private:
  struct State {
    bool active = false;
    int64_t raised = 0;
    int64_t since = -1;  // accuracy: the step at which it went beyond its limit
  };
  AlarmSettings settings_;
  std::array<State, kAlarmKinds> state_{};
  std::optional<double> first_length_, first_self_bleu_, first_cross_entropy_;
};

}  // namespace gantrain
