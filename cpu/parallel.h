// The CPU backend's threads. Work is cut into chunks by shape alone, never by the number of threads, so the
// bits of a result do not depend on how many threads there are; which thread runs a chunk does not matter.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gantrain {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the calling thread counts as one
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Calls fn(chunk) once for every chunk in [0, chunks), in any order, and returns when all are done. The
  // first exception of a chunk is thrown here. Calls from several threads take turns; fn must not call back.
  void parallel_for(int64_t chunks, const std::function<void(int64_t)>& fn);
  // fn(begin, end) over [0, count) in chunks of `grain`.
  void parallel_ranges(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& fn);

 private:
  void work();        // a worker's life
  void run_chunks();  // takes chunks of the present job until none is left

  std::vector<std::thread> workers_;
  std::mutex turn_;  // one job at a time
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> job_{0};  // counts jobs; a change wakes the workers
  std::atomic<bool> stop_{false};
  const std::function<void(int64_t)>* fn_ = nullptr;
  int64_t chunks_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};  // workers that have not finished the present job
  std::exception_ptr error_;
};

// Floats for the calling thread, kept until the thread ends: what a chunk needs while it runs. A second call
// with the same slot invalidates the first.
float* thread_scratch(int slot, int64_t floats);

}  // namespace gantrain
