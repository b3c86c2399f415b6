#include "cuda/softgpu/access.h"

#include <fmt/format.h>

#include <algorithm>

namespace softgpu {
namespace {

const char* verb(Use use) {
  return use == Use::kRead ? "read" : use == Use::kWrite ? "write" : "atomic access";
}

void count_global(Warp& w, Mask mask, const uint64_t* a, uint32_t bytes, Use use) {
  Counters& c = w.group->counters;
  uint64_t sectors[kLanes * 2];
  int n = 0;
  for_lanes(mask, [&](int i) {
    sectors[n++] = a[i] / 32;
    if ((a[i] + bytes - 1) / 32 != a[i] / 32) sectors[n++] = (a[i] + bytes - 1) / 32;
  });
  std::sort(sectors, sectors + n);
  const uint64_t distinct = static_cast<uint64_t>(std::unique(sectors, sectors + n) - sectors);
  const uint64_t asked = static_cast<uint64_t>(__builtin_popcount(mask)) * bytes;
  if (use == Use::kRead) {
    ++c.global_loads, c.load_sectors += distinct, c.load_bytes += asked;
  } else {
    ++c.global_stores, c.store_sectors += distinct, c.store_bytes += asked;
  }
}

// Passes over the 32 banks of 4 bytes. Wide accesses go by halves and quarters of a warp.
void count_shared(Warp& w, Mask mask, const uint64_t* a, uint32_t bytes) {
  Counters& c = w.group->counters;
  const uint32_t words = std::max(1u, bytes / 4), lanes_per_phase = 32 / words;
  ++c.shared_requests;
  for (uint32_t phase = 0; phase < words; ++phase) {
    uint64_t seen[32][8];
    int count[32] = {};
    int worst = 0;
    for (uint32_t i = phase * lanes_per_phase; i < (phase + 1) * lanes_per_phase; ++i) {
      if (!((mask >> i) & 1)) continue;
      for (uint32_t k = 0; k < words; ++k) {
        const uint64_t word = a[i] / 4 + k;
        const uint32_t bank = word % 32;
        const int known = std::min(count[bank], 8);
        if (std::find(seen[bank], seen[bank] + known, word) != seen[bank] + known) continue;
        if (count[bank] < 8) seen[bank][count[bank]] = word;
        worst = std::max(worst, ++count[bank]);
      }
    }
    c.shared_wavefronts += static_cast<uint64_t>(worst);
    c.shared_ideal += worst ? 1 : 0;
  }
}

// Written and, unless `mask` leaves them out, read by no copy under way.
bool all_written(const uint8_t* s, uint64_t n, uint8_t mask = kState) {
  uint64_t bad = 0;
  const uint64_t wide = 0x0101010101010101ull * mask;
  for (; n >= 8; n -= 8, s += 8) {
    uint64_t v;
    std::memcpy(&v, s, 8);
    bad |= (v & wide) ^ 0x0101010101010101ull;
  }
  for (; n; --n, ++s) bad |= (*s & mask) ^ 1u;
  return bad == 0;
}

[[noreturn]] void fault_alignment(Warp& w, const Inst& in, int lane, uint64_t a, uint32_t bytes, Use use) {
  fault(w, in, lane, kFaultAlignment,
        fmt::format("misaligned {} of {} bytes at {:#x}: the address must be a multiple of {}", verb(use),
                    bytes, a, bytes));
}

void check_alignment(Warp& w, const Inst& in, Mask mask, const uint64_t* a, uint32_t bytes, Use use) {
  uint64_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (mask >> i) & 1 ? a[i] : 0;
  if ((bits & (bytes - 1)) == 0) return;
  for_lanes(mask, [&](int i) {
    if (a[i] & (bytes - 1)) fault_alignment(w, in, i, a[i], bytes, use);
  });
}

void check_state(Warp& w, const Inst& in, int lane, uint8_t* shadow, uint32_t bytes, Use use,
                 const std::string& where) {
  for (uint32_t k = 0; k < bytes; ++k) {
    if (shadow[k] & kPending)
      fault(w, in, lane, kFaultLaunch,
            fmt::format(
                "{} of {} bytes, {}: byte {} belongs to an asynchronous copy that has not been waited for",
                verb(use), bytes, where, k));
    if (use != Use::kRead && shadow[k] >= kReading)
      fault(w, in, lane, kFaultLaunch,
            fmt::format("{} of {} bytes, {}: byte {} is still to be read by an asynchronous copy that has "
                        "not been waited for",
                        verb(use), bytes, where, k));
    if (use != Use::kWrite && (shadow[k] & kState) == kUnwritten)
      fault(w, in, lane, kFaultLaunch,
            fmt::format("{} of {} bytes, {}: byte {} was never written", verb(use), bytes, where, k));
  }
}

void global(Warp& w, const Inst& in, Mask mask, const uint64_t* a, uint32_t bytes, Use use, Access* out) {
  Group& g = *w.group;
  check_alignment(w, in, mask, a, bytes, use);
  bool contiguous = mask == kAll;
  uint64_t differs = 0;
  for (int i = 0; i < kLanes; ++i) differs |= a[i] ^ (a[0] + static_cast<uint64_t>(i) * bytes);
  contiguous = contiguous && differs == 0;
  uint64_t lo = UINT64_MAX, hi = 0;
  if (contiguous) {
    lo = a[0], hi = a[31];
  } else {
    for (int i = 0; i < kLanes; ++i) {
      const bool on = (mask >> i) & 1;
      lo = std::min(lo, on ? a[i] : UINT64_MAX);
      hi = std::max(hi, on ? a[i] : uint64_t{0});
    }
  }
  Group::Range& range = g.cache[in.index];
  if (lo < range.lo || hi + bytes > range.hi || hi + bytes < hi) {
    for_lanes(mask, [&](int i) {
      const Allocation* al = memory().find(a[i]);
      if (!al || !al->live || a[i] + bytes > al->end())
        fault(w, in, i, kFaultAddress,
              fmt::format("{} of {} bytes at {:#x} is outside every live allocation: {}", verb(use), bytes,
                          a[i], memory().describe(al && al->live ? al->end() : a[i])));
      range = {al->base, al->end()};
    });
  }
  std::memcpy(out->host, a, sizeof(uint64_t) * kLanes);
  out->contiguous = contiguous;
  if (g.init_checks) {
    if (contiguous && memory().in_arena(lo)) {
      uint8_t* s = memory().shadow(lo);
      if (use == Use::kWrite) {
        std::memset(s, kWritten, size_t{32} * bytes);
      } else if (!all_written(s, uint64_t{32} * bytes)) {
        for (int i = 0; i < kLanes; ++i)
          check_state(w, in, i, memory().shadow(a[i]), bytes, use, memory().describe(a[i]));
      }
    } else {
      for_lanes(mask, [&](int i) {
        if (!memory().in_arena(a[i])) return;
        uint8_t* s = memory().shadow(a[i]);
        if (use == Use::kWrite) {
          std::memset(s, kWritten, bytes);
        } else if (!all_written(s, bytes)) {
          check_state(w, in, i, s, bytes, use, memory().describe(a[i]));
        }
      });
    }
  } else if (use == Use::kWrite) {
    // Marks are kept up although nothing is checked, so that checks can be on for some launches only.
  }
  if (g.launch->count) count_global(w, mask, a, bytes, use);
}

void shared(Warp& w, const Inst& in, Mask mask, const uint64_t* a, uint32_t bytes, Use use, bool strong,
            Access* out) {
  Group& g = *w.group;
  check_alignment(w, in, mask, a, bytes, use);
  uint64_t differs = 0;
  for (int i = 0; i < kLanes; ++i) differs |= a[i] ^ (a[0] + static_cast<uint64_t>(i) * bytes);
  out->contiguous = mask == kAll && differs == 0;
  out->shared = true;
  Cta& own = *w.cta;
  uint64_t hi = 0;
  for (int i = 0; i < kLanes; ++i) hi = std::max(hi, (mask >> i) & 1 ? a[i] : uint64_t{0});
  const bool all_own = hi + bytes <= own.shared_bytes;
  if (all_own) {
    const uint64_t base = reinterpret_cast<uint64_t>(own.shared);
    for (int i = 0; i < kLanes; ++i) out->host[i] = base + a[i];
    if (g.init_checks) {
      if (out->contiguous) {
        uint8_t* s = own.shadow + a[0];
        if (use == Use::kWrite) {
          bool pending = false;
          for (uint32_t k = 0; k < 32 * bytes; ++k) pending |= s[k] & kBusy;
          if (pending)
            for (int i = 0; i < kLanes; ++i)
              check_state(w, in, i, own.shadow + a[i], bytes, use,
                          fmt::format("byte {} of shared memory", a[i]));
          std::memset(s, kWritten, size_t{32} * bytes);
        } else if (!all_written(s, uint64_t{32} * bytes, use == Use::kRead ? kState : 0xff)) {
          for (int i = 0; i < kLanes; ++i)
            check_state(w, in, i, own.shadow + a[i], bytes, use,
                        fmt::format("byte {} of shared memory", a[i]));
        }
      } else {
        for_lanes(mask, [&](int i) {
          uint8_t* s = own.shadow + a[i];
          if (use == Use::kWrite) {
            bool pending = false;
            for (uint32_t k = 0; k < bytes; ++k) pending |= s[k] & kBusy;
            if (pending) check_state(w, in, i, s, bytes, use, fmt::format("byte {} of shared memory", a[i]));
            std::memset(s, kWritten, bytes);
          } else if (!all_written(s, bytes, use == Use::kRead ? kState : 0xff)) {
            check_state(w, in, i, s, bytes, use, fmt::format("byte {} of shared memory", a[i]));
          }
        });
      }
    }
    if (g.race_checks) {
      for_lanes(mask, [&](int i) {
        g.races.access(w, in, i, own, static_cast<uint32_t>(a[i]), bytes, use != Use::kRead,
                       strong || use == Use::kAtomic);
      });
    }
  } else {
    out->contiguous = false;
    for_lanes(mask, [&](int i) {
      uint32_t offset;
      Cta& cta = shared_target(w, in, i, a[i], bytes, &offset);
      out->host[i] = reinterpret_cast<uint64_t>(cta.shared) + offset;
      if (g.init_checks) {
        check_state(w, in, i, cta.shadow + offset, bytes, use,
                    fmt::format("byte {} of shared memory of block rank {}", offset, cta.rank));
        if (use == Use::kWrite) std::memset(cta.shadow + offset, kWritten, bytes);
      }
      if (g.race_checks)
        g.races.access(w, in, i, cta, offset, bytes, use != Use::kRead, strong || use == Use::kAtomic);
    });
  }
  if (g.launch->count) count_shared(w, mask, a, bytes);
}

void local(Warp& w, const Inst& in, Mask mask, const uint64_t* a, uint32_t bytes, Use use, Access* out) {
  check_alignment(w, in, mask, a, bytes, use);
  out->contiguous = false;
  Cta& cta = *w.cta;
  const uint64_t half = cta.local.size() / 2;
  for_lanes(mask, [&](int i) {
    if (a[i] + bytes > cta.local_stride || a[i] + bytes < a[i])
      fault(w, in, i, kFaultAddress,
            fmt::format("{} of {} bytes at {:#x} is outside the thread's {} bytes of local memory", verb(use),
                        bytes, a[i], cta.local_stride));
    const uint64_t thread = w.index * 32 + static_cast<uint64_t>(i);
    out->host[i] = reinterpret_cast<uint64_t>(cta.local.data()) + thread * cta.local_stride + a[i];
    uint8_t* s = reinterpret_cast<uint8_t*>(out->host[i] + half);
    if (!w.group->init_checks) return;
    if (use == Use::kWrite) {
      std::memset(s, kWritten, bytes);
    } else if (!all_written(s, bytes)) {
      check_state(w, in, i, s, bytes, use, fmt::format("byte {} of local memory", a[i]));
    }
  });
}

void param(Warp& w, const Inst& in, Mask mask, const uint64_t* a, uint32_t bytes, Use use, Access* out) {
  check_alignment(w, in, mask, a, bytes, use);
  out->contiguous = false;
  const auto& params = w.group->launch->params;
  for_lanes(mask, [&](int i) {
    if (use != Use::kRead || a[i] + bytes > params.size())
      fault(w, in, i, kFaultAddress,
            fmt::format("{} of {} bytes at byte {} of {} bytes of kernel parameters", verb(use), bytes, a[i],
                        params.size()));
    out->host[i] = reinterpret_cast<uint64_t>(params.data()) + a[i];
  });
}

}  // namespace

Cta& shared_target(Warp& w, const Inst& in, int lane, uint64_t address, uint32_t bytes, uint32_t* offset) {
  Cta* cta = w.cta;
  const uint64_t rank = address >> 24;
  *offset = static_cast<uint32_t>(address & 0xffffff);
  if (rank > w.group->ctas.size())
    fault(w, in, lane, kFaultAddress,
          fmt::format("shared-memory address {:#x} names no block of the cluster", address));
  if (rank > 0) cta = w.group->ctas[rank - 1].get();
  if (uint64_t{*offset} + bytes > cta->shared_bytes)
    fault(w, in, lane, kFaultAddress,
          fmt::format("access of {} bytes at byte {} of shared memory, of which the block has {}", bytes,
                      *offset, cta->shared_bytes));
  if (cta != w.cta && cta->live_threads == 0)
    fault(w, in, lane, kFaultAddress,
          fmt::format("access to shared memory of block rank {}, whose threads have all exited", cta->rank));
  return *cta;
}

void check_async_read(Warp& w, const Inst& in, int lane, Cta& cta, uint32_t offset, uint32_t bytes) {
  if (w.group->init_checks && !all_written(cta.shadow + offset, bytes))
    check_state(w, in, lane, cta.shadow + offset, bytes, Use::kRead,
                fmt::format("byte {} of shared memory", offset));
  if (w.group->race_checks) w.group->races.async_read(w, in, lane, cta, offset, bytes);
}

void gather_addresses(Warp& w, const Inst&, const Ref& base, int64_t offset, uint64_t* out) {
  if (base.bits == 64) {
    const uint64_t* a = lanes<uint64_t>(w, base);
    for (int i = 0; i < kLanes; ++i) out[i] = a[i] + static_cast<uint64_t>(offset);
  } else {
    const uint32_t* a = lanes<uint32_t>(w, base);
    const uint32_t o = static_cast<uint32_t>(offset);
    for (int i = 0; i < kLanes; ++i) out[i] = a[i] + o;
  }
}

void translate(Warp& w, const Inst& in, Mask mask, Window window, const uint64_t* a, uint32_t bytes, Use use,
               bool strong, Access* out) {
  out->shared = false;
  switch (window) {
    case Window::kGlobal:
      return global(w, in, mask, a, bytes, use, out);
    case Window::kShared:
    case Window::kSharedCluster: {
      if (a[__builtin_ctz(mask)] >= kSharedWindow) break;  // a generic address in a 64-bit register
      return shared(w, in, mask, a, bytes, use, strong, out);
    }
    case Window::kLocal:
      return local(w, in, mask, a, bytes, use, out);
    case Window::kParam:
      return param(w, in, mask, a, bytes, use, out);
    default:
      break;
  }
  // Generic: each lane goes where its address points.
  const auto in_window = [&](uint64_t base) {
    return ballot(mask, [&](int i) { return a[i] - base < kWindowSize; });
  };
  const Mask s = in_window(kSharedWindow), l = in_window(kLocalWindow), p = in_window(kParamWindow),
             g = mask & ~(s | l | p);
  if (g == mask) return global(w, in, mask, a, bytes, use, out);
  uint64_t moved[kLanes];
  const auto part = [&](Mask m, uint64_t base, auto f) {
    if (!m) return;
    for (int i = 0; i < kLanes; ++i) moved[i] = a[i] - base;
    Access piece;
    piece.shared = false;
    f(m, &piece);
    for_lanes(m, [&](int i) { out->host[i] = piece.host[i]; });
    out->contiguous = m == mask && piece.contiguous;
    out->shared |= piece.shared;
  };
  part(s, kSharedWindow, [&](Mask m, Access* o) { shared(w, in, m, moved, bytes, use, strong, o); });
  part(l, kLocalWindow, [&](Mask m, Access* o) { local(w, in, m, moved, bytes, use, o); });
  part(p, kParamWindow, [&](Mask m, Access* o) { param(w, in, m, moved, bytes, use, o); });
  part(g, 0, [&](Mask m, Access* o) { global(w, in, m, moved, bytes, use, o); });
}

char* host_address(Warp& w, const Inst& in, int lane, uint64_t address, uint64_t bytes, const char* what) {
  if (address - kParamWindow < kWindowSize) {
    const auto& params = w.group->launch->params;
    const uint64_t at = address - kParamWindow;
    if (at + bytes > params.size())
      fault(w, in, lane, kFaultAddress, fmt::format("{} leaves the kernel parameters", what));
    return const_cast<char*>(params.data()) + at;
  }
  const Allocation* al = memory().find(address);
  if (!al || !al->live || address + bytes > al->end() || address + bytes < address)
    fault(w, in, lane, kFaultAddress,
          fmt::format("{} of {} bytes at {:#x} is outside every live allocation: {}", what, bytes, address,
                      memory().describe(address)));
  return reinterpret_cast<char*>(address);
}

}  // namespace softgpu
