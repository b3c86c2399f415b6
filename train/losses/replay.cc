#include "train/losses/replay.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/rng.h"

namespace gantrain {

ReplayBuffer::ReplayBuffer(int64_t capacity, uint64_t seed)
    : capacity_(capacity), key_(derive_key(seed, 0x7265706cu)) {
  if (capacity < 1) fail_usage("a replay buffer of {} fakes, expected at least 1", capacity);
}

uint64_t ReplayBuffer::below(uint64_t n) {
  const auto words = Philox{key_}(0, drawn_++);
  // The high half of a 32 x 32 bit product; buffers are far smaller than 2^32, so the bias is below 1e-5.
  return (uint64_t{words[0]} * n) >> 32;
}

void ReplayBuffer::add(Fake fake) {
  GT_CHECK(!fake.tokens.empty(), "a fake without tokens cannot be judged");
  if (size() < capacity_) {
    fakes_.push_back(std::move(fake));
    return;
  }
  fakes_[static_cast<size_t>(below(static_cast<uint64_t>(capacity_)))] = std::move(fake);
}

int64_t ReplayBuffer::old_of(int64_t batch, double share) const {
  GT_CHECK(batch >= 0 && share >= 0.0 && share <= 1.0, "a share {} of {} fakes", share, batch);
  return std::min(std::llround(share * static_cast<double>(batch)), static_cast<long long>(size()));
}

std::vector<Fake> ReplayBuffer::draw(int64_t count) {
  GT_CHECK(count >= 0 && (count == 0 || size() > 0), "{} fakes drawn from a buffer of {}", count, size());
  std::vector<Fake> out;
  for (int64_t i = 0; i < count; ++i)
    out.push_back(fakes_[static_cast<size_t>(below(static_cast<uint64_t>(size())))]);
  return out;
}

// drawn, number of fakes, then for each: input, length, tokens.
std::vector<int64_t> ReplayBuffer::save() const {
  std::vector<int64_t> out{static_cast<int64_t>(drawn_), size()};
  for (const Fake& f : fakes_) {
    out.push_back(f.input);
    out.push_back(static_cast<int64_t>(f.tokens.size()));
    out.insert(out.end(), f.tokens.begin(), f.tokens.end());
  }
  return out;
}

void ReplayBuffer::load(std::span<const int64_t> state) {
  size_t at = 0;
  const auto next = [&](const char* what, int64_t low, int64_t high) {
    if (at >= state.size()) fail("the replay buffer's state ends after {} values, at {}", state.size(), what);
    const int64_t value = state[at++];
    if (value < low || value > high)
      fail("the replay buffer's state is damaged: {} is {}, expected {} to {}", what, value, low, high);
    return value;
  };
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const int64_t drawn = next("the number of draws", 0, kMost);
  const int64_t count = next("the number of fakes", 0, capacity_);
  std::vector<Fake> fakes;
  for (int64_t i = 0; i < count; ++i) {
    Fake f;
    f.input = next("an input", 0, kMost);
    const int64_t length = next("a length", 1, static_cast<int64_t>(state.size()));
    for (int64_t t = 0; t < length; ++t)
      f.tokens.push_back(static_cast<int32_t>(next("a token", 0, std::numeric_limits<int32_t>::max())));
    fakes.push_back(std::move(f));
  }
  if (at != state.size()) fail("the replay buffer's state has {} values too many", state.size() - at);
  drawn_ = static_cast<uint64_t>(drawn);
  fakes_ = std::move(fakes);
}

}  // namespace gantrain
