// Instructions in which the lanes of a warp exchange values: shfl, vote, match, activemask, redux, elect.
#include <fmt/format.h>

#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

// Runs `body(members, lanes)` for each set of lanes that named the same members, once all of them are here.
template <class F>
void with_members(Warp& w, const Inst& in, Mask m, const Ref& member_ref, F body) {
  const u32* members = lanes<u32>(w, member_ref);
  Mask needed = 0;
  for_lanes(m, [&](int i) {
    if (!((members[i] >> i) & 1))
      fault(w, in, i, kFaultInstruction,
            fmt::format("the member mask {:#x} does not name the executing lane {}", members[i], i));
    needed |= members[i];
  });
  if (!converged(w, in, &m, needed)) return;
  Mask left = m;
  while (left) {
    const int first = __builtin_ctz(left);
    const Mask same = ballot(left, [=](int i) { return members[i] == members[first]; });
    const Mask named = members[first] & w.live;
    if (named != same)
      fault(w, in, first, kFaultInstruction,
            fmt::format("lanes {:#x} name the members {:#x}, of which lanes {:#x} name others", same,
                        members[first], named & ~same));
    body(same);
    left &= ~same;
  }
}

enum class Shfl : u8 { kUp, kDown, kBfly, kIdx };
template <Shfl kMode>
void shuffle_lanes(Warp& w, const Inst& in, Mask m) {
  u32* d = lanes<u32>(w, in.ops[0]);
  alignas(64) u32 a[kLanes];
  std::memcpy(a, lanes<u32>(w, in.ops[2]), sizeof a);
  const u32* b = lanes<u32>(w, in.ops[3]);
  const u32* c = lanes<u32>(w, in.ops[4]);
  alignas(64) u32 from[kLanes];
  Mask in_range = 0;
  for (int i = 0; i < kLanes; ++i) {
    const int lane = i, bval = static_cast<int>(b[i] & 31), cval = static_cast<int>(c[i] & 31),
              seg = static_cast<int>((c[i] >> 8) & 31);
    const int max_lane = (lane & seg) | (cval & ~seg), min_lane = lane & seg;
    int j;
    bool p;
    if constexpr (kMode == Shfl::kUp) {
      j = lane - bval, p = j >= max_lane;
    } else if constexpr (kMode == Shfl::kDown) {
      j = lane + bval, p = j <= max_lane;
    } else if constexpr (kMode == Shfl::kBfly) {
      j = lane ^ bval, p = j <= max_lane;
    } else {
      j = min_lane | (bval & ~seg), p = j <= max_lane;
    }
    from[i] = static_cast<u32>(p ? j : lane) & 31;
    in_range |= static_cast<Mask>(p) << i;
  }
  // A lane that is no member has no value to give: what hardware leaves undefined is NaN here.
  if (m != kAll) {
    for (int i = 0; i < kLanes; ++i)
      if (!((m >> i) & 1)) a[i] = 0xffffffff;
  }
  each(m, d, [&](int i) { return a[from[i]]; });
  set_predicate(w, in.ops[1], m, in_range);
}
template <Shfl kMode>
void shuffle(Warp& w, const Inst& in, Mask m) {
  with_members(w, in, m, in.ops[5], [&](Mask same) { shuffle_lanes<kMode>(w, in, same); });
}

enum class Vote : u8 { kAllOf, kAnyOf, kUni, kBallot };
template <Vote kMode>
void vote(Warp& w, const Inst& in, Mask m) {
  with_members(w, in, m, in.ops[2], [&](Mask same) {
    const Mask p = (predicate(w, in.ops[1]) ^ in.aux) & same;
    if constexpr (kMode == Vote::kBallot) {
      each(same, lanes<u32>(w, in.ops[0]), [=](int) { return p; });
    } else {
      const bool r = kMode == Vote::kAllOf ? p == same : kMode == Vote::kAnyOf ? p != 0 : p == 0 || p == same;
      set_predicate(w, in.ops[0], same, r ? kAll : 0);
    }
  });
}

template <class T, bool kAllMode>
void match(Warp& w, const Inst& in, Mask m) {
  with_members(w, in, m, in.ops[3], [&](Mask same) {
    T a[kLanes];
    std::memcpy(a, lanes<T>(w, in.ops[2]), sizeof a);
    u32* d = lanes<u32>(w, in.ops[0]);
    if (kAllMode) {
      const T first = a[__builtin_ctz(same)];
      const bool equal = ballot(same, [&](int i) { return a[i] == first; }) == same;
      each(same, d, [=](int) { return equal ? same : 0u; });
      set_predicate(w, in.ops[1], same, equal ? kAll : 0);
    } else {
      for_lanes(same, [&](int i) { d[i] = ballot(same, [&](int j) { return a[j] == a[i]; }); });
    }
  });
}

void active_mask(Warp& w, const Inst& in, Mask m) {
  each(m, lanes<u32>(w, in.ops[0]), [=](int) { return m; });
}

enum class Redux : u32 { kAdd, kMinU, kMaxU, kMinS, kMaxS, kAnd, kOr, kXor, kMinF, kMaxF };
void redux(Warp& w, const Inst& in, Mask m) {
  with_members(w, in, m, in.ops[2], [&](Mask same) {
    const u32* a = lanes<u32>(w, in.ops[1]);
    u32 r = a[__builtin_ctz(same)];
    const bool abs = in.imm & 1, nan = in.imm & 2;
    const auto value = [&](u32 v) { return bit<float>(abs ? v & 0x7fffffff : v); };
    if (in.aux >= static_cast<u32>(Redux::kMinF)) r = bit<u32>(value(r));
    for_lanes(same & (same - 1), [&](int i) {
      switch (static_cast<Redux>(in.aux)) {
        case Redux::kAdd:
          r += a[i];
          break;
        case Redux::kMinU:
          r = std::min(r, a[i]);
          break;
        case Redux::kMaxU:
          r = std::max(r, a[i]);
          break;
        case Redux::kMinS:
          r = static_cast<u32>(std::min(static_cast<i32>(r), static_cast<i32>(a[i])));
          break;
        case Redux::kMaxS:
          r = static_cast<u32>(std::max(static_cast<i32>(r), static_cast<i32>(a[i])));
          break;
        case Redux::kAnd:
          r &= a[i];
          break;
        case Redux::kOr:
          r |= a[i];
          break;
        case Redux::kXor:
          r ^= a[i];
          break;
        default: {
          const float x = bit<float>(r), y = value(a[i]);
          float v = static_cast<Redux>(in.aux) == Redux::kMinF ? std::fmin(x, y) : std::fmax(x, y);
          if (nan && (x != x || y != y)) v = NAN;
          r = bit<u32>(canonical(v));
        }
      }
    });
    each(same, lanes<u32>(w, in.ops[0]), [=](int) { return r; });
  });
}

void elect(Warp& w, const Inst& in, Mask m) {
  with_members(w, in, m, in.ops[2], [&](Mask same) {
    const u32 leader = static_cast<u32>(__builtin_ctz(same));
    if (in.ops[0].present()) each(same, lanes<u32>(w, in.ops[0]), [=](int) { return leader; });
    set_predicate(w, in.ops[1], same, 1u << leader);
  });
}

}  // namespace

bool decode_warp(Decoder& d) {
  const std::string& op = d.name();
  if (op == "activemask") {
    d.emit(active_mask, Class::kShuffle, {d.dst(0, 32)});
    return true;
  }
  if (op == "shfl") {
    if (!d.has("sync")) return false;
    Handler h = d.has("up")     ? static_cast<Handler>(shuffle<Shfl::kUp>)
                : d.has("down") ? static_cast<Handler>(shuffle<Shfl::kDown>)
                : d.has("bfly") ? static_cast<Handler>(shuffle<Shfl::kBfly>)
                                : static_cast<Handler>(shuffle<Shfl::kIdx>);
    d.emit(h, Class::kShuffle,
           {d.dst(0, 32), d.second(0), d.src(1, 32), d.src(2, 32), d.src(3, 32), d.src(4, 32)});
    return true;
  }
  if (op == "vote") {
    if (!d.has("sync")) return false;
    const bool ballot_mode = d.has("ballot");
    Handler h = ballot_mode    ? static_cast<Handler>(vote<Vote::kBallot>)
                : d.has("all") ? static_cast<Handler>(vote<Vote::kAllOf>)
                : d.has("any") ? static_cast<Handler>(vote<Vote::kAnyOf>)
                               : static_cast<Handler>(vote<Vote::kUni>);
    d.emit(h, Class::kShuffle, {d.dst(0, ballot_mode ? 32 : 1), d.pred(d.arg(1)), d.src(2, 32)}).aux =
        d.arg(1).negated ? kAll : 0;
    return true;
  }
  if (op == "match") {
    const int bits = d.type().bits;
    const bool all = d.has("all");
    Handler h =
        bits == 64 ? (all ? static_cast<Handler>(match<u64, true>) : static_cast<Handler>(match<u64, false>))
                   : (all ? static_cast<Handler>(match<u32, true>) : static_cast<Handler>(match<u32, false>));
    d.emit(h, Class::kShuffle, {d.dst(0, 32), d.second(0), d.src(1, bits), d.src(2, 32)});
    return true;
  }
  if (op == "redux") {
    const Type t = d.type();
    Redux r;
    if (t.kind == 'f') {
      if (!d.has("min") && !d.has("max")) return false;
      r = d.has("min") ? Redux::kMinF : Redux::kMaxF;
    } else if (d.has("add")) {
      r = Redux::kAdd;
    } else if (d.has("min") || d.has("max")) {
      r = t.kind == 's' ? (d.has("min") ? Redux::kMinS : Redux::kMaxS)
                        : (d.has("min") ? Redux::kMinU : Redux::kMaxU);
    } else {
      r = d.has("and") ? Redux::kAnd : d.has("or") ? Redux::kOr : Redux::kXor;
    }
    Inst& in = d.emit(redux, Class::kShuffle, {d.dst(0, 32), d.src(1, 32), d.src(2, 32)});
    in.aux = static_cast<u32>(r);
    in.imm = (d.has("abs") ? 1 : 0) | (d.has("NaN") ? 2 : 0);
    return true;
  }
  if (op == "elect") {
    d.emit(elect, Class::kShuffle,
           {d.arg(0).kind == ptx::Operand::kSink ? kNoRef : d.dst(0, 32), d.second(0), d.src(1, 32)});
    return true;
  }
  return false;
}

}  // namespace softgpu
