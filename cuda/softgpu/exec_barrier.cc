// Barriers of a block, a warp and a cluster; fences.
#include <fmt/format.h>

#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

constexpr u32 kAligned = 1, kArrive = 2, kHasCount = 4;
constexpr u32 kRedAnd = 1, kRedOr = 2, kRedPopc = 3;

u32 uniform(Warp& w, const Inst& in, const Ref& r, Mask m, const char* what) {
  const u32* v = lanes<u32>(w, r);
  const int first = __builtin_ctz(m);
  if (ballot(m, [=](int i) { return v[i] == v[first]; }) != m)
    fault(w, in, first, kFaultLaunch, fmt::format("{} differs between lanes", what));
  return v[first];
}

// ops: id, count
void barrier(Warp& w, const Inst& in, Mask m) {
  if (in.aux & kAligned) {
    if (!converged(w, in, &m, w.live)) return;
  }
  const u32 id = uniform(w, in, in.ops[0], m, "the barrier's number");
  u32 expected = 0, threads = static_cast<u32>(__builtin_popcount(m));
  if (in.aux & kHasCount) {
    expected = uniform(w, in, in.ops[1], m, "the barrier's number of threads");
    if (expected == 0 || expected % 32 != 0)
      fault(w, in, __builtin_ctz(m), kFaultInstruction,
            fmt::format("a barrier of {} threads: the number must be a multiple of 32", expected));
    if (in.aux & kAligned) threads = 32;  // a warp counts whole
    if (expected > (w.cta->threads + 31) / 32 * 32)
      fault(w, in, __builtin_ctz(m), kFaultLaunch,
            fmt::format("a barrier of {} threads in a block of {}", expected, w.cta->threads));
  }
  barrier_arrive(w, in, m, id, expected, threads, !(in.aux & kArrive));
}

// bar.red: arrives like bar.sync; the result is read by a second instruction once the barrier has opened.
// ops: id, count, predicate
void barrier_vote(Warp& w, const Inst& in, Mask m) {
  if ((in.aux & kAligned) && !converged(w, in, &m, w.live)) return;
  const u32 id = uniform(w, in, in.ops[0], m, "the barrier's number");
  if (id < 16) {
    NamedBarrier& b = w.cta->barriers[id];
    b.true_count +=
        static_cast<u32>(__builtin_popcount((predicate(w, in.ops[2]) ^ static_cast<Mask>(in.imm)) & m));
    b.voted += static_cast<u32>(__builtin_popcount(m));
  }
  const u32 expected =
      in.aux & kHasCount ? uniform(w, in, in.ops[1], m, "the barrier's number of threads") : 0;
  barrier_arrive(w, in, m, id, expected, expected ? 32 : static_cast<u32>(__builtin_popcount(m)), true);
}
// ops: destination, id
void barrier_result(Warp& w, const Inst& in, Mask m) {
  const NamedBarrier& b = w.cta->barriers[lanes<u32>(w, in.ops[1])[__builtin_ctz(m)] & 15];
  if (in.aux == kRedPopc) {
    each(m, lanes<u32>(w, in.ops[0]), [&](int) { return b.last_true; });
  } else {
    const bool r = in.aux == kRedAnd ? b.last_true == b.last_voted : b.last_true != 0;
    set_predicate(w, in.ops[0], m, r ? kAll : 0);
  }
}

void warp_sync(Warp& w, const Inst& in, Mask m) {
  const u32* members = lanes<u32>(w, in.ops[0]);
  Mask needed = 0;
  for_lanes(m, [&](int i) {
    if (!((members[i] >> i) & 1))
      fault(w, in, i, kFaultInstruction,
            fmt::format("the member mask {:#x} does not name the executing lane {}", members[i], i));
    needed |= members[i];
  });
  if (!converged(w, in, &m, needed)) return;
  if (!w.group->race_checks) return;
  Mask left = m;
  while (left) {
    const Mask set = members[__builtin_ctz(left)] & m;
    w.group->races.sync_warp(w, set);
    left &= ~set;
  }
}

void cluster_barrier(Warp& w, const Inst& in, Mask m) {
  if ((in.aux & kAligned) && !converged(w, in, &m, w.live)) return;
  if (in.aux & kArrive) {
    cluster_arrive(w, m);
  } else {
    cluster_wait(w, in, m);
  }
}
void proxy_fence(Warp& w, const Inst&, Mask m) {
  if (w.group->race_checks) w.group->races.proxy_fence(w, m);
}
void mbarrier_fence(Warp& w, const Inst&, Mask m) {
  for (auto& [key, b] : w.group->mbarriers)
    if (b.tid / kLanes == w.first_tid / kLanes && (m >> (b.tid % kLanes)) & 1) b.visible = true;
}
void fence(Warp&, const Inst&, Mask) { std::atomic_thread_fence(std::memory_order_seq_cst); }

}  // namespace

bool decode_barrier(Decoder& d) {
  const std::string& op = d.name();
  if (op == "membar" || op == "fence") {
    const bool shared = d.has("proxy") && (d.has("async") || d.has("async::generic")) && !d.has("global");
    d.emit(shared ? proxy_fence : d.has("mbarrier_init") ? mbarrier_fence : fence, Class::kBarrier, {});
    return true;
  }
  if (op != "bar" && op != "barrier") return false;
  if (d.has("cluster")) {
    Inst& in = d.emit(cluster_barrier, Class::kBarrier, {});
    in.aux = (d.has("arrive") ? kArrive : 0) | (d.has("aligned") ? kAligned : 0);
    return true;
  }
  if (d.has("warp")) {
    d.emit(warp_sync, Class::kBarrier, {d.src(0, 32)});
    return true;
  }
  // "bar" is "barrier.cta.*.aligned".
  const u32 aligned = op == "bar" || d.has("aligned") ? kAligned : 0;
  if (d.has("red")) {
    const bool popc = d.has("popc");
    const bool count = d.args() == 4;
    const ptx::Operand& p = d.arg(d.args() - 1);
    const Ref id = d.src(1, 32);
    Inst& in = d.emit(barrier_vote, Class::kBarrier, {id, count ? d.src(2, 32) : kNoRef, d.pred(p)});
    in.aux = aligned | (count ? kHasCount : 0);
    in.imm = p.negated ? 0xffffffff : 0;
    d.emit(barrier_result, Class::kBarrier, {d.dst(0, popc ? 32 : 1), id}).aux = popc           ? kRedPopc
                                                                                 : d.has("and") ? kRedAnd
                                                                                                : kRedOr;
    return true;
  }
  std::vector<Ref> refs = {d.src(0, 32)};
  if (d.args() > 1) refs.push_back(d.src(1, 32));
  d.emit(barrier, Class::kBarrier, refs).aux =
      aligned | (d.has("arrive") ? kArrive : 0) | (d.args() > 1 ? kHasCount : 0);
  if (aligned) d.kernel().code.back().flags |= kFlagAligned;
  return true;
}

}  // namespace softgpu
