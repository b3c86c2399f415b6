#include "train/data/loader.h"

#include <algorithm>

#include "core/check.h"

namespace gantrain {
namespace {

constexpr uint64_t kOrderPurpose = 0x6f726465;  // purposes of the seed: see derive_key
constexpr uint64_t kBatchesPurpose = 0x62617463;
constexpr int64_t kWindowBatches = 20;

}  // namespace

std::vector<int64_t> permutation(int64_t n, uint64_t key) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) order[static_cast<size_t>(i)] = i;
  const Philox random{key};
  for (int64_t i = n - 1; i > 0; --i) {
    const auto words = random(0, static_cast<uint64_t>(i));
    const uint64_t word = (static_cast<uint64_t>(words[1]) << 32) | words[0];
    // The high half of word * (i + 1): uniform in [0, i] up to n / 2^64.
    const auto j = static_cast<int64_t>(
        static_cast<uint64_t>((static_cast<unsigned __int128>(word) * static_cast<uint64_t>(i + 1)) >> 64));
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
  }
  return order;
}

Loader::Loader(std::span<const int64_t> lengths, int64_t batch, uint64_t seed, bool bucket)
    : lengths_(lengths.begin(), lengths.end()), batch_(batch), seed_(seed), bucket_(bucket) {
  GT_CHECK(batch > 0, "batch size {}", batch);
  if (lengths_.empty()) fail("no training items");
  plan_epoch();
}

void Loader::plan_epoch() {
  const auto epoch = static_cast<uint64_t>(position_.epoch);
  std::vector<int64_t> order = permutation(items(), derive_key(seed_, kOrderPurpose, epoch));
  if (bucket_) {
    const int64_t window = kWindowBatches * batch_;
    for (int64_t begin = 0; begin < items(); begin += window) {
      const int64_t end = std::min(begin + window, items());
      // Equal lengths keep their shuffled order.
      std::stable_sort(order.begin() + begin, order.begin() + end, [&](int64_t a, int64_t b) {
        return lengths_[static_cast<size_t>(a)] < lengths_[static_cast<size_t>(b)];
      });
    }
  }
  std::vector<std::vector<int64_t>> batches;
  for (int64_t begin = 0; begin < items(); begin += batch_)
    batches.emplace_back(order.begin() + begin, order.begin() + std::min(begin + batch_, items()));
  plan_.clear();
  if (!bucket_) {
    plan_ = std::move(batches);
    return;
  }
  for (const int64_t i : permutation(batches_per_epoch(), derive_key(seed_, kBatchesPurpose, epoch)))
    plan_.push_back(std::move(batches[static_cast<size_t>(i)]));
}

std::vector<int64_t> Loader::next() {
  if (position_.batch == batches_per_epoch()) {
    position_ = {position_.epoch + 1, 0};
    plan_epoch();
  }
  return plan_[static_cast<size_t>(position_.batch++)];
}

void Loader::restore(LoaderPosition position) {
  if (position.epoch < 0 || position.batch < 0 || position.batch > batches_per_epoch())
    fail("loader position epoch {} batch {}: expected at most {} batches; was the run made with other data?",
         position.epoch, position.batch, batches_per_epoch());
  position_ = position;
  plan_epoch();
}

}  // namespace gantrain
