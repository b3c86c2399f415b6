// Runs blocks: lanes at the smallest program counter first, warps in time slices, blocks over host threads.
#include "cuda/softgpu/machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <thread>

#include "cuda/softgpu/async.h"
#include "cuda/softgpu/options.h"

namespace softgpu {

void Counters::add(const Counters& o) {
  warp_instructions += o.warp_instructions, thread_instructions += o.thread_instructions;
  for (int i = 0; i < kClasses; ++i) by_class[i] += o.by_class[i];
  global_loads += o.global_loads, global_stores += o.global_stores;
  load_sectors += o.load_sectors, store_sectors += o.store_sectors;
  load_bytes += o.load_bytes, store_bytes += o.store_bytes;
  shared_requests += o.shared_requests, shared_wavefronts += o.shared_wavefronts,
      shared_ideal += o.shared_ideal;
  multiply_adds += o.multiply_adds, async_bytes += o.async_bytes;
}

std::string place(const Kernel& k, uint32_t pc) {
  const SourceLine& l = k.lines[pc];
  std::string s = fmt::format("PTX line {}: {}", l.ptx_line, l.text);
  const auto file = [&](int f, int line) {
    const auto it = k.files.find(f);
    return it == k.files.end() ? std::string() : fmt::format("{}:{}", it->second, line);
  };
  if (l.line) s += fmt::format(" [{}", file(l.file, l.line));
  if (l.line && l.inline_line) s += fmt::format(", inlined at {}", file(l.inline_file, l.inline_line));
  if (l.line) s += "]";
  return s;
}

void fault(Warp& w, const Inst& in, int lane, int code, const std::string& what) {
  const Launch& launch = *w.group->launch;
  const uint32_t t = w.index * 32 + static_cast<uint32_t>(lane);
  const Dim3 b = launch.block;
  throw Fault(fmt::format("kernel {}, {}, block ({},{},{}), thread ({},{},{}): {}", w.kernel->name,
                          place(*w.kernel, in.index), w.cta->id.x, w.cta->id.y, w.cta->id.z, t % b.x,
                          t / b.x % b.y, t / (b.x * b.y), what),
              code);
}

namespace {

void update_min(Warp& w) {
  w.min_parked = UINT32_MAX;
  for (const LaneGroup& g : w.parked)
    if (g.state == LaneGroup::kReady) w.min_parked = std::min(w.min_parked, g.pc);
}

// Makes the ready group with the smallest pc the running one, joined by others at the same pc.
bool next_group(Warp& w) {
  const uint32_t pc = w.min_parked;
  if (pc == UINT32_MAX) return false;
  w.pc = pc;
  w.active = 0;
  size_t kept = 0;
  for (size_t i = 0; i < w.parked.size(); ++i) {
    if (w.parked[i].state == LaneGroup::kReady && w.parked[i].pc == pc) {
      w.active |= w.parked[i].mask;
    } else {
      w.parked[kept++] = w.parked[i];
    }
  }
  w.parked.resize(kept);
  update_min(w);
  return true;
}

void wake_converging(Warp& w) {
  bool any = false;
  for (LaneGroup& g : w.parked)
    if (g.state == LaneGroup::kConverge) g.state = LaneGroup::kReady, any = true;
  if (any) update_min(w);
}

template <bool kCount>
void run_warp(Warp& w, uint64_t budget) {
  if (!w.active && !next_group(w)) return;
  const Inst* code = w.kernel->code.data();
  Counters& counters = w.group->counters;
  const uint64_t given = budget;
  for (; budget; --budget) {
    if (w.pc >= w.min_parked) {
      if (w.pc > w.min_parked || w.active == 0) {
        if (w.active) w.park({w.pc, w.active});
        next_group(w);
      } else {
        const Mask own = w.active;
        next_group(w);
        w.active |= own;
      }
    }
    const Inst& in = code[w.pc];
    const Mask here = w.active;
    Mask m = here;
    if (in.guard.present()) {
      const Mask p = predicate(w, in.guard);
      m &= in.guard_negated ? ~p : p;
    }
    ++w.pc;
    if (m) in.fn(w, in, m);
    if constexpr (kCount) {
      ++counters.warp_instructions;
      // A branch's guard is its operand: lanes that stay have executed it as well.
      counters.thread_instructions +=
          static_cast<uint64_t>(__builtin_popcount(in.cls == Class::kControl ? here : m));
      ++counters.by_class[static_cast<int>(in.cls)];
    }
    if (!w.active && !next_group(w)) {
      --budget;
      break;
    }
    if (w.yield) {
      w.yield = false;
      --budget;
      break;
    }
  }
  w.group->steps += given - budget;
}

void set_specials(Warp& w, const Launch& launch, const Cta& cta) {
  const Dim3 b = launch.block, grid = launch.grid, c = launch.cluster;
  const uint32_t cluster_size = static_cast<uint32_t>(c.count());
  const bool clustered = cluster_size > 1;
  for (const auto& [offset, special] : w.kernel->specials) {
    uint32_t* d = reinterpret_cast<uint32_t*>(w.base[0] + offset);
    const auto lane = [&](auto f) {
      for (uint32_t i = 0; i < 32; ++i) d[i] = f(w.index * 32 + i, i);
    };
    const auto all = [&](uint32_t v) { lane([&](uint32_t, uint32_t) { return v; }); };
    switch (special) {
      case Special::kTidX:
        lane([&](uint32_t t, uint32_t) { return t % b.x; });
        break;
      case Special::kTidY:
        lane([&](uint32_t t, uint32_t) { return t / b.x % b.y; });
        break;
      case Special::kTidZ:
        lane([&](uint32_t t, uint32_t) { return t / (b.x * b.y); });
        break;
      case Special::kNtidX:
        all(b.x);
        break;
      case Special::kNtidY:
        all(b.y);
        break;
      case Special::kNtidZ:
        all(b.z);
        break;
      case Special::kCtaidX:
        all(cta.id.x);
        break;
      case Special::kCtaidY:
        all(cta.id.y);
        break;
      case Special::kCtaidZ:
        all(cta.id.z);
        break;
      case Special::kNctaidX:
        all(grid.x);
        break;
      case Special::kNctaidY:
        all(grid.y);
        break;
      case Special::kNctaidZ:
        all(grid.z);
        break;
      case Special::kLaneid:
        lane([](uint32_t, uint32_t i) { return i; });
        break;
      case Special::kWarpid:
        all(w.index);
        break;
      case Special::kNwarpid:
        all(64);
        break;
      case Special::kSmid:
        all(cta.id.x % 132);
        break;
      case Special::kNsmid:
        all(132);
        break;
      case Special::kGridid: {
        uint64_t* d64 = reinterpret_cast<uint64_t*>(d);
        for (int i = 0; i < 32; ++i) d64[i] = launch.id;
        break;
      }
      case Special::kLaneEq:
        lane([](uint32_t, uint32_t i) { return 1u << i; });
        break;
      case Special::kLaneLt:
        lane([](uint32_t, uint32_t i) { return (1u << i) - 1; });
        break;
      case Special::kLaneLe:
        lane([](uint32_t, uint32_t i) { return (2u << i) - 1; });
        break;
      case Special::kLaneGe:
        lane([](uint32_t, uint32_t i) { return ~((1u << i) - 1); });
        break;
      case Special::kLaneGt:
        lane([](uint32_t, uint32_t i) { return ~((2u << i) - 1); });
        break;
      case Special::kClusterCtaidX:
        all(cta.id.x % c.x);
        break;
      case Special::kClusterCtaidY:
        all(cta.id.y % c.y);
        break;
      case Special::kClusterCtaidZ:
        all(cta.id.z % c.z);
        break;
      case Special::kClusterNctaidX:
        all(c.x);
        break;
      case Special::kClusterNctaidY:
        all(c.y);
        break;
      case Special::kClusterNctaidZ:
        all(c.z);
        break;
      case Special::kClusterCtarank:
        all(clustered ? cta.rank : 0);
        break;
      case Special::kClusterNctarank:
        all(cluster_size);
        break;
      case Special::kClusteridX:
        all(cta.id.x / c.x);
        break;
      case Special::kClusteridY:
        all(cta.id.y / c.y);
        break;
      case Special::kClusteridZ:
        all(cta.id.z / c.z);
        break;
      case Special::kNclusteridX:
        all(grid.x / c.x);
        break;
      case Special::kNclusteridY:
        all(grid.y / c.y);
        break;
      case Special::kNclusteridZ:
        all(grid.z / c.z);
        break;
      case Special::kIsExplicitCluster:
        *d = clustered ? kAll : 0;
        break;
      case Special::kDynamicSmem:
        all(launch.dynamic_shared);
        break;
      case Special::kTotalSmem:
        all(cta.shared_bytes);
        break;
      default:
        all(0);
        break;
    }
  }
}

constexpr uint32_t kSharedGuard = 64;  // fragments are read a row at a time

void set_up(Group& g, const Launch& launch, uint64_t cluster_index, uint64_t seed) {
  const Kernel& k = *launch.kernel;
  g.launch = &launch;
  g.init_checks = options().init;
  g.race_checks = options().races;
  g.rng = (seed + 1) * 0x9e3779b97f4a7c15ull ^ (cluster_index + 1) * 0xd1342543de82ef95ull;
  g.random(), g.random();
  g.steps = 0;
  g.bulk.clear();
  g.mbarriers.clear();
  g.cluster_arrived = 0, g.cluster_phase = 0;
  g.cluster_clock.reset(), g.cluster_done.reset();
  const uint32_t blocks =
      static_cast<uint32_t>(launch.cooperative ? launch.grid.count() : launch.cluster.count());
  const uint32_t threads = static_cast<uint32_t>(launch.block.count()), warps = (threads + 31) / 32;
  g.cluster_live = blocks * threads;
  const uint32_t shared_bytes = k.static_shared + launch.dynamic_shared;
  while (g.ctas.size() < blocks) g.ctas.push_back(std::make_unique<Cta>());
  g.ctas.resize(blocks);
  if (g.race_checks) g.races.start(blocks, warps, shared_bytes, k.subword_shared);
  const Dim3 c = launch.cluster;
  const Dim3 clusters{launch.grid.x / c.x, launch.grid.y / c.y, launch.grid.z / c.z};
  for (uint32_t r = 0; r < blocks; ++r) {
    Cta& cta = *g.ctas[r];
    cta.group = &g;
    cta.rank = r;
    if (launch.cooperative) {
      cta.id = {r % launch.grid.x, r / launch.grid.x % launch.grid.y, r / (launch.grid.x * launch.grid.y)};
    } else {
      const uint32_t cx = static_cast<uint32_t>(cluster_index % clusters.x),
                     cy = static_cast<uint32_t>(cluster_index / clusters.x % clusters.y),
                     cz = static_cast<uint32_t>(cluster_index / (uint64_t{clusters.x} * clusters.y));
      cta.id = {cx * c.x + r % c.x, cy * c.y + r / c.x % c.y, cz * c.z + r / (c.x * c.y)};
    }
    cta.threads = cta.live_threads = threads;
    cta.shared_bytes = shared_bytes;
    if (cta.shared_capacity < shared_bytes + kSharedGuard) {
      std::free(cta.shared);
      cta.shared_capacity = (shared_bytes + kSharedGuard + 1023) / 1024 * 1024;
      cta.shared = static_cast<char*>(std::aligned_alloc(1024, size_t{cta.shared_capacity} * 2));
      cta.shadow = reinterpret_cast<uint8_t*>(cta.shared) + cta.shared_capacity;
    }
    std::memset(cta.shared, 0xff, shared_bytes + kSharedGuard);  // NaN in every format
    std::memset(cta.shadow, kUnwritten, shared_bytes + kSharedGuard);
    cta.local_stride = k.local_bytes;
    if (k.local_bytes) {
      const size_t half = size_t{warps} * 32 * k.local_bytes;
      cta.local.assign(2 * half, static_cast<char>(0xff));
      std::memset(cta.local.data() + half, 0, half);
    }
    for (NamedBarrier& b : cta.barriers) b = NamedBarrier();
    cta.warps.resize(warps);
    for (uint32_t i = 0; i < warps; ++i) {
      Warp& w = cta.warps[i];
      w.cta = &cta;
      w.group = &g;
      w.kernel = &k;
      w.index = i;
      w.first_tid = (r * warps + i) * 32;
      if (w.registers.size() < k.register_bytes + 64) w.registers.resize(k.register_bytes + 64);
      w.base[0] = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(w.registers.data()) + 63) / 64 * 64);
      w.base[1] = k.constants;
      w.pc = 0;
      const uint32_t left = threads - i * 32;
      w.active = w.live = left >= 32 ? kAll : (1u << left) - 1;
      w.parked.clear();
      w.min_parked = UINT32_MAX;
      w.carry = 0;
      w.yield = false;
      w.cluster_pending = false;
      w.async.reset();
      w.bulk_groups.reset();
      w.in_flight.reset();
      w.clocks = g.race_checks ? g.races.clocks(w.first_tid) : nullptr;
      set_specials(w, launch, cta);
    }
  }
}

[[noreturn]] void report_deadlock(Group& g) {
  // The most telling lanes first: those that wait for others of their own warp.
  std::string waits;
  int listed = 0;
  Warp* at_warp = nullptr;
  LaneGroup at;
  for (auto& cta : g.ctas) {
    for (Warp& w : cta->warps) {
      for (const LaneGroup& l : w.parked) {
        if (!at_warp || (l.state == LaneGroup::kConverge && at.state != LaneGroup::kConverge))
          at_warp = &w, at = l;
        if (listed++ < 6)
          waits += fmt::format("; warp {} lanes {:#x} wait at {}", w.index, l.mask,
                               place(*w.kernel, l.state == LaneGroup::kBarrier ? l.pc - 1 : l.pc));
      }
      if (w.active && listed++ < 6)
        waits += fmt::format("; warp {} lanes {:#x} spin at {}", w.index, w.active, place(*w.kernel, w.pc));
      if (!at_warp && w.active) at_warp = &w, at = {w.pc, w.active};
    }
  }
  if (!at_warp) throw Fault("deadlock with no lane alive", kFaultTimeout);
  const uint32_t pc = at.state == LaneGroup::kBarrier ? at.pc - 1 : at.pc;
  const Inst& in = at_warp->kernel->code[std::min<size_t>(pc, at_warp->kernel->code.size() - 1)];
  std::string what;
  if (at.state == LaneGroup::kConverge) {
    const Mask missing = at.waiting_for & ~at.mask & at_warp->live;
    what = in.cls == Class::kBarrier
               ? fmt::format("divergent barrier: lanes {:#x} of the warp never arrive here", missing)
               : fmt::format("member mask names lanes {:#x}, which never arrive here", missing);
  } else if (at.state == LaneGroup::kBarrier) {
    const NamedBarrier& b = at_warp->cta->barriers[at.barrier];
    what = fmt::format("deadlock: barrier {} has {} of {} threads", at.barrier, b.arrived,
                       b.expected ? b.expected : at_warp->cta->live_threads);
  } else {
    what = "deadlock: waits for something that nobody will do";
  }
  fault(*at_warp, in, __builtin_ctz(at.mask ? at.mask : 1), kFaultTimeout, what + waits);
}

template <bool kCount>
void run_group(Group& g, uint64_t seed, const std::atomic<bool>& stop) {
  std::vector<Warp*> warps;
  for (auto& cta : g.ctas)
    for (Warp& w : cta->warps) warps.push_back(&w);
  const uint64_t limit = options().step_limit;
  uint32_t idle_rounds = 0;
  for (;;) {
    if (stop.load(std::memory_order_relaxed)) return;
    if (seed) {
      for (size_t i = warps.size(); i > 1; --i) std::swap(warps[i - 1], warps[g.random() % i]);
    }
    bool progress = false, alive = false;
    for (Warp* w : warps) {
      if (!w->live) continue;
      alive = true;
      if (!w->active && w->min_parked == UINT32_MAX) continue;
      w->progress = true;
      run_warp<kCount>(*w, seed ? 8 + g.random() % 200 : 4000);
      progress |= w->progress;
      if (limit && g.steps > limit) {
        const Inst& in = w->kernel->code[std::min<size_t>(w->pc, w->kernel->code.size() - 1)];
        fault(*w, in, w->active ? __builtin_ctz(w->active) : 0, kFaultTimeout,
              fmt::format("the block took more than {} warp instructions", limit));
      }
    }
    if (!alive) break;
    if (progress) {
      idle_rounds = 0;
      if (seed && !g.bulk.empty() && g.random() % 4 == 0) run_one_bulk(g);
      continue;
    }
    if (run_one_bulk(g)) {
      idle_rounds = 0;
      continue;
    }
    bool runnable = false;
    for (Warp* w : warps) runnable |= w->live && (w->active || w->min_parked != UINT32_MAX);
    // Lanes that only try a barrier in vain are runnable; after enough rounds in which nobody did anything
    // else, nobody will.
    if (!runnable || ++idle_rounds > 2000) report_deadlock(g);
  }
  while (run_one_bulk(g)) {
  }
}

void complete_barrier(Cta& cta, uint32_t id) {
  NamedBarrier& b = cta.barriers[id];
  Group& g = *cta.group;
  const bool whole = b.expected == 0 && g.ctas.size() == 1;
  b.last_true = b.true_count, b.last_voted = b.voted;
  for (Warp& w : cta.warps) {
    bool woken = false;
    for (LaneGroup& l : w.parked) {
      if (l.state != LaneGroup::kBarrier || l.barrier != id) continue;
      l.state = LaneGroup::kReady;
      woken = true;
      if (g.race_checks && !whole) g.races.acquire(w, l.mask, b.clock);
    }
    if (woken) update_min(w);
  }
  if (g.race_checks && whole) g.races.settle_all();
  const uint32_t t = b.last_true, v = b.last_voted;
  b = NamedBarrier();
  b.last_true = t, b.last_voted = v;
}

// --- host threads
// ----------------------------------------------------------------------------------------------------

class Pool {
 public:
  // Calls job(worker) on `n` workers, the calling thread among them, and returns when all are done.
  void run(int n, const std::function<void(int)>& job) {
    std::unique_lock lock(mutex_);
    while (static_cast<int>(started_) < n - 1) {
      const int id = static_cast<int>(++started_);
      std::thread([this, id] { work(id); }).detach();
    }
    job_ = &job, workers_ = n, pending_ = n - 1, ++round_;
    wake_.notify_all();
    lock.unlock();
    job(0);
    lock.lock();
    done_.wait(lock, [&] { return pending_ == 0; });
  }

 private:
  void work(int id) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      if (id >= workers_) continue;
      const auto* job = job_;
      lock.unlock();
      (*job)(id);
      lock.lock();
      if (--pending_ == 0) done_.notify_all();
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* job_ = nullptr;
  int workers_ = 0, pending_ = 0;
  uint64_t round_ = 0;
  size_t started_ = 0;
};

}  // namespace

bool run_one_bulk(Group& g) {
  if (g.bulk.empty()) return false;
  const size_t i = options().seed ? g.random() % g.bulk.size() : 0;
  const std::function<void()> copy = std::move(g.bulk[i]);
  g.bulk.erase(g.bulk.begin() + static_cast<long>(i));
  copy();
  return true;
}

bool converged(Warp& w, const Inst& in, Mask* mask, Mask needed) {
  size_t kept = 0;
  for (size_t i = 0; i < w.parked.size(); ++i) {
    const LaneGroup& l = w.parked[i];
    if (l.state == LaneGroup::kConverge && l.pc == in.index) {
      *mask |= l.mask, needed |= l.waiting_for;
    } else {
      w.parked[kept++] = l;
    }
  }
  w.parked.resize(kept);
  w.active |= *mask;
  needed &= w.live;
  if ((needed & ~*mask) == 0) return true;
  if (w.active != *mask) w.park({w.pc, w.active & ~*mask});
  w.park({in.index, *mask, LaneGroup::kConverge, needed});
  w.active = 0;
  return false;
}

void barrier_arrive(Warp& w, const Inst& in, Mask mask, uint32_t id, uint32_t expected, uint32_t threads,
                    bool wait) {
  Cta& cta = *w.cta;
  if (id >= 16)
    fault(w, in, __builtin_ctz(mask), kFaultInstruction,
          fmt::format("barrier {}: a block has 16 barriers", id));
  NamedBarrier& b = cta.barriers[id];
  if (b.arrived && b.expected != expected)
    fault(w, in, __builtin_ctz(mask), kFaultLaunch,
          fmt::format("barrier {} is used with {} and with {} threads at a time", id, b.expected, expected));
  b.expected = expected;
  b.arrived += threads;
  if (w.group->race_checks && (expected || w.group->ctas.size() > 1))
    w.group->races.release(w, mask, &b.clock);
  if (wait) {
    LaneGroup l{w.pc, mask, LaneGroup::kBarrier};
    l.barrier = id;
    w.park(l);
    w.active &= ~mask;
  }
  const uint32_t all = expected ? expected : cta.live_threads;
  if (b.arrived > all)
    fault(w, in, __builtin_ctz(mask), kFaultLaunch,
          fmt::format("barrier {} expects {} threads and got {}", id, all, b.arrived));
  if (b.arrived == all) complete_barrier(cta, id);
}

namespace {
void complete_cluster(Group& g) {
  g.cluster_arrived = 0;
  ++g.cluster_phase;
  g.cluster_done = g.cluster_clock;
  g.cluster_clock.reset();
  for (auto& cta : g.ctas) {
    for (Warp& w : cta->warps) {
      for (LaneGroup& l : w.parked)
        if (l.state == LaneGroup::kCluster) l.state = LaneGroup::kReady;
      update_min(w);
    }
  }
}
}  // namespace

void cluster_arrive(Warp& w, Mask mask) {
  Group& g = *w.group;
  for_lanes(mask, [&](int i) { w.cluster_phase[i] = g.cluster_phase; });
  g.cluster_arrived += static_cast<uint32_t>(__builtin_popcount(mask));
  if (g.race_checks) g.races.release(w, mask, &g.cluster_clock);
  if (g.cluster_arrived == g.cluster_live) complete_cluster(g);
}

bool cluster_wait(Warp& w, const Inst& in, Mask mask) {
  Group& g = *w.group;
  Mask open = 0;
  for_lanes(mask, [&](int i) { open |= static_cast<Mask>(w.cluster_phase[i] == g.cluster_phase) << i; });
  if (!open) {
    if (g.race_checks) g.races.acquire(w, mask, g.cluster_done);
    return true;
  }
  w.park({in.index, mask, LaneGroup::kCluster});
  if (w.active & ~mask) w.park({w.pc, w.active & ~mask});
  w.active = 0;
  return false;
}

namespace {
// Whether lanes that leave at `exit_pc` went past the barrier at `barrier_pc`, on to code that follows it,
// rather than leaving before it (which is allowed): their last basic block does something, and the barrier
// leads there.
bool went_past(const Kernel& k, uint32_t barrier_pc, uint32_t exit_pc) {
  std::vector<char> leads(k.code.size(), 0), target(k.code.size(), 0);
  std::vector<uint32_t> open = {barrier_pc + 1};
  for (const Inst& in : k.code)
    if (in.flags & kFlagBranch) target[in.target] = 1;
  while (!open.empty()) {
    const uint32_t pc = open.back();
    open.pop_back();
    if (pc >= k.code.size() || leads[pc]) continue;
    leads[pc] = 1;
    const Inst& in = k.code[pc];
    if (in.flags & kFlagBranch) open.push_back(in.target);
    if (in.flags & kFlagTable)
      for (uint32_t t : k.targets[in.aux]) open.push_back(t);
    if (!(in.flags & kFlagStops) || in.guard.present()) open.push_back(pc + 1);
  }
  if (!leads[exit_pc] || exit_pc == 0 || target[exit_pc]) return false;
  return !(k.code[exit_pc - 1].flags & (kFlagBranch | kFlagStops | kFlagTable)) && leads[exit_pc - 1];
}
}  // namespace

void exit_lanes(Warp& w, Mask mask) {
  Cta& cta = *w.cta;
  Group& g = *w.group;
  for (const LaneGroup& l : w.parked) {
    if (l.state != LaneGroup::kConverge || !(l.waiting_for & mask) ||
        !(w.kernel->code[l.pc].flags & kFlagAligned))
      continue;
    if (went_past(*w.kernel, l.pc, w.pc - 1))
      fault(w, w.kernel->code[l.pc], __builtin_ctz(l.mask), kFaultTimeout,
            fmt::format("divergent barrier: lanes {:#x} of the warp went past it", l.waiting_for & mask));
  }
  if (w.bulk_groups) finish_bulk(w, mask);
  w.live &= ~mask;
  w.active &= ~mask;
  const uint32_t n = static_cast<uint32_t>(__builtin_popcount(mask));
  cta.live_threads -= n;
  wake_converging(w);
  if (g.race_checks && g.ctas.size() > 1) {
    Snapshot none;
    g.races.release(w, mask, &none);
  }
  for (uint32_t id = 0; id < 16; ++id) {
    NamedBarrier& b = cta.barriers[id];
    if (b.arrived && !b.expected && b.arrived == cta.live_threads) complete_barrier(cta, id);
  }
  g.cluster_live -= n;
  if (g.cluster_arrived && g.cluster_arrived == g.cluster_live) complete_cluster(g);
}

void run_on_threads(uint64_t most, const std::function<void(int)>& job) {
  static const int processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int wanted = options().threads > 0 ? options().threads : processors;
  const int n = static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(wanted), most));
  if (n <= 1) return job(0);
  static Pool* pool = new Pool;
  pool->run(n, job);
}

void run_launch(const Launch& launch, Counters* counters) {
  const uint64_t clusters = launch.cooperative ? 1 : launch.grid.count() / launch.cluster.count();
  const uint64_t seed = options().seed;
  // A seeded walk over the clusters: a stride without common factor.
  uint64_t stride = 1, offset = 0;
  if (seed && clusters > 1) {
    stride = (seed * 0x9e3779b97f4a7c15ull >> 20) % clusters;
    while (std::gcd(stride, clusters) != 1) stride = (stride + 1) % clusters;
    offset = (seed * 0xd1342543de82ef95ull >> 20) % clusters;
  }
  std::atomic<uint64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::unique_ptr<Fault> first;
  uint64_t first_index = UINT64_MAX;
  Counters sum;
  const std::function<void(int)> job = [&](int) {
    thread_local std::unique_ptr<Group> group;
    if (!group) group = std::make_unique<Group>();
    Group& g = *group;
    g.counters = Counters();
    g.cache.assign(launch.kernel->code.size(), {});
    for (;;) {
      const uint64_t i = next.fetch_add(1);
      if (i >= clusters || stop.load()) break;
      const uint64_t index =
          static_cast<uint64_t>((static_cast<unsigned __int128>(i) * stride + offset) % clusters);
      try {
        set_up(g, launch, index, seed);
        if (launch.count) {
          run_group<true>(g, seed, stop);
        } else {
          run_group<false>(g, seed, stop);
        }
      } catch (const Fault& f) {
        std::lock_guard lock(mutex);
        stop = true;
        g.bulk.clear();
        if (index < first_index) first = std::make_unique<Fault>(f), first_index = index;
      }
    }
    std::lock_guard lock(mutex);
    sum.add(g.counters);
  };
  run_on_threads(clusters, job);
  if (counters) counters->add(sum);
  if (first) throw *first;
}

}  // namespace softgpu
