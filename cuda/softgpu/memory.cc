#include "cuda/softgpu/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "cuda/softgpu/options.h"

namespace softgpu {
namespace {
void* reserve(uint64_t hint, uint64_t size) {
  void* p = mmap(reinterpret_cast<void*>(hint), size, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    fmt::print(
        stderr,
        "softgpu: cannot reserve {} GiB of addresses for device memory: {}; raise the limit on virtual memory"
        " (ulimit -v)\n",
        size >> 30, std::strerror(errno));
    std::_Exit(86);
  }
  return p;
}
uint64_t round_up(uint64_t v, uint64_t to) { return (v + to - 1) / to * to; }
}  // namespace

Memory::Memory() {
  base_ = reinterpret_cast<uint64_t>(reserve(1ull << 45, 2 * kArena));
  owner_ = static_cast<uint32_t*>(reserve(0, kArena / kGranule * sizeof(uint32_t)));
  next_ = base_ + kGranule;
  allocations_.emplace_back();
}

uint64_t Memory::allocate(uint64_t size, AllocKind kind, const std::string& name) {
  std::lock_guard lock(mutex_);
  const uint64_t span = round_up(std::max<uint64_t>(size, 1), kGranule);
  if (size > options().memory || used_ + span > options().memory) return 0;
  uint32_t index = 0;
  if (next_ + span + kGranule > base_ + kArena) {
    // Addresses are used once as long as they last, so that freed memory stays recognisable.
    for (size_t i = 0; i < freed_.size() && !index; ++i) {
      if (round_up(allocations_[freed_[i]].size, kGranule) == span) {
        index = freed_[i];
        freed_.erase(freed_.begin() + static_cast<long>(i));
      }
    }
    if (!index) return 0;
  } else {
    index = static_cast<uint32_t>(allocations_.size());
    allocations_.emplace_back();
    allocations_[index].base = next_;
    next_ += span + kGranule;
  }
  Allocation& a = allocations_[index];
  a.size = size;
  a.kind = kind;
  a.live = true;
  a.name = name;
  for (uint64_t g = (a.base - base_) / kGranule, n = span / kGranule; n > 0; ++g, --n) owner_[g] = index;
  used_ += span;
  ++generation_;
  if (kind != AllocKind::kDevice) {
    std::memset(shadow(a.base), kWritten, size);
  } else {
    std::memset(reinterpret_cast<void*>(a.base), 0xff, std::min<uint64_t>(size, 1 << 20));  // NaN, not zero
  }
  return a.base;
}

bool Memory::release(uint64_t address) {
  std::lock_guard lock(mutex_);
  if (!in_arena(address)) return false;
  const uint32_t index = owner_[(address - base_) / kGranule];
  Allocation& a = allocations_[index];
  if (!index || !a.live || a.base != address) return false;
  a.live = false;
  const uint64_t span = round_up(std::max<uint64_t>(a.size, 1), kGranule);
  used_ -= span;
  ++generation_;
  freed_.push_back(index);
  // Pages wholly inside go back to the system, which makes them read as zero.
  std::memset(shadow(a.base), kUnwritten, std::min<uint64_t>(a.size, 8192));
  const uint64_t lo = round_up(a.base, 4096), hi = a.end() / 4096 * 4096;
  if (hi > lo) {
    madvise(reinterpret_cast<void*>(lo), hi - lo, MADV_DONTNEED);
    madvise(shadow(lo), hi - lo, MADV_DONTNEED);
  }
  if (a.end() > hi) std::memset(shadow(std::max(hi, a.base)), kUnwritten, a.end() - std::max(hi, a.base));
  return true;
}

bool Memory::register_host(uint64_t address, uint64_t size) {
  std::lock_guard lock(mutex_);
  if (in_arena(address) || registered_.count(address)) return false;
  Allocation a;
  a.base = address, a.size = size, a.kind = AllocKind::kRegistered, a.live = true;
  registered_[address] = static_cast<uint32_t>(allocations_.size());
  allocations_.push_back(a);
  ++generation_;
  return true;
}

bool Memory::unregister_host(uint64_t address) {
  std::lock_guard lock(mutex_);
  const auto it = registered_.find(address);
  if (it == registered_.end()) return false;
  allocations_[it->second].live = false;
  registered_.erase(it);
  ++generation_;
  return true;
}

const Allocation* Memory::find(uint64_t address) const {
  if (in_arena(address)) {
    const uint32_t index = owner_[(address - base_) / kGranule];
    if (!index) return nullptr;
    const Allocation& a = allocations_[index];
    return address < a.end() || a.size == 0 ? &a : nullptr;
  }
  std::lock_guard lock(mutex_);
  auto it = registered_.upper_bound(address);
  if (it == registered_.begin()) return nullptr;
  const Allocation& a = allocations_[std::prev(it)->second];
  return address < a.end() ? &a : nullptr;
}

std::string Memory::describe(uint64_t address) const {
  if (const Allocation* a = find(address))
    return fmt::format("byte {} of {} {} of {} bytes{}{}", address - a->base, a->live ? "a live" : "a freed",
                       a->kind == AllocKind::kSymbol ? "variable" : "allocation", a->size,
                       a->name.empty() ? "" : " ", a->name);
  if (in_arena(address)) {
    std::lock_guard lock(mutex_);
    const Allocation* before = nullptr;
    const Allocation* after = nullptr;
    for (const Allocation& a : allocations_) {
      if (!a.base || a.kind == AllocKind::kRegistered) continue;
      if (a.end() <= address && (!before || a.base > before->base)) before = &a;
      if (a.base > address && (!after || a.base < after->base)) after = &a;
    }
    if (before && (!after || address - before->end() <= after->base - address))
      return fmt::format("{} bytes past the end of {} allocation of {} bytes{}{}", address - before->end(),
                         before->live ? "an" : "a freed", before->size, before->name.empty() ? "" : " ",
                         before->name);
    if (after)
      return fmt::format("{} bytes before an allocation of {} bytes", after->base - address, after->size);
  }
  if (address < 4096) return "near null";
  if (address - kSharedWindow < kWindowSize) return "a generic address of shared memory";
  if (address - kLocalWindow < kWindowSize) return "a generic address of local memory";
  return "in no allocation (host memory that is not registered?)";
}

void Memory::mark_written(uint64_t address, uint64_t size) const {
  if (in_arena(address)) std::memset(shadow(address), kWritten, size);
}

void Memory::copy_shadow(uint64_t to, uint64_t from, uint64_t size) const {
  if (!in_arena(to)) return;
  if (in_arena(from)) {
    std::memmove(shadow(to), shadow(from), size);
  } else {
    std::memset(shadow(to), kWritten, size);
  }
}

Memory& memory() {
  static Memory* instance =
      new Memory;  // never destroyed: programs free memory in their own static destructors
  return *instance;
}

}  // namespace softgpu
