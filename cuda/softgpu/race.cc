#include "cuda/softgpu/race.h"

#include <fmt/format.h>

#include <algorithm>

#include "cuda/softgpu/machine.h"

namespace softgpu {

void RaceDetector::start(uint32_t blocks, uint32_t warps, uint32_t bytes, bool subword) {
  const uint32_t words = (bytes + 3) / 4, all_warps = blocks * warps;
  if (blocks != blocks_ || all_warps != warps_ || words > words_ || (subword && !subword_)) {
    blocks_ = blocks, warps_ = all_warps, words_ = words, subword_ = subword;
    total_ = warps_ * 32;
    readers_ = warps_ + 1;  // the last one stands for all agents
    clock_.assign(warps_ + kAgents, 1);
    settled_.assign(warps_ + kAgents, 0);
    threads_.assign(total_, {});
    word_writes_.assign(size_t{blocks_} * words_, {});
    word_reads_.assign(size_t{blocks_} * words_ * readers_, {});
    byte_writes_.assign(subword_ ? size_t{blocks_} * words_ * 4 : 0, {});
    byte_reads_.assign(subword_ ? size_t{blocks_} * words_ * 4 * readers_ : 0, {});
  }
  fences_.resize(warps_);
  for (auto& list : fences_) list.clear();
  fences_lost_ = false;
  settle_all();
  for (uint32_t a = 0; a < kAgents; ++a) settled_[warps_ + a] = clock_[warps_ + a]++;
}

void RaceDetector::settle_all() {
  ++epoch_;
  for (uint32_t i = 0; i < warps_; ++i) settled_[i] = clock_[i]++;
  for (ThreadClock& t : threads_) t.known.reset();
}

void RaceDetector::release(Warp& w, uint32_t mask, Snapshot* into) {
  auto joined = std::make_shared<Clock>(total_ + kAgents, 0);
  const auto join = [&](const Snapshot& s) {
    if (!s) return;
    for (size_t i = 0; i < joined->size(); ++i) (*joined)[i] = std::max((*joined)[i], (*s)[i]);
  };
  join(*into);
  const Clock* last = nullptr;
  for_lanes(mask, [&](int l) {
    const Snapshot& s = w.clocks[l].known;
    if (s.get() != last) join(s), last = s.get();
  });
  const uint32_t clock = clock_[w.first_tid / 32]++;
  for_lanes(mask, [&](int l) { (*joined)[w.first_tid + static_cast<uint32_t>(l)] = clock; });
  *into = std::move(joined);
}

void RaceDetector::acquire(Warp& w, uint32_t mask, const Snapshot& from) {
  if (!from) return;
  const Clock* last = nullptr;
  Snapshot made;
  for_lanes(mask, [&](int l) {
    Snapshot& mine = w.clocks[l].known;
    if (!mine) {
      mine = from;
      return;
    }
    if (mine == from) return;
    if (mine.get() == last && made) {
      mine = made;
      return;
    }
    last = mine.get();
    auto joined = std::make_shared<Clock>(*mine);
    for (size_t i = 0; i < joined->size(); ++i) (*joined)[i] = std::max((*joined)[i], (*from)[i]);
    made = std::move(joined);
    mine = made;
  });
}

void RaceDetector::sync_warp(Warp& w, uint32_t mask) {
  Snapshot s;
  release(w, mask, &s);
  for_lanes(mask, [&](int l) { w.clocks[l].known = s; });
}

Snapshot RaceDetector::knowledge(Warp& w, int lane) {
  Snapshot s;
  release(w, 1u << lane, &s);
  return s;
}

void RaceDetector::agent_release(uint32_t agent, const Snapshot& issuer, Snapshot* into) {
  auto joined = *into ? std::make_shared<Clock>(**into) : std::make_shared<Clock>(total_ + kAgents, 0);
  (void)issuer;  // completion of a copy says nothing about what else its issuer did
  (*joined)[total_ + agent] = clock_[warps_ + agent]++;
  *into = std::move(joined);
}

void RaceDetector::access(Warp& w, const Inst& in, int lane, Cta& cta, uint32_t offset, uint32_t bytes,
                          bool write, bool strong) {
  const uint32_t tid = w.first_tid + static_cast<uint32_t>(lane);
  check({&w, &in, lane, tid, clock_[tid / 32], w.clocks[lane].known.get(), false}, cta, offset, bytes, write,
        strong);
}

void RaceDetector::proxy_fence(Warp& w, uint32_t mask) {
  const uint32_t warp = w.first_tid / 32;
  Fence f{clock_[warp]++, mask, {}, settled_};
  const Snapshot& first = w.clocks[__builtin_ctz(mask)].known;
  bool same = true;
  for_lanes(mask, [&](int l) { same &= w.clocks[l].known == first; });
  if (same) {
    f.known = {first};
  } else {
    for (int l = 0; l < 32; ++l) f.known.push_back(w.clocks[l].known);
  }
  auto& list = fences_[warp];
  list.push_back(std::move(f));
  if (list.size() <= kFences) return;
  list.erase(list.begin());
  fences_lost_ = true;
}

// Whether a fence lies between a write by `tid` at `clock` and what `reader`, who knows `known`, does now.
bool RaceDetector::fenced(uint32_t tid, uint32_t clock, uint32_t reader, const Clock* known) const {
  const auto comes_before_reader = [&](uint32_t by, const Fence& f) {
    return by == reader || before(by, f.clock, known);
  };
  const auto& own = fences_[tid / 32];  // mostly it is the writer's, and a late one
  for (auto f = own.rbegin(); f != own.rend() && f->clock >= clock; ++f)
    if ((f->lanes >> (tid % 32)) & 1 && comes_before_reader(tid, *f)) return true;
  for (uint32_t warp = 0; warp < fences_.size(); ++warp) {
    for (const Fence& f : fences_[warp]) {
      for (uint32_t m = f.lanes; m; m &= m - 1) {
        const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(m)), by = warp * 32 + lane;
        const Snapshot& knew = f.known.size() == 1 ? f.known[0] : f.known[lane];
        if ((clock <= f.settled[tid / 32] || (knew && (*knew)[tid] >= clock)) && comes_before_reader(by, f))
          return true;
      }
    }
  }
  return fences_lost_;
}

uint32_t RaceDetector::now(const Warp& w) const { return clock_[w.first_tid / 32]; }

bool RaceDetector::proxy_fenced(uint32_t tid, uint32_t clock, const Warp& w, int lane) const {
  return fenced(tid, clock, w.first_tid + static_cast<uint32_t>(lane), w.clocks[lane].known.get());
}

void RaceDetector::async_read(Warp& w, const Inst& in, int lane, Cta& cta, uint32_t offset, uint32_t bytes) {
  const uint32_t tid = w.first_tid + static_cast<uint32_t>(lane);
  const Clock* known = w.clocks[lane].known.get();
  check({&w, &in, lane, tid, clock_[tid / 32], known, false}, cta, offset, bytes, false, false, false);
  const auto judge = [&](const Write& last, uint32_t at) {
    if (!last.clock || last.tid >= total_ || fenced(last.tid, last.clock, tid, known)) return;
    fault(
        w, in, lane, kFaultLaunch,
        fmt::format("byte {} of shared memory was written by thread {} through the generic proxy and is read "
                    "through the async proxy with no fence.proxy.async between; written at {}",
                    at, last.tid % (warps_ / blocks_ * 32), place(*w.kernel, last.pc)));
  };
  const size_t first_word = size_t{cta.rank} * words_;
  for (uint32_t at = offset / 4; at < (offset + bytes + 3) / 4; ++at)
    judge(word_writes_[first_word + at], at * 4);
  for (uint32_t at = offset; subword_ && at < offset + bytes; ++at)
    judge(byte_writes_[first_word * 4 + at], at);
}

void RaceDetector::agent_access(Warp& w, const Inst& in, int lane, uint32_t agent, const Snapshot& issuer,
                                Cta& cta, uint32_t offset, uint32_t bytes, bool write) {
  check({&w, &in, lane, total_ + agent, clock_[warps_ + agent], issuer.get(), true}, cta, offset, bytes,
        write, false);
}

void RaceDetector::check(const Who& who, Cta& cta, uint32_t offset, uint32_t bytes, bool write, bool strong,
                         bool record) {
  const size_t first_word = size_t{cta.rank} * words_;
  if (bytes >= 4 && offset % 4 == 0) {
    for (uint32_t at = offset; at < offset + bytes; at += 4) {
      const size_t cell = first_word + at / 4;
      check_cell(who, cta, at, word_writes_[cell], &word_reads_[cell * readers_], write, strong, record);
    }
    if (!subword_) return;
    for (uint32_t at = offset; at < offset + bytes; ++at) {
      const size_t cell = first_word * 4 + at;
      check_cell(who, cta, at, byte_writes_[cell], &byte_reads_[cell * readers_], write, strong, false);
      if (who.agent && write) byte_writes_[cell] = {};  // no thread's any more
    }
    return;
  }
  for (uint32_t at = offset; at < offset + bytes; ++at) {
    const size_t cell = first_word + at / 4;
    check_cell(who, cta, at, word_writes_[cell], &word_reads_[cell * readers_], write, strong, false);
    const size_t byte_cell = first_word * 4 + at;
    check_cell(who, cta, at, byte_writes_[byte_cell], &byte_reads_[byte_cell * readers_], write, strong,
               record);
  }
}

void RaceDetector::check_cell(const Who& who, Cta& cta, uint32_t offset, Write& last, Read* reads, bool write,
                              bool strong, bool record) {
  if (last.clock && last.tid != who.tid && !(strong && last.strong) &&
      !before(last.tid, last.clock, who.known))
    report(who, cta, offset, write, last.tid, true, last.pc);
  const uint32_t me = who.agent ? warps_ : who.tid / 32;
  if (!write) {
    if (!record) return;
    Read& r = reads[me];
    const uint32_t bit = who.agent ? 1u << (who.tid - total_) % 32 : 1u << (who.tid % 32);
    if (r.clock != who.clock || r.strong != strong) r = {who.clock, 0, strong, who.in->index};
    r.lanes |= bit;
    last.read_epoch = epoch_;
    return;
  }
  for (uint32_t u = 0; u < warps_ && last.read_epoch == epoch_; ++u) {
    const Read& r = reads[u];
    if (r.clock <= settled_[u] || (strong && r.strong)) continue;
    for (uint32_t m = r.lanes; m; m &= m - 1) {
      const uint32_t t = u * 32 + static_cast<uint32_t>(__builtin_ctz(m));
      if (t != who.tid && !(who.known && (*who.known)[t] >= r.clock))
        report(who, cta, offset, write, t, false, r.pc);
    }
  }
  if (record) last = {who.clock, who.tid, strong, who.in->index & 0x7fffffff, last.read_epoch};
}

void RaceDetector::report(const Who& who, Cta& cta, uint32_t offset, bool write, uint32_t other_tid,
                          bool other_write, uint32_t other_pc) {
  const uint32_t per_block = warps_ / blocks_ * 32;
  const std::string other =
      other_tid >= total_ ? "an asynchronous copy"
      : blocks_ > 1 ? fmt::format("thread {} of block rank {}", other_tid % per_block, other_tid / per_block)
                    : fmt::format("thread {}", other_tid);
  fault(*who.w, *who.in, who.lane, kFaultLaunch,
        fmt::format("race in shared memory: {} of byte {}{}, which {} {} with no barrier between, at {}",
                    write ? "write" : "read", offset,
                    blocks_ > 1 ? fmt::format(" of block rank {}", cta.rank) : "", other,
                    other_write ? "wrote" : "read", place(*who.w->kernel, other_pc)));
}

}  // namespace softgpu
