// cp.async and mbarrier. A copy's bytes are marked pending when it is issued and arrive only when it is
// waited for, so that a missing wait is always seen.
#include <fmt/format.h>

#include "cuda/softgpu/access.h"
#include "cuda/softgpu/async.h"
#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

AsyncGroups& groups(Warp& w, int lane) {
  if (!w.async) w.async = std::make_unique<AsyncGroups[]>(kLanes);
  return w.async[lane];
}

void carry_out(Warp& w, const Inst& in, int lane, const std::vector<AsyncCopy>& copies) {
  for (const AsyncCopy& c : copies) {
    std::memcpy(reinterpret_cast<void*>(c.to), reinterpret_cast<const void*>(c.from), c.bytes);
    std::memset(reinterpret_cast<char*>(c.to) + c.bytes, 0, c.zeros);
    if (w.group->init_checks) std::memset(c.cta->shadow + c.offset, kWritten, c.bytes + c.zeros);
    if (w.group->race_checks)
      w.group->races.access(w, in, lane, *c.cta, c.offset, c.bytes + c.zeros, true, false);
  }
}

// ops: destination, source, source size (absent: all)
void copy_async(Warp& w, const Inst& in, Mask m) {
  alignas(64) u64 to[kLanes], from[kLanes];
  gather_addresses(w, in, in.ops[0], static_cast<i32>(in.imm), to);
  gather_addresses(w, in, in.ops[1], in.imm >> 32, from);
  const u32 size = in.size;
  const u32* source_size = in.ops[2].present() ? lanes<u32>(w, in.ops[2]) : nullptr;
  const Mask ignored = in.ops[3].present() ? predicate(w, in.ops[3]) ^ in.aux : 0;
  Mask whole = m & ~ignored;
  if (source_size) {
    for_lanes(m, [&](int i) {
      if (source_size[i] > size)
        fault(w, in, i, kFaultInstruction,
              fmt::format("cp.async of {} bytes out of {}", source_size[i], size));
    });
    whole = ballot(whole, [=](int i) { return source_size[i] == size; });
  }
  Access target, source;
  // The source is read between now and the wait: it must be valid now.
  if (whole) translate(w, in, whole, Window::kGlobal, from, size, Use::kRead, false, &source);
  for_lanes(m & ~whole, [&](int i) {
    const u32 n = (ignored >> i) & 1 ? 0 : source_size[i];
    source.host[i] = n ? reinterpret_cast<u64>(host_address(w, in, i, from[i], n, "cp.async")) : 0;
    for (u32 k = 0; w.group->init_checks && k < n; ++k)
      if (memory().in_arena(from[i] + k) && *memory().shadow(from[i] + k) != kWritten)
        fault(w, in, i, kFaultLaunch,
              fmt::format("cp.async reads {}: never written", memory().describe(from[i] + k)));
  });
  translate(w, in, m, Window::kShared, to, size, Use::kWrite, false, &target);
  for_lanes(m, [&](int i) {
    u32 offset = 0;
    Cta& cta = shared_target(w, in, i, to[i] >= kSharedWindow ? to[i] - kSharedWindow : to[i], size, &offset);
    const u32 n = (whole >> i) & 1 ? size : (ignored >> i) & 1 ? 0 : source_size[i];
    if (w.group->init_checks) std::memset(cta.shadow + offset, kPending, size);
    std::memset(cta.shared + offset, 0xff, size);
    groups(w, i).open.push_back({target.host[i], source.host[i], n, size - n, offset, &cta});
  });
  if (w.group->launch->count) w.group->counters.async_bytes += static_cast<u64>(__builtin_popcount(m)) * size;
}
void commit_group(Warp& w, const Inst&, Mask m) {
  for_lanes(m, [&](int i) {
    AsyncGroups& g = groups(w, i);
    g.committed.push_back(std::move(g.open));
    g.open.clear();
  });
}
void wait_group(Warp& w, const Inst& in, Mask m) {
  if (!w.async) return;
  for_lanes(m, [&](int i) {
    AsyncGroups& g = groups(w, i);
    while (g.committed.size() > static_cast<size_t>(in.imm)) {
      carry_out(w, in, i, g.committed.front());
      g.committed.pop_front();
    }
    if (in.aux) {  // wait_all
      carry_out(w, in, i, g.open);
      g.open.clear();
    }
  });
}

// --- mbarrier
// ----------------------------------------------------------------------------------------------------------

void mbarrier_init(Warp& w, const Inst& in, Mask m) {
  u64 a[kLanes];
  gather_addresses(w, in, in.ops[0], in.imm, a);
  const u32* count = lanes<u32>(w, in.ops[1]);
  Access access;
  translate(w, in, m, Window::kShared, a, 8, Use::kWrite, false, &access);
  for_lanes(m, [&](int i) {
    if (count[i] == 0 || count[i] >= (1u << 20))
      fault(w, in, i, kFaultInstruction, fmt::format("mbarrier.init with a count of {}", count[i]));
    u32 offset;
    Cta& cta = shared_target(w, in, i, to_shared(a[i]), 8, &offset);
    const u64 word = mbarrier_word(0, 0, count[i], count[i]);
    std::memcpy(cta.shared + offset, &word, 8);
    Mbarrier& b = w.group->mbarriers[mbarrier_key(cta, offset)];
    b = Mbarrier();
    b.tid = w.first_tid + static_cast<u32>(i);
    b.pc = in.index;
    if (w.group->race_checks) b.clock = w.group->races.now(w);
  });
}
void mbarrier_invalidate(Warp& w, const Inst& in, Mask m) {
  u64 a[kLanes];
  gather_addresses(w, in, in.ops[0], in.imm, a);
  Access access;
  translate(w, in, m, Window::kShared, a, 8, Use::kWrite, false, &access);
  for_lanes(m, [&](int i) {
    u32 offset;
    Cta& cta = shared_target(w, in, i, to_shared(a[i]), 8, &offset);
    w.group->mbarriers.erase(mbarrier_key(cta, offset));
    std::memset(cta.shared + offset, 0xff, 8);
    std::memset(cta.shadow + offset, kUnwritten, 8);
  });
}

constexpr u32 kDrop = 2, kNoArrive = 4, kComplete = 8, kReturns = 16;
// ops: state (or absent), address, count (or absent), bytes (or absent)
void mbarrier_arrive(Warp& w, const Inst& in, Mask m) {
  u64 a[kLanes];
  gather_addresses(w, in, in.ops[1], in.imm, a);
  Access access;
  translate(w, in, m, Window::kShared, a, 8, Use::kAtomic, true, &access);
  const u32 kind = in.aux;
  for_lanes(m, [&](int i) {
    MbarrierRef b = find_mbarrier(w, in, i, to_shared(a[i]));
    const u32 count = (kind & kNoArrive) ? 0 : in.ops[2].present() ? lanes<u32>(w, in.ops[2])[i] : 1;
    const i64 bytes = in.ops[3].present() ? lanes<u32>(w, in.ops[3])[i] : 0;
    if (kind & kReturns) lanes<u64>(w, in.ops[0])[i] = b.load();
    if (!(kind & kNoArrive) && w.group->race_checks) w.group->races.release(w, 1u << i, &b.state->arriving);
    mbarrier_update(w, in, i, b, (kind & kComplete) ? -bytes : bytes, count, kind & kDrop);
  });
}
constexpr u32 kParity = 1, kTry = 2;
// ops: predicate, address, state or parity
void mbarrier_wait(Warp& w, const Inst& in, Mask m) {
  u64 a[kLanes];
  gather_addresses(w, in, in.ops[1], in.imm, a);
  Access access;
  translate(w, in, m, Window::kShared, a, 8, Use::kRead, true, &access);
  Mask done = 0;
  for_lanes(m, [&](int i) {
    MbarrierRef b = find_mbarrier(w, in, i, to_shared(a[i]));
    const u32 phase = static_cast<u32>(b.load() >> 63);
    const u32 asked = in.aux & kParity ? lanes<u32>(w, in.ops[2])[i] & 1
                                       : static_cast<u32>(lanes<u64>(w, in.ops[2])[i] >> 63);
    if (phase == asked) return;
    done |= 1u << i;
    if (w.group->race_checks) w.group->races.acquire(w, 1u << i, b.state->done);
  });
  set_predicate(w, in.ops[0], m, done);
  if (!done) w.yield = true, w.progress = false;
}
void mbarrier_pending(Warp& w, const Inst& in, Mask m) {
  const u64* s = lanes<u64>(w, in.ops[1]);
  each(m, lanes<u32>(w, in.ops[0]), [=](int i) { return static_cast<u32>(s[i] & 0xfffff); });
}
// cp.async.mbarrier.arrive: the lane's copies so far arrive, some time later, and count as one arrival.
void async_arrive(Warp& w, const Inst& in, Mask m) {
  u64 a[kLanes];
  gather_addresses(w, in, in.ops[0], in.imm, a);
  for_lanes(m, [&](int i) {
    MbarrierRef b = find_mbarrier(w, in, i, to_shared(a[i]));
    AsyncGroups& g = groups(w, i);
    std::vector<AsyncCopy> all;
    for (auto& c : g.committed) all.insert(all.end(), c.begin(), c.end()), c.clear();
    all.insert(all.end(), g.open.begin(), g.open.end());
    g.open.clear();
    if (!in.aux) mbarrier_raise(b);  // without .noinc the arrival brings its own expectation
    Warp* warp = &w;
    const Inst* inst = &in;
    const Snapshot known = w.group->race_checks ? w.group->races.knowledge(w, i) : Snapshot();
    const u64 at = to_shared(a[i]);
    const u32 agent = mbarrier_agent(b);
    w.group->bulk.push_back([=] {
      MbarrierRef late = find_mbarrier(*warp, *inst, i, at);
      for (const AsyncCopy& c : all) {
        std::memcpy(reinterpret_cast<void*>(c.to), reinterpret_cast<const void*>(c.from), c.bytes);
        std::memset(reinterpret_cast<char*>(c.to) + c.bytes, 0, c.zeros);
        if (warp->group->init_checks) std::memset(c.cta->shadow + c.offset, kWritten, c.bytes + c.zeros);
        if (warp->group->race_checks)
          warp->group->races.agent_access(*warp, *inst, i, agent, known, *c.cta, c.offset, c.bytes + c.zeros,
                                          true);
      }
      if (warp->group->race_checks) warp->group->races.agent_release(agent, known, &late.state->arriving);
      mbarrier_update(*warp, *inst, i, late, 0, 1, false);
    });
  });
}

}  // namespace

u64 mbarrier_word(u32 phase, i64 bytes, u32 expected, u32 pending) {
  return static_cast<u64>(phase) << 63 | (static_cast<u64>(bytes + (1 << 21)) & 0x3fffff) << 40 |
         static_cast<u64>(expected) << 20 | pending;
}
MbarrierRef find_mbarrier(Warp& w, const Inst& in, int lane, u64 address) {
  MbarrierRef b;
  b.cta = &shared_target(w, in, lane, address, 8, &b.offset);
  const auto it = w.group->mbarriers.find(mbarrier_key(*b.cta, b.offset));
  if (it == w.group->mbarriers.end())
    fault(w, in, lane, kFaultLaunch,
          fmt::format(
              "byte {} of shared memory holds no mbarrier (mbarrier.init is missing, or was not waited for)",
              b.offset));
  b.state = &it->second;
  return b;
}
void check_mbarrier_visible(Warp& w, const Inst& in, int lane, const MbarrierRef& b) {
  if (!w.group->race_checks || b.state->visible) return;
  if (!w.group->races.proxy_fenced(b.state->tid, b.state->clock, w, lane))
    fault(w, in, lane, kFaultLaunch,
          fmt::format("the mbarrier at byte {} of shared memory was set up with no fence.mbarrier_init (or "
                      "fence.proxy.async) before this copy completes on it, at {}",
                      b.offset, place(*w.kernel, b.state->pc)));
  b.state->visible = true;
}
u32 mbarrier_agent(const MbarrierRef& b) { return (b.offset / 8 + b.cta->rank * 17) % RaceDetector::kAgents; }
void mbarrier_raise(MbarrierRef& b) { b.store(b.load() + 1); }

void mbarrier_update(Warp& w, const Inst& in, int lane, MbarrierRef& b, i64 bytes, u32 count, bool drop) {
  const u64 word = b.load();
  u32 phase = static_cast<u32>(word >> 63), pending = word & 0xfffff, expected = (word >> 20) & 0xfffff;
  i64 open = static_cast<i64>((word >> 40) & 0x3fffff) - (1 << 21) + bytes;
  if (count > pending)
    fault(w, in, lane, kFaultLaunch,
          fmt::format("mbarrier: {} arrivals, {} are left in this phase", count, pending));
  if (open >= (1 << 20) || open <= -(1 << 20))
    fault(w, in, lane, kFaultLaunch, fmt::format("mbarrier: {} bytes outstanding, at most 2^20 - 1", open));
  pending -= count;
  if (drop) expected -= count;
  if (pending == 0 && open == 0) {
    phase ^= 1;
    pending = expected;
    b.state->done = std::move(b.state->arriving);
    b.state->arriving.reset();
  }
  b.store(mbarrier_word(phase, open, expected, pending));
  w.progress = true;
}

bool decode_async(Decoder& d) {
  const std::string& op = d.name();
  Symbol symbol;
  i64 offset;
  if (op == "cp" && d.has("async") && !d.has("bulk")) {
    if (d.has("commit_group")) {
      d.emit(commit_group, Class::kAsync, {});
      return true;
    }
    if (d.has("wait_group") || d.has("wait_all")) {
      Inst& in = d.emit(wait_group, Class::kAsync, {});
      in.imm = d.has("wait_all") ? 0 : d.arg(0).imm;
      in.aux = d.has("wait_all");
      return true;
    }
    if (d.has("mbarrier")) {
      const Ref a = d.address(d.arg(0), &symbol, &offset);
      Inst& in = d.emit(async_arrive, Class::kAsync, {a});
      in.imm = offset;
      in.aux = d.has("noinc");
      return true;
    }
    if (d.arg(2).kind != ptx::Operand::kImm) return false;
    const i64 size = d.arg(2).imm;
    if ((size != 4 && size != 8 && size != 16) || (d.has("cg") && size != 16)) d.unknown("size");
    i64 from_offset;
    const Ref to = d.address(d.arg(0), &symbol, &offset), from = d.address(d.arg(1), &symbol, &from_offset);
    Ref n = kNoRef, p = kNoRef;
    u32 flip = 0;
    const bool hint = d.has("L2::cache_hint");
    if (d.args() > (hint ? 4u : 3u)) {
      if (d.width(d.arg(3)) == 1) {
        p = d.pred(d.arg(3));
        flip = d.arg(3).negated ? kAll : 0;
      } else {
        n = d.src(3, 32);
      }
    }
    Inst& in = d.emit(copy_async, Class::kAsync, {to, from, n, p});
    in.size = static_cast<u8>(size);
    in.imm =
        static_cast<i64>(static_cast<u64>(static_cast<u32>(offset)) | static_cast<u64>(from_offset) << 32);
    in.aux = flip;
    return true;
  }
  if (op != "mbarrier") return false;
  if (d.has("init")) {
    const Ref a = d.address(d.arg(0), &symbol, &offset);
    d.emit(mbarrier_init, Class::kAsync, {a, d.src(1, 32)}).imm = offset;
    return true;
  }
  if (d.has("inval")) {
    const Ref a = d.address(d.arg(0), &symbol, &offset);
    d.emit(mbarrier_invalidate, Class::kAsync, {a}).imm = offset;
    return true;
  }
  if (d.has("pending_count")) {
    d.emit(mbarrier_pending, Class::kAsync, {d.dst(0, 32), d.src(1, 64)});
    return true;
  }
  if (d.has("test_wait") || d.has("try_wait")) {
    const Ref a = d.address(d.arg(1), &symbol, &offset);
    const bool parity = d.has("parity");
    Inst& in = d.emit(mbarrier_wait, Class::kAsync, {d.dst(0, 1), a, d.src(2, parity ? 32 : 64)});
    in.imm = offset;
    in.aux = (parity ? kParity : 0) | (d.has("try_wait") ? kTry : 0);
    return true;
  }
  const bool expect_only = d.has("expect_tx") && !d.has("arrive") && !d.has("arrive_drop");
  const bool complete = d.has("complete_tx");
  if (!d.has("arrive") && !d.has("arrive_drop") && !expect_only && !complete) return false;
  // mbarrier.arrive state, [a]{, n}; mbarrier.arrive _, [a]{, n}; mbarrier.expect_tx [a], n
  size_t at = 0;
  Ref state = kNoRef, count = kNoRef, bytes = kNoRef;
  u32 kind = 0;
  if (!expect_only && !complete && d.arg(0).kind != ptx::Operand::kMemory) {
    if (d.arg(0).kind == ptx::Operand::kReg) state = d.dst(0, 64), kind |= kReturns;
    at = 1;
  }
  const Ref a = d.address(d.arg(at), &symbol, &offset);
  if (d.has("expect_tx") || complete) {
    bytes = d.src(at + 1, 32);
  } else if (d.args() > at + 1) {
    count = d.src(at + 1, 32);
  }
  if (expect_only || complete) kind |= kNoArrive;
  if (complete) kind |= kComplete;
  if (d.has("arrive_drop")) kind |= kDrop;
  Inst& in = d.emit(mbarrier_arrive, Class::kAsync, {state, a, count, bytes});
  in.imm = offset;
  in.aux = kind;
  return true;
}

}  // namespace softgpu
