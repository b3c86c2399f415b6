#include "cpu/parallel.h"

#include <omp.h>

#include <array>
#include <memory>
#include <new>

#include "core/check.h"

namespace gantrain {
namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// oneDNN would start its own OpenMP team inside a chunk: keep it serial on every thread that runs chunks.
void make_openmp_serial() {
  thread_local bool done = false;
  if (!done) omp_set_num_threads(1);
  done = true;
}

constexpr int kSpins = 4000;  // about 50 us: longer than the gap between two ops of one layer

}  // namespace

ThreadPool::ThreadPool(int threads) {
  GT_CHECK(threads >= 1, "a thread pool needs at least 1 thread, got {}", threads);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::run_chunks() {
  for (;;) {
    const int64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= chunks_) return;
    try {
      (*fn_)(chunk);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(chunks_, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::work() {
  make_openmp_serial();
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < kSpins && job_.load(std::memory_order_acquire) == seen && !stop_; ++i)
      pause_briefly();
    if (job_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || job_.load(std::memory_order_acquire) != seen; });
    }
    if (stop_) return;
    seen = job_.load(std::memory_order_acquire);
    run_chunks();
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard lock(mutex_);
      done_.notify_one();
    }
  }
}

void ThreadPool::parallel_for(int64_t chunks, const std::function<void(int64_t)>& fn) {
  if (chunks <= 0) return;
  make_openmp_serial();
  if (workers_.empty() || chunks == 1) {
    for (int64_t i = 0; i < chunks; ++i) fn(i);
    return;
  }
  std::lock_guard turn(turn_);
  {
    std::lock_guard lock(mutex_);
    fn_ = &fn;
    chunks_ = chunks;
    error_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    job_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  run_chunks();
  for (int i = 0; i < kSpins && busy_.load(std::memory_order_acquire) != 0; ++i) pause_briefly();
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return busy_.load(std::memory_order_acquire) == 0; });
  fn_ = nullptr;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::parallel_ranges(int64_t count, int64_t grain,
                                 const std::function<void(int64_t, int64_t)>& fn) {
  parallel_for((count + grain - 1) / grain, [&](int64_t chunk) {
    const int64_t begin = chunk * grain;
    fn(begin, begin + grain < count ? begin + grain : count);
  });
}

float* thread_scratch(int slot, int64_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  struct Piece {
    std::unique_ptr<float, Free> memory;
    int64_t floats = 0;
  };
  thread_local std::array<Piece, 8> pieces;
  Piece& piece = pieces.at(static_cast<size_t>(slot));
  if (piece.floats < floats) {
    piece.memory.reset();
    piece.memory.reset(static_cast<float*>(
        ::operator new (static_cast<size_t>(floats) * sizeof(float), std::align_val_t{64})));
    piece.floats = floats;
  }
  return piece.memory.get();
}

}  // namespace gantrain
