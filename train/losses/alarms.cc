#include "train/losses/alarms.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/check.h"

namespace gantrain {

const char* alarm_name(AlarmKind kind) {
  switch (kind) {
    case AlarmKind::kAccuracyHigh:
      return "accuracy_high";
    case AlarmKind::kAccuracyLow:
      return "accuracy_low";
    case AlarmKind::kMemorising:
      return "memorising";
    case AlarmKind::kLength:
      return "length";
    case AlarmKind::kSelfBleu:
      return "self_bleu";
    case AlarmKind::kCrossEntropy:
      return "cross_entropy";
    case AlarmKind::kRms:
      return "rms";
    case AlarmKind::kNonCanonical:
      return "non_canonical";
    case AlarmKind::kNoiseUnused:
      return "noise_unused";
  }
  return "?";
}

double accuracy_error(double accuracy, double pairs) {
  // Laplace's rule keeps the error of 5 right out of 5 above zero.
  const double p = (accuracy * pairs + 1.0) / (pairs + 2.0);
  return std::sqrt(p * (1.0 - p) / (pairs + 2.0));
}

std::vector<AlarmMonitor::Raised> AlarmMonitor::observe(int64_t step, const AlarmInput& in) {
  std::vector<Raised> raised;
  // `good` is written so that a NaN is not good.
  const auto judge = [&](AlarmKind kind, bool good, const std::string& text) {
    State& s = state_[static_cast<size_t>(kind)];
    if (!good && !s.active) {
      ++s.raised;
      raised.push_back({kind, text});
    }
    s.active = !good;
  };
  const AlarmSettings& a = settings_;
  if (in.accuracy_held_out) {
    const double accuracy = *in.accuracy_held_out;
    const auto lasting = [&](AlarmKind kind, bool good, const std::string& text) {
      State& s = state_[static_cast<size_t>(kind)];
      if (good)
        s.since = -1;
      else if (s.since < 0)
        s.since = step;
      judge(kind, good || (step - s.since < a.accuracy_steps && std::isfinite(accuracy)), text);
    };
    lasting(
        AlarmKind::kAccuracyHigh, accuracy <= a.accuracy_high,
        fmt::format(
            "the discriminator is right on {:.3f} of held-out pairs, above {} for {} steps: the generator "
            "learns nothing from it; lower optimizer.lr_d or raise discriminator.gamma",
            accuracy, a.accuracy_high, a.accuracy_steps));
    lasting(AlarmKind::kAccuracyLow, accuracy >= a.accuracy_low,
            fmt::format(
                "the discriminator is right on {:.3f} of held-out pairs, below {} for {} steps: it has no "
                "signal to give; train it longer, or there is none left",
                accuracy, a.accuracy_low, a.accuracy_steps));
  }
  if (in.accuracy_held_out && in.accuracy_train) {
    const double train = *in.accuracy_train, held_out = *in.accuracy_held_out;
    // A discriminator that is no better than chance on what it trains on remembers nothing.
    const double error_train = accuracy_error(train, in.pairs_train),
                 error = std::hypot(error_train, accuracy_error(held_out, in.pairs_held_out));
    judge(AlarmKind::kMemorising,
          train - held_out <= std::max(a.memorising_gap, a.memorising_errors * error) ||
              train <= 0.5 + a.memorising_errors * error_train,
          fmt::format(
              "the discriminator's accuracy is {:.3f} on training pairs and {:.3f} on held-out ones: it "
              "memorises references; use more data or a smaller discriminator.width",
              train, held_out));
  }
  if (in.mean_length) {
    if (!first_length_) first_length_ = *in.mean_length;
    judge(AlarmKind::kLength, std::abs(*in.mean_length - *first_length_) <= a.length_drift * *first_length_,
          fmt::format("samples are {:.1f} tokens long, {:.1f} at the start: more than {:.0f} % away",
                      *in.mean_length, *first_length_, 100.0 * a.length_drift));
  }
  if (in.self_bleu) {
    if (!first_self_bleu_) first_self_bleu_ = *in.self_bleu;
    judge(AlarmKind::kSelfBleu, *in.self_bleu - *first_self_bleu_ <= a.self_bleu_rise,
          fmt::format("self-BLEU-4 is {:.3f}, {:.3f} at the start: up more than {}; samples become alike",
                      *in.self_bleu, *first_self_bleu_, a.self_bleu_rise));
  }
  if (in.cross_entropy) {
    if (!first_cross_entropy_) first_cross_entropy_ = *in.cross_entropy;
    judge(AlarmKind::kCrossEntropy, *in.cross_entropy <= (1.0 + a.cross_entropy_rise) * *first_cross_entropy_,
          fmt::format(
              "cross-entropy on references is {:.4f}, {:.4f} at the start: up more than {:.0f} %; raise "
              "loss.alpha or loss.beta",
              *in.cross_entropy, *first_cross_entropy_, 100.0 * a.cross_entropy_rise));
  }
  if (in.rms_ratio)
    judge(AlarmKind::kRms, *in.rms_ratio >= a.rms_low && *in.rms_ratio <= a.rms_high,
          fmt::format(
              "the prompt's rms is {:.3f} of the embeddings', outside [{}, {}]; raise generator.norm_penalty",
              *in.rms_ratio, a.rms_low, a.rms_high));
  if (in.non_canonical)
    judge(AlarmKind::kNonCanonical, *in.non_canonical <= a.non_canonical,
          fmt::format(
              "{:.1f} % of samples are not how the tokenizer would write their text, above {:.0f} %: the "
              "discriminator reads that writing, so their reward is for other tokens than were sampled",
              100.0 * *in.non_canonical, 100.0 * a.non_canonical));
  if (in.noise_change)
    judge(AlarmKind::kNoiseUnused, *in.noise_change >= a.noise_change,
          fmt::format("another draw of the noise changes the prompt by {:.2g} of its rms, below {:.2g}: the "
                      "generator does not use it",
                      *in.noise_change, a.noise_change));
  return raised;
}

std::vector<AlarmKind> AlarmMonitor::active() const {
  std::vector<AlarmKind> kinds;
  for (size_t i = 0; i < kAlarmKinds; ++i)
    if (state_[i].active) kinds.push_back(static_cast<AlarmKind>(i));
  return kinds;
}

// Three values a kind, then the three starting values as (there, bits).
std::vector<int64_t> AlarmMonitor::save() const {
  std::vector<int64_t> out;
  for (const State& s : state_) out.insert(out.end(), {s.active ? 1 : 0, s.raised, s.since});
  for (const auto& first : {first_length_, first_self_bleu_, first_cross_entropy_})
    out.insert(out.end(), {first ? 1 : 0, std::bit_cast<int64_t>(first.value_or(0.0))});
  return out;
}

void AlarmMonitor::load(std::span<const int64_t> state) {
  const size_t expected = 3 * kAlarmKinds + 6;
  if (state.size() != expected)
    fail("the alarms' state has {} values, expected {}: another version wrote it", state.size(), expected);
  for (size_t i = 0; i < kAlarmKinds; ++i)
    state_[i] = {state[3 * i] != 0, state[3 * i + 1], state[3 * i + 2]};
  size_t at = 3 * kAlarmKinds;
  for (auto* first : {&first_length_, &first_self_bleu_, &first_cross_entropy_}) {
    *first = state[at] != 0 ? std::optional<double>(std::bit_cast<double>(state[at + 1])) : std::nullopt;
    at += 2;
  }
}

}  // namespace gantrain
