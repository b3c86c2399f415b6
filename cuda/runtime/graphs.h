// Regions of work as CUDA graphs: Device::region in core/device.h. The first time of a key runs as it is
// (what is loaded or timed on first use happens then); later ones are captured, and the graph that was kept
// is launched with the new capture's parameters, or made anew where the capture has other nodes. With a
// stamp: the first and second time of a stamp as above, afterwards the kept graph is launched and the work is
// not called again.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <vector>

#include "cuda/runtime/handle.h"

namespace gantrain::cuda {

class Graphs {
 public:
  void run(cudaStream_t stream, const std::string& key, uint64_t stamp, const std::function<void()>& work);
  bool capturing() const { return capturing_; }
  // Called by whatever a stamped region must not do: copy in.
  void refuse_in_stamped(const char* what) const;
  void forget() { entries_.clear(); }

  int64_t instantiated = 0, updated = 0, replayed = 0;
  int64_t kept() const;

 private:
  // Captures of one key may differ in what they hold (a plan that need not be copied again): one graph for
  // each number of nodes.
  struct Kept {
    size_t nodes = 0;
    GraphExec exec;
  };
  struct Entry {
    std::string key;
    std::vector<Kept> graphs;  // the one launched last comes first
    uint64_t seen_stamp = 0, graph_stamp = 0;
  };
  Entry& find(const std::string& key, bool* is_new);
  Graph capture(cudaStream_t stream, const std::function<void()>& work);

  std::list<Entry> entries_;  // the one used last comes first
  bool capturing_ = false, stamped_ = false;
};

}  // namespace gantrain::cuda
