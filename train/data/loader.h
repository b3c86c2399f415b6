// The order of the training items: shuffled epochs, batches of similar length, a position that can be saved.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/rng.h"

namespace gantrain {

// A random order of 0..n-1 by Fisher and Yates, every draw from Philox(key): the same on every machine.
std::vector<int64_t> permutation(int64_t n, uint64_t key);

// Where a Loader stands: `batch` batches of `epoch` have been given out.
struct LoaderPosition {
  int64_t epoch = 0, batch = 0;
  bool operator==(const LoaderPosition&) const = default;
};

// Gives out batches of item numbers, epoch after epoch; every item exactly once an epoch (one batch of an
// epoch may be shorter than the others). An epoch's batches are a pure function of (lengths, batch size,
// seed, epoch), so a position is all that resuming needs.
class Loader {
 public:
  // lengths[i]: tokens of item i, used only with `bucket`: items are then sorted by length within shuffled
  // windows of 20 batches, and the batches shuffled again. Throws Error when there are no items.
  Loader(std::span<const int64_t> lengths, int64_t batch, uint64_t seed, bool bucket);

  std::vector<int64_t> next();
  int64_t batches_per_epoch() const { return (items() + batch_ - 1) / batch_; }
  int64_t items() const { return static_cast<int64_t>(lengths_.size()); }
  LoaderPosition position() const { return position_; }
  void restore(LoaderPosition position);

 private:
  void plan_epoch();

  std::vector<int64_t> lengths_;
  int64_t batch_;
  uint64_t seed_;
  bool bucket_;
  LoaderPosition position_;
  std::vector<std::vector<int64_t>> plan_;  // of position_.epoch
};

}  // namespace gantrain
