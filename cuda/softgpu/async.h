// mbarrier objects, for all that arrives at them.
#pragma once

#include "cuda/softgpu/exec.h"

namespace softgpu {

// The 64 bits in shared memory: phase (1), bytes outstanding (22, biased), expected arrivals (20), pending
// ones (20).
uint64_t mbarrier_word(uint32_t phase, int64_t bytes, uint32_t expected, uint32_t pending);

struct MbarrierRef {
  Cta* cta = nullptr;
  uint32_t offset = 0;
  Mbarrier* state = nullptr;
  uint64_t load() const {
    uint64_t v;
    std::memcpy(&v, cta->shared + offset, 8);
    return v;
  }
  void store(uint64_t v) const { std::memcpy(cta->shared + offset, &v, 8); }
};

inline uint64_t mbarrier_key(const Cta& cta, uint32_t offset) { return uint64_t{cta.rank} << 32 | offset; }
inline uint64_t to_shared(uint64_t address) {
  return address >= kSharedWindow ? address - kSharedWindow : address;
}
MbarrierRef find_mbarrier(Warp& w, const Inst& in, int lane, uint64_t address);
// A copy through the async proxy is to complete on it: the proxy must see that it was set up.
void check_mbarrier_visible(Warp& w, const Inst& in, int lane, const MbarrierRef& b);
// The race detector's agent that stands for copies completing on this mbarrier.
uint32_t mbarrier_agent(const MbarrierRef& b);
// One more arrival is awaited in this phase.
void mbarrier_raise(MbarrierRef& b);
// `bytes` more (fewer where negative) are outstanding, `count` arrivals came; completes the phase when
// nothing is left.
void mbarrier_update(Warp& w, const Inst& in, int lane, MbarrierRef& b, int64_t bytes, uint32_t count,
                     bool drop);

// to[i] = op(to[i], from[i]) over `bytes` bytes of elements of one type, each an atomic operation.
using Reducer = void (*)(u32 op, char* to, const char* from, u64 bytes);
// Of atom's operation and type, for the asynchronous reductions; null for one that is not known.
Reducer find_reducer(Decoder& d, u32* op);

// Carries out the bulk copies out of shared memory that these lanes still have under way.
void finish_bulk(Warp& w, Mask mask);

}  // namespace softgpu
