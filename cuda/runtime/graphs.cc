#include "cuda/runtime/graphs.h"

#include <algorithm>

namespace gantrain::cuda {
namespace {

constexpr size_t kKeys = 64, kGraphsOfAKey = 4;  // that are kept: those used last

}  // namespace

void Graphs::refuse_in_stamped(const char* what) const {
  GT_CHECK(!capturing_ || !stamped_, "a region that is replayed as it was must not {}", what);
}

int64_t Graphs::kept() const {
  int64_t n = 0;
  for (const Entry& e : entries_) n += static_cast<int64_t>(e.graphs.size());
  return n;
}

Graphs::Entry& Graphs::find(const std::string& key, bool* is_new) {
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key; });
  *is_new = found == entries_.end();
  if (*is_new) {
    if (entries_.size() == kKeys) entries_.pop_back();
    entries_.push_front({.key = key, .graphs = {}});
  } else {
    entries_.splice(entries_.begin(), entries_, found);
  }
  return entries_.front();
}

Graph Graphs::capture(cudaStream_t stream, const std::function<void()>& work) {
  // Relaxed: memory may be reserved on the way, and nobody else uses the stream.
  GT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  capturing_ = true;
  cudaGraph_t raw = nullptr;
  try {
    work();
  } catch (...) {
    capturing_ = false;
    (void)cudaStreamEndCapture(stream, &raw);
    (void)cudaGetLastError();
    const Graph dropped(raw);
    throw;
  }
  capturing_ = false;
  GT_CUDA(cudaStreamEndCapture(stream, &raw));
  return Graph(raw);
}

void Graphs::run(cudaStream_t stream, const std::string& key, uint64_t stamp,
                 const std::function<void()>& work) {
  bool is_new = false;
  Entry& entry = find(key, &is_new);
  if (is_new || (stamp != 0 && stamp != entry.seen_stamp)) {
    entry.seen_stamp = stamp;
    work();
    return;
  }
  if (stamp != 0 && stamp == entry.graph_stamp) {
    GT_CUDA(cudaGraphLaunch(entry.graphs.front().exec.get(), stream));
    ++replayed;
    return;
  }
  stamped_ = stamp != 0;
  entry.graph_stamp = 0;
  const Graph graph = capture(stream, work);
  size_t nodes = 0;
  GT_CUDA(cudaGraphGetNodes(graph.get(), nullptr, &nodes));
  if (nodes == 0) return;
  const auto same =
      std::find_if(entry.graphs.begin(), entry.graphs.end(), [&](const Kept& k) { return k.nodes == nodes; });
  bool current = false;
  if (same != entry.graphs.end()) {
    cudaGraphExecUpdateResultInfo info{};
    const cudaError_t error = cudaGraphExecUpdate(same->exec.get(), graph.get(), &info);
    if (error == cudaSuccess) {
      std::rotate(entry.graphs.begin(), same, same + 1);
      current = true;
      ++updated;
    } else {
      if (error != cudaErrorGraphExecUpdateFailure) GT_CUDA(error);
      (void)cudaGetLastError();
      entry.graphs.erase(same);  // the same number of other nodes
    }
  }
  if (!current) {
    cudaGraphExec_t exec = nullptr;
    GT_CUDA(cudaGraphInstantiate(&exec, graph.get(), 0));
    if (entry.graphs.size() == kGraphsOfAKey) entry.graphs.pop_back();
    entry.graphs.insert(entry.graphs.begin(), Kept{nodes, GraphExec(exec)});
    ++instantiated;
  }
  entry.graph_stamp = stamp;
  GT_CUDA(cudaGraphLaunch(entry.graphs.front().exec.get(), stream));
}

}  // namespace gantrain::cuda
