#include "cuda/softgpu/in_flight.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

namespace softgpu {
namespace {

InFlight& state(Warp& w) {
  if (!w.in_flight) {
    w.in_flight = std::make_shared<InFlight>();
    InFlight& s = *w.in_flight;
    const uint32_t n = w.kernel->wgmma->registers;
    for (auto* v : {&s.written, &s.read, &s.source, &s.touched}) v->assign(n, 0);
  }
  return *w.in_flight;
}

[[noreturn]] void fault_in_flight(Warp& w, const Inst& in, bool read, const char* what, uint32_t source) {
  fault(
      w, in, 0, kFaultLaunch,
      fmt::format("{} of a register that {} a wgmma which has not been waited for (wgmma.wait_group), at {}",
                  read ? "read" : "write", what, place(*w.kernel, source)));
}

void touch(Warp& w, const Inst& in, Mask m) {
  const WgmmaTable& table = *w.kernel->wgmma;
  const WgmmaTable::Touch& t = table.touches[table.index[in.index]];
  InFlight& s = state(w);
  if (w.group->init_checks) {
    uint32_t written = 0, touched = 0, source = 0;
    for (const uint32_t r : t.reads) {
      if (s.written[r] && !t.move) fault_in_flight(w, in, true, "holds the result of", s.source[r]);
      if (s.written[r] >= written) written = s.written[r], source = s.source[r];
      touched = std::max(touched, s.touched[r]);
    }
    for (const uint32_t r : t.writes) {
      // Copies of a result under way are the compiler's, which writes one where another was.
      if (s.written[r] && !(t.move && written))
        fault_in_flight(w, in, false, "will hold the result of", s.source[r]);
      if (s.read[r]) fault_in_flight(w, in, false, "is read by", s.source[r]);
      if (t.move) {
        s.written[r] = written, s.source[r] = source;
        s.touched[r] = std::max(s.touched[r], touched);
      } else {
        s.touched[r] = in.index + 1;
      }
    }
    if (!t.move)
      for (const uint32_t r : t.reads) s.touched[r] = in.index + 1;
  }
  t.fn(w, in, m);
}

}  // namespace

void track_wgmma(Kernel& k) {
  const auto is_wgmma = [](const Inst& in) { return (in.flags & kFlagWgmma) != 0; };
  if (std::none_of(k.code.begin(), k.code.end(), is_wgmma)) return;
  auto table = std::make_shared<WgmmaTable>();
  table->index.assign(k.code.size(), 0);
  std::unordered_map<uint32_t, uint32_t> numbers;  // id -> number
  const auto number = [&](uint32_t id) {
    return numbers.try_emplace(id, static_cast<uint32_t>(numbers.size())).first->second;
  };
  const auto is_register = [](const Ref& r) { return r.present() && r.base == 0 && r.bits != 1; };
  for (const Inst& in : k.code) {
    if (!is_wgmma(in)) continue;
    WgmmaTable::Operands o;
    for (uint32_t i = 0; i < in.size; ++i)
      if (is_register(in.ops[i])) o.d.push_back(number(in.ops[i].off));
    if (in.ops[in.size].bits == 32)  // not a descriptor
      for (uint32_t i = 0; i < 4; ++i)
        if (is_register(in.ops[in.size + i])) o.a.push_back(number(in.ops[in.size + i].off));
    table->index[in.index] = static_cast<uint32_t>(table->operands.size());
    table->operands.push_back(std::move(o));
  }
  const auto any = [&](const Inst& in) {
    return std::any_of(in.ops, in.ops + in.nops,
                       [&](const Ref& r) { return is_register(r) && numbers.count(r.off); });
  };
  for (size_t known = 0; known != numbers.size();) {
    known = numbers.size();
    for (const Inst& in : k.code) {
      if (!(in.flags & kFlagMove) || !any(in)) continue;
      for (int i = 0; i < in.nops; ++i)
        if (is_register(in.ops[i])) number(in.ops[i].off);
    }
  }
  for (Inst& in : k.code) {
    if (is_wgmma(in) || !any(in)) continue;
    WgmmaTable::Touch t;
    t.fn = in.fn;
    t.move = (in.flags & kFlagMove) != 0;
    for (int i = 0; i < in.nops; ++i) {
      const Ref& r = in.ops[i];
      if (!is_register(r) || !numbers.count(r.off)) continue;
      if (r.def != 1) t.reads.push_back(number(r.off));
      if (r.def != 0) t.writes.push_back(number(r.off));
    }
    table->index[in.index] = static_cast<uint32_t>(table->touches.size());
    table->touches.push_back(std::move(t));
    in.fn = touch;
  }
  table->registers = static_cast<uint32_t>(numbers.size());
  k.wgmma = std::move(table);
}

void start_wgmma(Warp& w, const Inst& in) {
  const WgmmaTable& table = *w.kernel->wgmma;
  const WgmmaTable::Operands& o = table.operands[table.index[in.index]];
  InFlight& s = state(w);
  if (!w.group->init_checks) return;
  if (!s.fenced)
    fault(w, in, 0, kFaultLaunch,
          "wgmma with no wgmma.fence before the warp's first: its registers may not be ready");
  const auto settled = [&](uint32_t r, const char* what) {
    if (s.touched[r])
      fault(w, in, 0, kFaultLaunch,
            fmt::format("a register of {} was accessed since the last wgmma.fence, at {}", what,
                        place(*w.kernel, s.touched[r] - 1)));
  };
  for (const uint32_t r : o.a) {
    settled(r, "a");
    if (s.written[r]) fault_in_flight(w, in, true, "holds the result of", s.source[r]);
  }
  for (const uint32_t r : o.d) {
    settled(r, "d");
    if (s.read[r]) fault_in_flight(w, in, false, "is read by", s.source[r]);
  }
  for (const uint32_t r : o.a) s.read[r] = s.committed + 1, s.source[r] = in.index;
  for (const uint32_t r : o.d) s.written[r] = s.committed + 1, s.source[r] = in.index;
}

void keep_for_wgmma(Warp& w, const Inst& in, uint32_t offset) {
  uint8_t* shadow = w.cta->shadow + offset;
  uint8_t most = 0;
  for (int i = 0; i < 16; ++i) most = std::max(most, shadow[i]);
  if (most >= kMostReading) return;  // so many read it that one more or less is not worth a wider mark
  for (int i = 0; i < 16; ++i) shadow[i] = static_cast<uint8_t>(shadow[i] + kReading);
  state(w).open.push_back({offset, in.index});
}

void fence_wgmma(Warp& w) {
  if (!w.kernel->wgmma) return;
  InFlight& s = state(w);
  s.fenced = true;
  std::fill(s.touched.begin(), s.touched.end(), 0);
}

void commit_wgmma(Warp& w) {
  if (!w.kernel->wgmma) return;
  InFlight& s = state(w);
  s.groups.push_back(std::move(s.open));
  s.open.clear();
  ++s.committed;
}

void wait_wgmma(Warp& w, uint32_t left) {
  if (!w.in_flight) return;
  InFlight& s = *w.in_flight;
  const uint32_t done = s.committed > left ? s.committed - left : 0;
  for (auto* v : {&s.written, &s.read})
    for (uint32_t& group : *v)
      if (group <= done) group = 0;
  Cta& cta = *w.cta;
  while (s.groups.size() > left) {
    for (const InFlight::Chunk& c : s.groups.front()) {
      for (uint32_t i = 0; i < 16; ++i)
        cta.shadow[c.offset + i] = static_cast<uint8_t>(cta.shadow[c.offset + i] - kReading);
      // The reads took place at some time up to now.
      if (w.group->race_checks)
        w.group->races.access(w, w.kernel->code[c.inst], 0, cta, c.offset, 16, false, false);
    }
    s.groups.pop_front();
  }
}

}  // namespace softgpu
