// Addresses of a warp's lanes to host memory, with all checks.
#pragma once

#include "cuda/softgpu/machine.h"

namespace softgpu {

enum class Window : uint8_t { kGlobal, kShared, kLocal, kParam, kGeneric, kSharedCluster };
enum class Use : uint8_t { kRead, kWrite, kAtomic };

struct Access {
  alignas(64) uint64_t host[kLanes];
  bool contiguous;  // all lanes active, each following the one before
  bool shared;      // some lane is in shared memory
};

// Translates addresses[lane] for the lanes in `mask`; throws a Fault where an access is not allowed.
void translate(Warp& w, const Inst& in, Mask mask, Window window, const uint64_t* addresses, uint32_t bytes,
               Use use, bool strong, Access* out);

// The lanes' addresses: register (32 or 64 bits) plus Inst::imm.
void gather_addresses(Warp& w, const Inst& in, const Ref& base, int64_t offset, uint64_t* out);

// A lane's address of shared memory (own or, with a rank in the upper byte, of the cluster) to its block and
// offset. `bytes` are checked against the size of that block's memory.
Cta& shared_target(Warp& w, const Inst& in, int lane, uint64_t address, uint32_t bytes, uint32_t* offset);
// Host address of one lane's generic or global address for `bytes`; checks bounds only.
char* host_address(Warp& w, const Inst& in, int lane, uint64_t address, uint64_t bytes, const char* what);

// A read of shared memory by the hardware behind an instruction: what it reads must be there and ordered
// before the lane; the read itself leaves no mark.
void check_async_read(Warp& w, const Inst& in, int lane, Cta& cta, uint32_t offset, uint32_t bytes);

Window window_of(const std::string& modifier, bool* known);

}  // namespace softgpu
