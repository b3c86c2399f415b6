// cp.async.bulk, cp.async.bulk.tensor, cp.reduce.async.bulk, st.async, red.async. Copies into shared memory
// complete on an mbarrier: their bytes are pending from the issue until the copy is carried out, at a time
// the scheduler chooses. Copies out of shared memory belong to groups of their thread: their source may not
// be written until the group has been waited for, and they are carried out then.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cuda/softgpu/access.h"
#include "cuda/softgpu/async.h"
#include "cuda/softgpu/exec.h"
#include "cuda/softgpu/tensor_map.h"

namespace softgpu {
namespace {

struct Piece {
  u64 memory;  // host address of the other side, 0: a fill
  u32 shared;  // offset in the block's shared memory
  u32 bytes;
};

u64 value(Warp& w, const Ref& r, const Ref& offset, int lane) {
  const u64 o = lanes<u64>(w, offset)[lane];
  return r.bits == 64 ? lanes<u64>(w, r)[lane] + o : static_cast<u32>(lanes<u32>(w, r)[lane] + o);
}
void check_aligned(Warp& w, const Inst& in, int lane, u64 address, u64 to, const char* what) {
  if (address % to)
    fault(w, in, lane, kFaultAlignment,
          fmt::format("misaligned: the {} {:#x} must be a multiple of {}", what, address, to));
}
void check_written(Warp& w, const Inst& in, int lane, u64 address, u64 bytes) {
  if (!w.group->init_checks || !memory().in_arena(address)) return;
  const u8* s = memory().shadow(address);
  for (u64 k = 0; k < bytes; ++k)
    if (s[k] != kWritten)
      fault(w, in, lane, kFaultLaunch,
            fmt::format("a bulk copy reads {}: byte {} was never written", memory().describe(address), k));
}

// Starts a copy of `pieces` to the same places in every block of `targets`, completing on the mbarrier at
// offset `barrier` of that block (or of the one the address names). `source`: the block whose shared memory
// is read, or null.
void start_load(Warp& w, const Inst& in, int lane, std::shared_ptr<const std::vector<Piece>> pieces, u8 fill,
                const std::vector<std::pair<Cta*, u64>>& targets) {
  Group& g = *w.group;
  u64 total = 0;
  for (const Piece& p : *pieces) total += p.bytes;
  const Snapshot known = g.race_checks ? g.races.knowledge(w, lane) : Snapshot();
  for (const auto& [cta, barrier] : targets) {
    const MbarrierRef b = find_mbarrier(w, in, lane, barrier);
    check_mbarrier_visible(w, in, lane, b);
    const u32 agent = mbarrier_agent(b);
    for (const Piece& p : *pieces) {
      if (u64{p.shared} + p.bytes > cta->shared_bytes)
        fault(w, in, lane, kFaultAddress,
              fmt::format("bulk copy of {} bytes to byte {} of shared memory, of which the block has {}",
                          p.bytes, p.shared, cta->shared_bytes));
      if (!g.init_checks) continue;
      for (u32 k = 0; k < p.bytes; ++k)
        if (cta->shadow[p.shared + k] & kBusy)
          fault(w, in, lane, kFaultLaunch,
                fmt::format(
                    "bulk copy to byte {} of shared memory, which belongs to an asynchronous copy that has "
                    "not been waited for",
                    p.shared + k));
      std::memset(cta->shadow + p.shared, kPending, p.bytes);
      std::memset(cta->shared + p.shared, 0xff, p.bytes);
    }
    Warp* warp = &w;
    const Inst* inst = &in;
    Cta* to = cta;
    const u64 at = barrier;
    g.bulk.push_back([=] {
      Group& group = *warp->group;
      for (const Piece& p : *pieces) {
        if (p.memory) {
          std::memcpy(to->shared + p.shared, reinterpret_cast<const void*>(p.memory), p.bytes);
        } else {
          std::memset(to->shared + p.shared, fill, p.bytes);
        }
        if (group.init_checks) std::memset(to->shadow + p.shared, kWritten, p.bytes);
        if (group.race_checks)
          group.races.agent_access(*warp, *inst, lane, agent, known, *to, p.shared, p.bytes, true);
      }
      MbarrierRef late = find_mbarrier(*warp, *inst, lane, at);
      if (group.race_checks) group.races.agent_release(agent, known, &late.state->arriving);
      mbarrier_update(*warp, *inst, lane, late, -static_cast<i64>(total), 0, false);
    });
  }
  if (g.launch->count) g.counters.async_bytes += total * targets.size();
}

// The blocks a copy goes to, each with the address of its mbarrier.
std::vector<std::pair<Cta*, u64>> targets_of(Warp& w, const Inst& in, int lane, u64 to, u64 barrier,
                                             const Ref& mask, u32* offset) {
  Cta& first = shared_target(w, in, lane, to_shared(to), 0, offset);
  if (!mask.present()) return {{&first, to_shared(barrier)}};
  std::vector<std::pair<Cta*, u64>> out;
  const u32 blocks = lanes<u16>(w, mask)[lane];
  u32 barrier_offset;
  shared_target(w, in, lane, to_shared(barrier), 8, &barrier_offset);
  for (u32 r = 0; r < 16; ++r) {
    if (!((blocks >> r) & 1)) continue;
    if (r >= w.group->ctas.size())
      fault(w, in, lane, kFaultAddress,
            fmt::format("multicast to block rank {} of a cluster of {}", r, w.group->ctas.size()));
    out.push_back({w.group->ctas[r].get(), (u64{r} + 1) << 24 | barrier_offset});
  }
  return out;
}

BulkGroups& groups(Warp& w, int lane) {
  if (!w.bulk_groups) w.bulk_groups = std::make_unique<BulkGroups[]>(kLanes);
  return w.bulk_groups[lane];
}
void start_store(Warp& w, const Inst& in, int lane, std::vector<Piece> pieces, Reducer reducer = nullptr,
                 u32 op = 0) {
  Cta& cta = *w.cta;
  u64 total = 0;
  for (const Piece& p : pieces) {
    total += p.bytes;
    if (u64{p.shared} + p.bytes > cta.shared_bytes)
      fault(w, in, lane, kFaultAddress,
            fmt::format("bulk copy of {} bytes from byte {} of shared memory, of which the block has {}",
                        p.bytes, p.shared, cta.shared_bytes));
    check_async_read(w, in, lane, cta, p.shared, p.bytes);
    if (!w.group->init_checks) continue;
    for (u32 k = 0; k < p.bytes; ++k) {
      u8& s = cta.shadow[p.shared + k];
      if (s >= kMostReading)
        fault(w, in, lane, kFaultLaunch,
              fmt::format("byte {} of shared memory is to be read by more than 60 copies under way",
                          p.shared + k));
      s = static_cast<u8>(s + kReading);
    }
  }
  Warp* warp = &w;
  const Inst* inst = &in;
  groups(w, lane).open.push_back([=, list = std::move(pieces)] {
    Cta& from = *warp->cta;
    for (const Piece& p : list) {
      if (reducer) {
        reducer(op, reinterpret_cast<char*>(p.memory), from.shared + p.shared, p.bytes);
      } else {
        std::memcpy(reinterpret_cast<void*>(p.memory), from.shared + p.shared, p.bytes);
      }
      if (memory().in_arena(p.memory)) memory().mark_written(p.memory, p.bytes);
      if (warp->group->init_checks)
        for (u32 k = 0; k < p.bytes; ++k)
          from.shadow[p.shared + k] = static_cast<u8>(from.shadow[p.shared + k] - kReading);
      if (warp->group->race_checks)
        warp->group->races.access(*warp, *inst, lane, from, p.shared, p.bytes, false, false);
    }
  });
  if (w.group->launch->count) w.group->counters.async_bytes += total;
}

void commit_bulk(Warp& w, const Inst&, Mask m) {
  for_lanes(m, [&](int i) {
    BulkGroups& g = groups(w, i);
    g.committed.push_back(std::move(g.open));
    g.open.clear();
  });
}
void wait_bulk(Warp& w, const Inst& in, Mask m) {
  if (!w.bulk_groups) return;
  for_lanes(m, [&](int i) {
    BulkGroups& g = groups(w, i);
    while (g.committed.size() > static_cast<size_t>(in.imm)) {
      for (const auto& copy : g.committed.front()) copy();
      g.committed.pop_front();
    }
  });
}

u32 check_size(Warp& w, const Inst& in, int lane, u32 size) {
  if (size % 16)
    fault(w, in, lane, kFaultInstruction, fmt::format("a bulk copy of {} bytes: no multiple of 16", size));
  return size;
}
// ops: destination, source, size, mbarrier (each with its offset), mask
void load_bulk(Warp& w, const Inst& in, Mask m) {
  for_lanes(m, [&](int i) {
    const u64 to = value(w, in.ops[0], in.ops[1], i), from = value(w, in.ops[2], in.ops[3], i);
    const u32 size = check_size(w, in, i, lanes<u32>(w, in.ops[4])[i]);
    if (!size) return;
    u32 offset;
    const auto targets = targets_of(w, in, i, to, value(w, in.ops[5], in.ops[6], i), in.ops[7], &offset);
    check_aligned(w, in, i, offset, 16, "destination");
    check_aligned(w, in, i, from, 16, "source");
    u64 host;
    if (in.aux) {  // from the own block's shared memory
      u32 source;
      Cta& own = shared_target(w, in, i, to_shared(from), size, &source);
      check_async_read(w, in, i, own, source, size);
      host = reinterpret_cast<u64>(own.shared + source);
    } else {
      host = reinterpret_cast<u64>(host_address(w, in, i, from, size, "bulk copy"));
      check_written(w, in, i, from, size);
    }
    auto pieces = std::make_shared<std::vector<Piece>>();
    pieces->push_back({host, offset, size});
    start_load(w, in, i, std::move(pieces), 0, targets);
  });
}
void store_bulk(Warp& w, const Inst& in, Mask m) {
  for_lanes(m, [&](int i) {
    const u64 to = value(w, in.ops[0], in.ops[1], i), from = value(w, in.ops[2], in.ops[3], i);
    const u32 size = check_size(w, in, i, lanes<u32>(w, in.ops[4])[i]);
    if (!size) return;
    check_aligned(w, in, i, to, 16, "destination");
    check_aligned(w, in, i, from, 16, "source");
    u32 offset;
    shared_target(w, in, i, to_shared(from), size, &offset);
    const u64 host = reinterpret_cast<u64>(host_address(w, in, i, to, size, "bulk copy"));
    if (in.ext) check_written(w, in, i, host, size);  // a reduction reads what is there
    Reducer reducer = nullptr;
    if (in.ext) std::memcpy(&reducer, in.ext, sizeof reducer);
    start_store(w, in, i, {{host, offset, size}}, reducer, in.aux);
  });
}

// st.async, red.async: a value on its way to shared memory of the cluster, completing on an mbarrier there.
// ops: address, its offset, mbarrier, its offset, values. Inst::size: bytes of a value; Inst::ext: the
// reducer.
void store_async(Warp& w, const Inst& in, Mask m) {
  Group& g = *w.group;
  Reducer reducer = nullptr;
  if (in.ext) std::memcpy(&reducer, in.ext, sizeof reducer);
  const u32 bytes = u32{in.size} * in.vec;
  for_lanes(m, [&](int i) {
    const u64 address = to_shared(value(w, in.ops[0], in.ops[1], i));
    u32 offset;
    Cta* cta = &shared_target(w, in, i, address, bytes, &offset);
    check_aligned(w, in, i, offset, bytes, "destination");
    const u64 barrier = to_shared(value(w, in.ops[2], in.ops[3], i));
    const MbarrierRef b = find_mbarrier(w, in, i, barrier);
    if (b.cta != cta)
      fault(w, in, i, kFaultAddress,
            "the mbarrier lies in another block's shared memory than the destination");
    const u32 agent = mbarrier_agent(b);
    std::array<char, 32> data{};
    for (u32 k = 0; k < 4; ++k) {
      if (k == in.vec) break;
      const Ref& r = in.ops[4 + k];
      if (in.size == 8) {
        std::memcpy(data.data() + 8 * k, &lanes<u64>(w, r)[i], 8);
      } else {
        std::memcpy(data.data() + 4 * k, &lanes<u32>(w, r)[i], 4);
      }
    }
    if (g.init_checks) {
      for (u32 k = 0; k < bytes; ++k) {
        u8& s = cta->shadow[offset + k];
        if (s & kBusy || (reducer && s != kWritten))
          fault(w, in, i, kFaultLaunch,
                fmt::format("byte {} of shared memory {}", offset + k,
                            s & kBusy ? "belongs to an asynchronous copy that has not been waited for"
                                      : "was never written"));
        if (!reducer) s = kPending;
      }
    }
    const Snapshot known = g.race_checks ? g.races.knowledge(w, i) : Snapshot();
    Warp* warp = &w;
    const Inst* inst = &in;
    g.bulk.push_back([=] {
      Group& group = *warp->group;
      if (reducer) {
        reducer(inst->aux, cta->shared + offset, data.data(), bytes);
      } else {
        std::memcpy(cta->shared + offset, data.data(), bytes);
        if (group.init_checks) std::memset(cta->shadow + offset, kWritten, bytes);
      }
      if (group.race_checks)
        group.races.agent_access(*warp, *inst, i, agent, known, *cta, offset, bytes, true);
      MbarrierRef late = find_mbarrier(*warp, *inst, i, barrier);
      if (group.race_checks) group.races.agent_release(agent, known, &late.state->arriving);
      mbarrier_update(*warp, *inst, i, late, -static_cast<i64>(bytes), 0, false);
    });
    if (g.launch->count) g.counters.async_bytes += bytes;
  });
}

// --- tensors
// -----------------------------------------------------------------------------------------------------------

u32 swizzled(u32 address, u32 mode) {
  const u32 rows = mode == 3 ? 7 : mode == 2 ? 3 : mode == 1 ? 1 : 0;
  return address ^ ((address >> 7) & rows) << 4;
}
TensorMap tensor_map(Warp& w, const Inst& in, int lane, u64 address) {
  TensorMap t;
  check_aligned(w, in, lane, address, 64, "tensor map's address");
  std::memcpy(&t, host_address(w, in, lane, address, 128, "read of a tensor map"), sizeof t);
  if (t.magic != TensorMap::kMagic)
    fault(w, in, lane, kFaultAddress, fmt::format("{:#x} holds no tensor map", address));
  return t;
}
// The box at coordinates c as pieces of shared memory from `base` on; the parts outside the tensor as fills.
std::vector<Piece> box_pieces(Warp& w, const Inst& in, int lane, const TensorMap& t, const i32* c, u32 base,
                              bool load) {
  std::vector<Piece> out;
  const u32 e = t.element, inner = t.box[0] * e;
  const auto add = [&](u64 from, u32 relative, u32 bytes) {
    if (!bytes) return;
    if (!t.swizzle) {
      out.push_back({from, base + relative, bytes});
      return;
    }
    for (u32 done = 0; done < bytes;) {
      const u32 at = base + relative + done, n = std::min(bytes - done, 16 - at % 16);
      out.push_back({from ? from + done : 0, swizzled(at, t.swizzle), n});
      done += n;
    }
  };
  u32 rows = 1;
  for (u32 d = 1; d < t.rank; ++d) rows *= t.box[d];
  for (u32 r = 0; r < rows; ++r) {
    u64 address = t.address;
    bool inside = true;
    for (u32 d = 1, rest = r; d < t.rank; rest /= t.box[d], ++d) {
      const i64 x = i64{c[d]} + rest % t.box[d];
      inside = inside && x >= 0 && static_cast<u64>(x) < t.dim(d);
      address += static_cast<u64>(x) * t.strides[d];
    }
    const i64 lo = std::clamp<i64>(-i64{c[0]}, 0, t.box[0]);
    const i64 hi = std::clamp<i64>(static_cast<i64>(t.dim(0)) - c[0], lo, t.box[0]);
    if (!inside || lo == hi) {
      add(0, r * inner, inner);
      continue;
    }
    const u32 first = static_cast<u32>(lo) * e, bytes = static_cast<u32>(hi - lo) * e;
    const u64 from = address + static_cast<u64>(i64{c[0]} + lo) * e;
    host_address(w, in, lane, from, bytes, "tensor copy");
    if (load) check_written(w, in, lane, from, bytes);
    add(0, r * inner, first);
    add(from, r * inner + first, bytes);
    add(0, r * inner + first + bytes, inner - first - bytes);
  }
  return out;
}
void coordinates(Warp& w, const Inst& in, const Ref* refs, int lane, i32* c) {
  for (u32 d = 0; d < in.aux; ++d) c[d] = lanes<i32>(w, refs[d])[lane];
}
void check_rank(Warp& w, const Inst& in, int lane, const TensorMap& t) {
  if (t.rank != in.aux)
    fault(w, in, lane, kFaultInstruction,
          fmt::format("the tensor map is of rank {}, the instruction of {}", t.rank, in.aux));
}
// ops: destination, map, mbarrier (each with its offset), mask, coordinates
void load_tensor(Warp& w, const Inst& in, Mask m) {
  for_lanes(m, [&](int i) {
    const TensorMap t = tensor_map(w, in, i, value(w, in.ops[2], in.ops[3], i));
    check_rank(w, in, i, t);
    i32 c[5];
    coordinates(w, in, in.ops + 7, i, c);
    u32 offset;
    const auto targets = targets_of(w, in, i, value(w, in.ops[0], in.ops[1], i),
                                    value(w, in.ops[4], in.ops[5], i), in.ops[6], &offset);
    check_aligned(w, in, i, offset, 128, "destination");
    auto pieces = std::make_shared<std::vector<Piece>>(box_pieces(w, in, i, t, c, offset, true));
    start_load(w, in, i, std::move(pieces), t.nan_fill ? 0xff : 0, targets);
  });
}
// ops: map, source (each with its offset), coordinates
void store_tensor(Warp& w, const Inst& in, Mask m) {
  for_lanes(m, [&](int i) {
    const TensorMap t = tensor_map(w, in, i, value(w, in.ops[0], in.ops[1], i));
    check_rank(w, in, i, t);
    i32 c[5];
    coordinates(w, in, in.ops + 4, i, c);
    u32 offset;
    shared_target(w, in, i, to_shared(value(w, in.ops[2], in.ops[3], i)), 0, &offset);
    check_aligned(w, in, i, offset, 128, "source");
    std::vector<Piece> pieces = box_pieces(w, in, i, t, c, offset, false);
    std::erase_if(pieces, [](const Piece& p) { return p.memory == 0; });
    start_store(w, in, i, std::move(pieces));
  });
}
void nothing(Warp&, const Inst&, Mask) {}

}  // namespace

void finish_bulk(Warp& w, Mask mask) {
  for_lanes(mask, [&](int i) {
    BulkGroups& g = w.bulk_groups[i];
    for (const auto& group : g.committed)
      for (const auto& copy : group) copy();
    for (const auto& copy : g.open) copy();
    g.committed.clear(), g.open.clear();
  });
}

namespace {
bool decode_store_async(Decoder& d) {
  const bool reduces = d.name() == "red";
  if (!d.has("mbarrier::complete_tx::bytes") || d.has("global") || d.types().empty()) return false;
  const Type t = d.type();
  if (t.bits != 32 && t.bits != 64) return false;
  u32 op = 0;
  const Reducer reducer = reduces ? find_reducer(d, &op) : nullptr;
  if (reduces && (!reducer || t.is_float())) return false;
  std::vector<Ref> refs;
  const auto add = [&](size_t i) {
    Symbol symbol;
    i64 offset;
    refs.push_back(d.address(d.arg(i), &symbol, &offset));
    refs.push_back(d.constant(64, static_cast<u64>(offset)));
  };
  add(0), add(2);
  std::vector<ptx::Operand> values = {d.arg(1)};
  if (d.arg(1).kind == ptx::Operand::kVector) values = d.arg(1).list;
  if (values.size() > 4) return false;
  for (const auto& v : values) refs.push_back(d.src(v, t.bits, t.kind));
  Inst& in = d.emit(store_async, Class::kAsync, refs);
  in.size = static_cast<u8>(t.bits / 8), in.vec = static_cast<u8>(values.size()), in.aux = op;
  if (reducer) in.ext = d.keep(reducer);
  return true;
}

}  // namespace

bool decode_bulk(Decoder& d) {
  if ((d.name() == "st" || d.name() == "red") && d.has("async")) return decode_store_async(d);
  if (d.name() != "cp" || !d.has("async") || !d.has("bulk")) return false;
  if (d.has("commit_group")) {
    d.emit(commit_bulk, Class::kAsync, {});
    return true;
  }
  if (d.has("wait_group")) {
    d.emit(wait_bulk, Class::kAsync, {}).imm = d.arg(0).imm;
    return true;
  }
  if (d.has("prefetch")) {
    d.emit(nothing, Class::kAsync, {});
    return true;
  }
  const auto& op = d.in().op;
  std::vector<std::string> spaces;
  for (const std::string& s : op)
    if (s == "global" || s == "shared::cta" || s == "shared::cluster") spaces.push_back(s);
  if (spaces.size() != 2) return false;
  const bool store = spaces[0] == "global", reduces = d.has("reduce");
  u32 op_number = 0;
  const Reducer reducer = reduces ? find_reducer(d, &op_number) : nullptr;
  if (reduces && (!store || !reducer || d.has("tensor"))) return false;
  std::vector<Ref> refs;
  const auto add = [&](size_t i) {
    Symbol symbol;
    i64 offset;
    refs.push_back(d.address(d.arg(i), &symbol, &offset));
    refs.push_back(d.constant(64, static_cast<u64>(offset)));
  };
  if (!d.has("tensor")) {
    add(0), add(1);
    refs.push_back(d.src(2, 32));
    if (store) {
      Inst& in = d.emit(store_bulk, Class::kAsync, refs);
      if (reducer) in.ext = d.keep(reducer), in.aux = op_number;
      return true;
    }
    add(3);
    refs.push_back(d.has("multicast::cluster") ? d.src(4, 16) : kNoRef);
    d.emit(load_bulk, Class::kAsync, refs).aux = spaces[1] != "global";
    return true;
  }
  u32 rank = 0;
  for (const std::string& s : op)
    if (s.size() == 2 && s[1] == 'd' && s[0] >= '1' && s[0] <= '5') rank = static_cast<u32>(s[0] - '0');
  for (const std::string& s : op)
    if (s.starts_with("im2col") || s.starts_with("tile::")) return false;
  const ptx::Operand& tensor = d.arg(store ? 0 : 1);
  if (rank == 0 || tensor.list.size() != 1 || tensor.list[0].list.size() != rank) return false;
  if (store) {
    add(0), add(1);
  } else {
    add(0), add(1), add(2);
    refs.push_back(d.has("multicast::cluster") ? d.src(3, 16) : kNoRef);
  }
  for (const ptx::Operand& c : tensor.list[0].list) refs.push_back(d.src(c, 32));
  d.emit(store ? store_tensor : load_tensor, Class::kAsync, refs).aux = rank;
  return true;
}

}  // namespace softgpu
