// Shared-memory races by vector clocks: two threads touch the same byte, one writes, and no barrier orders
// them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace softgpu {

struct Warp;
struct Inst;
struct Group;
struct Cta;

// What a set of threads knows: for each thread of the group of blocks, and each agent that completes
// asynchronous copies, the last clock whose accesses come before. Immutable once shared.
using Clock = std::vector<uint32_t>;
using Snapshot = std::shared_ptr<const Clock>;

struct ThreadClock {
  Snapshot known;
};

// Clocks: every warp has one, raised whenever some of its lanes release; an access carries its warp's clock.
// A lane has a snapshot of what it knows. A barrier of all threads settles everything before it, so that most
// accesses are judged by one comparison; snapshots serve warp, named, cluster and memory barriers.
class RaceDetector {
 public:
  // Before the blocks of a group start. `bytes` of shared memory in each of `blocks` blocks of `warps` warps.
  void start(uint32_t blocks, uint32_t warps, uint32_t bytes, bool subword);
  ThreadClock* clocks(uint32_t first_tid) { return &threads_[first_tid]; }

  // Lanes `mask` of a warp take part in a synchronisation: what they know, and have done, joins `into`.
  void release(Warp& w, uint32_t mask, Snapshot* into);
  void acquire(Warp& w, uint32_t mask, const Snapshot& from);
  // Lanes `mask` execute fence.proxy.async.
  void proxy_fence(Warp& w, uint32_t mask);
  // The clock of what a warp does now.
  uint32_t now(const Warp& w) const;
  // Whether a fence.proxy.async lies between what thread `tid` did at `clock` and what a lane does now.
  bool proxy_fenced(uint32_t tid, uint32_t clock, const Warp& w, int lane) const;
  // All lanes of `mask` synchronise with one another.
  void sync_warp(Warp& w, uint32_t mask);
  // Every thread of the group has met every other.
  void settle_all();

  // Agents carry out bulk copies; an agent belongs to an mbarrier (or a bulk group) of a block.
  void agent_release(uint32_t agent, const Snapshot& issuer, Snapshot* into);

  // An access by one lane. `strong` accesses (atomic, volatile) do not race with one another.
  void access(Warp& w, const Inst& in, int lane, Cta& cta, uint32_t offset, uint32_t bytes, bool write,
              bool strong);
  // Judges a read that hardware makes for one lane through the async proxy, and does not record it: what a
  // thread wrote must lie before a fence.proxy.async that lies before the lane.
  void async_read(Warp& w, const Inst& in, int lane, Cta& cta, uint32_t offset, uint32_t bytes);
  // An access by an agent for the instruction that started the copy; `issuer` is what its thread knew then.
  void agent_access(Warp& w, const Inst& in, int lane, uint32_t agent, const Snapshot& issuer, Cta& cta,
                    uint32_t offset, uint32_t bytes, bool write);
  // What a lane knows now, its own accesses included.
  Snapshot knowledge(Warp& w, int lane);
  static constexpr uint32_t kAgents = 64;

 private:
  struct Write {
    uint32_t clock = 0, tid = 0;
    uint32_t strong : 1 = 0, pc : 31 = 0;
    uint32_t read_epoch = 0;  // epoch_ at the cell's last read
  };
  struct Read {
    uint32_t clock = 0, lanes = 0, strong = 0, pc = 0;
  };
  struct Who {
    Warp* w;
    const Inst* in;
    int lane;
    uint32_t tid, clock;
    const Clock* known;
    bool agent;
  };
  void check(const Who& who, Cta& cta, uint32_t offset, uint32_t bytes, bool write, bool strong,
             bool record = true);
  void check_cell(const Who& who, Cta& cta, uint32_t offset, Write& last, Read* reads, bool write,
                  bool strong, bool record);
  [[noreturn]] void report(const Who& who, Cta& cta, uint32_t offset, bool write, uint32_t other_tid,
                           bool other_write, uint32_t other_pc);
  uint32_t clock_index(uint32_t tid) const { return tid < total_ ? tid / 32 : warps_ + (tid - total_); }
  bool before(uint32_t tid, uint32_t clock, const Clock* known) const {
    return clock <= settled_[clock_index(tid)] || (known && (*known)[tid] >= clock);
  }

  bool fenced(uint32_t tid, uint32_t clock, uint32_t reader, const Clock* known) const;

  struct Fence {
    uint32_t clock, lanes;
    std::vector<Snapshot> known;    // of each lane, or one for all
    std::vector<uint32_t> settled;  // settled_ at the time
  };
  static constexpr size_t kFences = 64;  // kept of each warp
  std::vector<std::vector<Fence>> fences_;
  bool fences_lost_ = false;  // some are no longer kept

  std::vector<ThreadClock> threads_;
  std::vector<uint32_t> clock_, settled_;  // per warp of the group, then per agent; never go back
  uint32_t epoch_ = 0;  // raised whenever everything is settled; reads of an earlier one need no look
  uint32_t blocks_ = 0, total_ = 0, warps_ = 0, words_ = 0, readers_ = 0;
  bool subword_ = false;
  std::vector<Write> word_writes_, byte_writes_;
  std::vector<Read> word_reads_, byte_reads_;
};

}  // namespace softgpu
