// Ranks: processes that train one run together, each on its own part of every batch (docs/distributed.md).
// What they tell each other goes through a Communicator. Every rank makes the same calls in the same order;
// one that ends, or is silent for too long, makes the calls of the others throw Error naming it.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace gantrain {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;                 // 0 to size() - 1
  virtual int size() const = 0;                 // ranks in all
  virtual std::string description() const = 0;  // one line for logs

  // t = the sum of all ranks' t, f32, contiguous, on the device of the run. Every rank has the same bits
  // afterwards, and the same values give the same bits each time. On a GPU the sum is put on the device's
  // stream, and nothing waits for it.
  virtual void all_reduce(Tensor t) = 0;
  // t = rank `from`'s t; as all_reduce.
  virtual void broadcast(Tensor t, int from) = 0;
  // What each rank has given, in the order of ranks. Host memory, any length.
  virtual std::vector<std::string> all_gather(std::string_view bytes) = 0;
  void barrier() { all_gather({}); }
  // The end of the common work, called by every rank: none takes the others' departure for a loss after it.
  virtual void leave() = 0;
};

// One whose tensors are in host memory. It also stands behind a communicator of a GPU's: for what the hosts
// agree on.
class HostCommunicator : public Communicator {
 public:
  // Calls `lost(what)` from a thread of its own as soon as the connection to another rank ends, until
  // leave(): for a rank that waits for something else than its connections.
  virtual void watch(std::function<void(const std::string&)> lost) = 0;
};

// A process on its own.
class OneRank final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string description() const override { return "one process"; }
  void all_reduce(Tensor) override {}
  void broadcast(Tensor, int) override {}
  std::vector<std::string> all_gather(std::string_view bytes) override { return {std::string(bytes)}; }
  void leave() override {}
};

// The ranks' values, one vector a rank; all are equally long.
std::vector<std::vector<double>> gather_values(Communicator& group, std::span<const double> values);
// Their sums, added in the order of ranks.
std::vector<double> sum_values(Communicator& group, std::span<const double> values);

// Part `rank` of n things that are dealt out in order: [begin, end). Parts differ by one at most.
struct Part {
  size_t begin = 0, end = 0;
  size_t size() const { return end - begin; }
};
inline Part part_of(size_t n, int rank, int size) {
  const auto r = static_cast<size_t>(rank), s = static_cast<size_t>(size);
  return {n * r / s, n * (r + 1) / s};
}

}  // namespace gantrain
