// Branches, exit, traps, and the functions a kernel may call that have no PTX of their own (printf, assert,
// malloc).
#include <fmt/format.h>

#include <cstdio>
#include <mutex>

#include "cuda/softgpu/access.h"
#include "cuda/softgpu/exec.h"

namespace softgpu {
namespace {

void branch(Warp& w, const Inst& in, Mask m) {
  const Mask stay = w.active & ~m;
  if (!stay) {
    w.pc = in.target;
  } else if (in.target < w.pc) {
    w.park({w.pc, stay});
    w.active = m;
    w.pc = in.target;
  } else if (in.target > w.pc) {
    w.park({in.target, m});
    w.active = stay;
  }
}

void branch_table(Warp& w, const Inst& in, Mask m) {
  const u32* index = lanes<u32>(w, in.ops[0]);
  const auto& table = w.kernel->targets[in.aux];
  if (w.active & ~m) w.park({w.pc, w.active & ~m});
  Mask left = m;
  while (left) {
    const int first = __builtin_ctz(left);
    if (index[first] >= table.size())
      fault(w, in, first, kFaultInstruction,
            fmt::format("brx.idx: index {} of {} targets", index[first], table.size()));
    const Mask same = ballot(left, [=](int i) { return index[i] == index[first]; });
    w.park({table[index[first]], same});
    left &= ~same;
  }
  w.active = 0;
}

void exit_handler(Warp& w, const Inst&, Mask m) { exit_lanes(w, m); }
void trap(Warp& w, const Inst& in, Mask m) { fault(w, in, __builtin_ctz(m), kFaultLaunch, "trap"); }
void sleep(Warp& w, const Inst&, Mask) { w.yield = true; }

// --- printf
// ----------------------------------------------------------------------------------------------------------

std::mutex& print_mutex() {
  static std::mutex* m = new std::mutex;
  return *m;
}
std::string device_string(Warp& w, const Inst& in, int lane, u64 address) {
  std::string s;
  for (u64 a = address;; ++a) {
    const char c = *host_address(w, in, lane, a, 1, "string");
    if (!c || s.size() > 4096) return s;
    s += c;
  }
}
char* local_bytes(Warp& w, const Inst& in, int lane, u64 generic, u32 bytes) {
  u64 a[kLanes] = {};
  a[lane] = generic;
  Access access;
  for (u32 k = 0; k < bytes; k += 4) {
    u64 at[kLanes] = {};
    at[lane] = generic + k;
    translate(w, in, 1u << lane, Window::kGeneric, at, 4, Use::kRead, false, &access);
  }
  translate(w, in, 1u << lane, Window::kGeneric, a, 4, Use::kRead, false, &access);
  return reinterpret_cast<char*>(access.host[lane]);
}
std::string format_lane(Warp& w, const Inst& in, int lane, u64 format_at, u64 args_at) {
  const std::string f = device_string(w, in, lane, format_at);
  std::string out;
  u64 at = args_at;
  const auto take = [&](u32 bytes) {
    at = (at + bytes - 1) / bytes * bytes;
    u64 v = 0;
    std::memcpy(&v, local_bytes(w, in, lane, at, bytes), bytes);
    at += bytes;
    return v;
  };
  for (size_t i = 0; i < f.size(); ++i) {
    if (f[i] != '%') {
      out += f[i];
      continue;
    }
    if (i + 1 < f.size() && f[i + 1] == '%') {
      out += '%', ++i;
      continue;
    }
    std::string spec = "%";
    int longs = 0;
    for (++i; i < f.size(); ++i) {
      const char c = f[i];
      if (c == 'l' || c == 'h' || c == 'j' || c == 'z' || c == 't') {
        longs += c == 'l' || c == 'h' ? (c == 'l') : 2;
        continue;
      }
      if (c == '*') {
        spec += std::to_string(static_cast<i32>(take(4)));
        continue;
      }
      spec += c;
      if (std::isalpha(static_cast<unsigned char>(c))) break;
    }
    const char c = spec.back();
    char buffer[512];
    const std::string head = spec.substr(0, spec.size() - 1);
    if (c == 'd' || c == 'i') {
      const i64 v = longs ? static_cast<i64>(take(8)) : static_cast<i32>(take(4));
      std::snprintf(buffer, sizeof buffer, (head + "lld").c_str(), static_cast<long long>(v));
    } else if (c == 'u' || c == 'x' || c == 'X' || c == 'o') {
      std::snprintf(buffer, sizeof buffer, (head + "ll" + c).c_str(),
                    static_cast<unsigned long long>(take(longs ? 8 : 4)));
    } else if (c == 'c') {
      std::snprintf(buffer, sizeof buffer, spec.c_str(), static_cast<int>(take(4)));
    } else if (c == 'p') {
      std::snprintf(buffer, sizeof buffer, spec.c_str(), reinterpret_cast<void*>(take(8)));
    } else if (c == 's') {
      std::snprintf(buffer, sizeof buffer, spec.c_str(), device_string(w, in, lane, take(8)).c_str());
    } else {
      std::snprintf(buffer, sizeof buffer, spec.c_str(), bit<double>(take(8)));
    }
    out += buffer;
  }
  return out;
}

// Arguments of a call are .param variables, which are local memory here: ops are their offsets.
template <class T>
T argument(Warp& w, int lane, u32 offset) {
  T v;
  std::memcpy(
      &v, w.cta->local.data() + (u64{w.index} * 32 + static_cast<u64>(lane)) * w.cta->local_stride + offset,
      sizeof v);
  return v;
}
template <class T>
void give_back(Warp& w, int lane, u32 offset, T v) {
  char* p = w.cta->local.data() + (u64{w.index} * 32 + static_cast<u64>(lane)) * w.cta->local_stride + offset;
  std::memcpy(p, &v, sizeof v);
  std::memset(p + w.cta->local.size() / 2, kWritten, sizeof v);
}
struct CallArgs {
  u32 result;
  u32 arg[6];
  int count;
  bool has_result;
};
void call_printf(Warp& w, const Inst& in, Mask m) {
  const auto& c = *static_cast<const CallArgs*>(in.ext);
  std::string all;
  for_lanes(m, [&](int i) {
    const std::string s = format_lane(w, in, i, argument<u64>(w, i, c.arg[0]), argument<u64>(w, i, c.arg[1]));
    all += s;
    if (c.has_result) give_back<u32>(w, i, c.result, 1);
  });
  std::lock_guard lock(print_mutex());
  std::fwrite(all.data(), 1, all.size(), stdout);
  std::fflush(stdout);
}
void call_assert(Warp& w, const Inst& in, Mask m) {
  const auto& c = *static_cast<const CallArgs*>(in.ext);
  const int i = __builtin_ctz(m);
  fault(w, in, i, kFaultAssert,
        fmt::format("assertion failed: {}:{}: {}: {}", device_string(w, in, i, argument<u64>(w, i, c.arg[1])),
                    argument<u32>(w, i, c.arg[2]), device_string(w, in, i, argument<u64>(w, i, c.arg[3])),
                    device_string(w, in, i, argument<u64>(w, i, c.arg[0]))));
}
void call_malloc(Warp& w, const Inst& in, Mask m) {
  const auto& c = *static_cast<const CallArgs*>(in.ext);
  for_lanes(m, [&](int i) {
    give_back<u64>(w, i, c.result,
                   memory().allocate(argument<u64>(w, i, c.arg[0]), AllocKind::kDevice, "(device malloc)"));
  });
}
void call_free(Warp& w, const Inst& in, Mask m) {
  const auto& c = *static_cast<const CallArgs*>(in.ext);
  for_lanes(m, [&](int i) {
    const u64 a = argument<u64>(w, i, c.arg[0]);
    if (a && !memory().release(a))
      fault(w, in, i, kFaultAddress, fmt::format("free of {:#x}: {}", a, memory().describe(a)));
  });
}

}  // namespace

bool decode_control(Decoder& d) {
  const std::string& op = d.name();
  if (op == "bra") {
    Inst& in = d.emit(branch, Class::kControl, {});
    in.target = d.label(d.arg(0).name);
    in.flags = kFlagBranch | (d.in().guard.empty() ? kFlagStops : 0);
    return true;
  }
  if (op == "brx") {
    const auto* names = d.branch_targets(d.arg(1).name);
    if (!names) d.unknown("branch table " + d.arg(1).name + " is not defined");
    std::vector<u32> table;
    for (const std::string& n : *names) table.push_back(d.label(n));
    Inst& in = d.emit(branch_table, Class::kControl, {d.src(0, 32)});
    in.aux = static_cast<u32>(d.kernel().targets.size());
    in.flags = kFlagTable | (d.in().guard.empty() ? kFlagStops : 0);
    d.kernel().targets.push_back(table);
    return true;
  }
  if (op == "exit" || op == "ret") {
    d.emit(exit_handler, Class::kControl, {}).flags = kFlagStops;
    return true;
  }
  if (op == "trap" || op == "brkpt") {
    d.emit(trap, Class::kControl, {});
    return true;
  }
  if (op == "nanosleep") {
    d.emit(sleep, Class::kControl, {});
    return true;
  }
  return false;
}

bool decode_call(Decoder& d) {
  if (d.name() != "call") return false;
  size_t at = 0;
  CallArgs c{};
  const auto offset = [&](const ptx::Operand& o) {
    Symbol s;
    if (!d.symbol(o.name, &s) || s.space != ptx::Space::kLocal)
      d.unknown("argument " + o.name + " is no .param variable");
    return static_cast<u32>(s.address);
  };
  if (d.arg(0).kind == ptx::Operand::kParen) {
    if (!d.arg(0).list.empty()) c.result = offset(d.arg(0).list[0]), c.has_result = true;
    at = 1;
  }
  const ptx::Operand& callee = d.arg(at);
  if (callee.kind == ptx::Operand::kReg) d.unknown("calls through a pointer are not supported");
  if (at + 1 < d.args())
    for (const auto& o : d.arg(at + 1).list)
      if (c.count < 6) c.arg[c.count++] = offset(o);
  Handler h = nullptr;
  if (callee.name == "vprintf" && c.count == 2) h = call_printf;
  if (callee.name == "__assertfail" && c.count >= 4) h = call_assert;
  if (callee.name == "malloc" && c.count == 1 && c.has_result) h = call_malloc;
  if (callee.name == "free" && c.count == 1) h = call_free;
  if (!h) d.unknown("function " + callee.name + " has no body (or calls itself)");
  d.emit(h, Class::kControl, {}).ext = d.keep(c);
  return true;
}

}  // namespace softgpu
