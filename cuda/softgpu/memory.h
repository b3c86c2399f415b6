// The device's global memory: one reserved range of addresses, its allocations, and a shadow byte beside each
// byte (1 once written, 0 before). A device address is a host address, so host code of the runtime can follow
// it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace softgpu {

enum class AllocKind : uint8_t { kDevice, kPinned, kManaged, kSymbol, kRegistered };

struct Allocation {
  uint64_t base = 0, size = 0;
  AllocKind kind = AllocKind::kDevice;
  bool live = false;
  std::string name;  // of a __device__ variable
  uint64_t end() const { return base + size; }
};

// Windows of the generic address space that are no host memory.
constexpr uint64_t kSharedWindow = 1ull << 44, kLocalWindow = kSharedWindow + (1ull << 40),
                   kParamWindow = kLocalWindow + (1ull << 40), kWindowSize = 1ull << 40;

// Shadow states of a byte: kPending while an asynchronous copy will write it; plus kReading for each one that
// will read it, up to kMostReading.
constexpr uint8_t kUnwritten = 0, kWritten = 1, kPending = 2, kReading = 4, kMostReading = 248;
constexpr uint8_t kBusy = 0xfe,
                  kState = kWritten | kPending;  // masks: a copy has to do with it; all but readers

class Memory {
 public:
  Memory();
  // Base aligned to 512, guarded on both sides by at least 512 bytes that belong to nobody. 0 where memory is
  // full.
  uint64_t allocate(uint64_t size, AllocKind kind, const std::string& name = "");
  // False where `address` is not the start of a live allocation.
  bool release(uint64_t address);
  bool register_host(uint64_t address, uint64_t size);
  bool unregister_host(uint64_t address);
  // The allocation (live or freed) holding `address`, nullptr where there is none.
  const Allocation* find(uint64_t address) const;
  // The nearest live allocation that ends at or before `address`, for messages.
  std::string describe(uint64_t address) const;
  bool in_arena(uint64_t address) const { return address - base_ < kArena; }
  uint8_t* shadow(uint64_t address) const { return reinterpret_cast<uint8_t*>(address + kArena); }
  static constexpr uint64_t shadow_delta() { return kArena; }
  void mark_written(uint64_t address, uint64_t size) const;
  void copy_shadow(uint64_t to, uint64_t from, uint64_t size) const;
  uint64_t used() const { return used_; }
  uint64_t generation() const { return generation_; }  // changes with every allocation and release

 private:
  static constexpr uint64_t kArena = 1ull << 38, kGranule = 512;
  uint64_t base_ = 0, next_ = 0, used_ = 0, generation_ = 1;
  uint32_t* owner_ = nullptr;  // a granule's index into allocations_, 0 none
  std::deque<Allocation> allocations_;
  std::map<uint64_t, uint32_t> registered_;
  std::vector<uint32_t> freed_;
  mutable std::mutex mutex_;
};

Memory& memory();

}  // namespace softgpu
