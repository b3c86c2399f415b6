// Old fakes for D: a quarter of its fakes come from earlier generators, so that it does not forget what they
// did (Shrivastava et al. 1612.07828). A fake keeps the number of its input: both members of a pair share the
// prompt.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gantrain {

struct Fake {
  int64_t input = 0;            // which training example it answers
  std::vector<int32_t> tokens;  // the sampled answer
  bool operator==(const Fake&) const = default;
};

class ReplayBuffer {
 public:
  // Holds up to `capacity` fakes (at least 1); `seed` fixes which are replaced and drawn.
  ReplayBuffer(int64_t capacity, uint64_t seed);

  // Until full it appends; then it takes the place of a fake drawn evenly. Empty answers are an Error.
  void add(Fake fake);
  // How many of `batch` fakes should be old: share * batch, rounded to nearest, but no more than are stored.
  int64_t old_of(int64_t batch, double share) const;
  // `count` fakes drawn evenly with repeats; count is 0 or the buffer is not empty.
  std::vector<Fake> draw(int64_t count);

  int64_t size() const { return static_cast<int64_t>(fakes_.size()); }
  const std::vector<Fake>& fakes() const { return fakes_; }

  // Everything, random position included: a loaded buffer goes on as the saved one would have.
  std::vector<int64_t> save() const;
  // Throws Error on a damaged state, or one of more fakes than this buffer's capacity.
  void load(std::span<const int64_t> state);

 private:
  uint64_t below(uint64_t n);  // the next draw from 0 .. n - 1
  int64_t capacity_;
  uint64_t key_, drawn_ = 0;
  std::vector<Fake> fakes_;
};

}  // namespace gantrain
