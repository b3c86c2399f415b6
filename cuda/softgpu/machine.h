// The machine: decoded kernels, warps, blocks, and the loop that runs them. An instruction is a handler and
// the places of its operands; a register is an array over the 32 lanes of a warp, so a handler is a loop over
// lanes.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/softgpu/memory.h"
#include "cuda/softgpu/race.h"

namespace softgpu {

constexpr int kLanes = 32;
using Mask = uint32_t;
constexpr Mask kAll = 0xffffffffu;

struct Warp;
struct Cta;
struct Group;
struct Inst;
struct Kernel;
using Handler = void (*)(Warp&, const Inst&, Mask);

constexpr uint8_t kFlagBranch = 1, kFlagStops = 2, kFlagTable = 4;  // Inst::flags: where control goes
constexpr uint8_t kFlagMove = 8, kFlagWgmma = 16;                   // mov; wgmma.mma_async
constexpr uint8_t kFlagAligned = 32;  // a barrier all lanes of a warp must execute

// Where an operand's lanes live: in the warp's registers (base 0) or the kernel's constants (base 1).
struct Ref {
  uint32_t off = 0;
  uint8_t base = 0;
  uint8_t def = 0;     // 1 written, 2 read and written
  uint16_t bits = 32;  // 1 predicate (one word for all lanes), 16, 32, 64, 128; 0 absent
  bool present() const { return bits != 0; }
};
constexpr Ref kNoRef{0, 0, 0, 0};

enum class Class : uint8_t {
  kInteger,
  kFloat,
  kConvert,
  kMove,
  kControl,
  kMemory,
  kAtomic,
  kShuffle,
  kBarrier,
  kAsync,
  kMma
};
constexpr int kClasses = 11;

struct Inst {
  Handler fn = nullptr;
  const Ref* ops = nullptr;
  Ref guard = kNoRef;
  bool guard_negated = false;
  Class cls = Class::kInteger;
  uint8_t nops = 0;
  uint8_t space = 0, size = 0, vec = 1, flags = 0;
  uint32_t target = 0;
  uint32_t aux = 0;
  int64_t imm = 0;
  const void* ext = nullptr;
  uint32_t index = 0;  // own place in Kernel::code
};

struct SourceLine {
  int ptx_line, file, line, inline_file, inline_line;
  std::string text;
};

enum class Special : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneid,
  kWarpid,
  kNwarpid,
  kSmid,
  kNsmid,
  kGridid,
  kLaneEq,
  kLaneLe,
  kLaneLt,
  kLaneGe,
  kLaneGt,
  kClusterCtaidX,
  kClusterCtaidY,
  kClusterCtaidZ,
  kClusterNctaidX,
  kClusterNctaidY,
  kClusterNctaidZ,
  kClusterCtarank,
  kClusterNctarank,
  kClusteridX,
  kClusteridY,
  kClusteridZ,
  kNclusteridX,
  kNclusteridY,
  kNclusteridZ,
  kIsExplicitCluster,
  kDynamicSmem,
  kTotalSmem,
  kEnvreg,
  kCount
};

struct KernelParam {
  uint32_t offset, size;
};

struct Kernel {
  std::string name;
  std::string module;
  std::vector<Inst> code;
  std::deque<std::vector<Ref>> operands;
  std::deque<std::vector<uint8_t>> ext;       // tables behind Inst::ext
  std::deque<std::vector<uint32_t>> targets;  // brx.idx
  std::vector<SourceLine> lines;              // one per instruction
  std::map<int, std::string> files;
  char* constants = nullptr;
  std::vector<std::pair<uint32_t, Special>> specials;  // register offset <- special register
  uint32_t register_bytes = 0;
  uint32_t static_shared = 0, local_bytes = 0, param_bytes = 0;
  std::vector<KernelParam> params;
  uint32_t max_threads[3] = {0, 0, 0}, required_threads[3] = {0, 0, 0}, cluster[3] = {0, 0, 0};
  std::shared_ptr<const struct WgmmaTable> wgmma;  // where the kernel has wgmma
  bool subword_shared = false;                     // some access to shared memory is narrower than 4 bytes
  int registers_estimate = 0;                      // live 32-bit registers, for attributes and occupancy
  int max_dynamic_shared = 48 * 1024;
  int preferred_carveout = -1;
  bool non_portable_cluster = false;
};

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

struct Fault : std::runtime_error {
  Fault(const std::string& what, int error) : std::runtime_error(what), code(error) {}
  int code;  // a cudaError_t
};
enum FaultCode : int {
  kFaultAddress = 700,
  kFaultTimeout = 702,
  kFaultAssert = 710,
  kFaultInstruction = 715,
  kFaultAlignment = 716,
  kFaultLaunch = 719
};

struct Counters {
  uint64_t warp_instructions = 0, thread_instructions = 0;
  uint64_t by_class[kClasses] = {};
  uint64_t global_loads = 0, global_stores = 0;  // warp requests
  uint64_t load_sectors = 0, store_sectors = 0;  // distinct 32-byte sectors a request touches
  uint64_t load_bytes = 0, store_bytes = 0;      // asked for
  uint64_t shared_requests = 0, shared_wavefronts = 0, shared_ideal = 0;
  uint64_t multiply_adds = 0;  // of mma and wgmma
  uint64_t async_bytes = 0;    // cp.async, bulk and tensor copies
  void add(const Counters& o);
};

// A group of lanes of one warp at one program counter.
struct LaneGroup {
  uint32_t pc = 0;
  Mask mask = 0;
  enum State : uint8_t { kReady, kConverge, kBarrier, kCluster } state = kReady;
  Mask waiting_for = 0;  // kConverge: lanes that must arrive at this instruction
  uint32_t barrier = 0;  // kBarrier
};

struct AsyncCopy {    // cp.async: up to 16 bytes of one lane
  uint64_t to, from;  // host addresses
  uint32_t bytes, zeros;
  uint32_t offset;  // in shared memory
  Cta* cta;
};
struct AsyncGroups {  // of one lane
  std::deque<std::vector<AsyncCopy>> committed;
  std::vector<AsyncCopy> open;
};

struct BulkGroups {  // of one lane: bulk copies out of shared memory, carried out when they are waited for
  std::deque<std::vector<std::function<void()>>> committed;
  std::vector<std::function<void()>> open;
};

struct Warp {
  char* base[2] = {nullptr, nullptr};
  uint32_t pc = 0;
  Mask active = 0, live = 0;
  uint32_t min_parked = UINT32_MAX;  // smallest pc of a ready parked group
  std::vector<LaneGroup> parked;
  Mask carry = 0;        // CC.CF of each lane
  bool yield = false;    // give the processor to another warp after this instruction
  bool progress = true;  // did something other than a failed try since it was scheduled
  Cta* cta = nullptr;
  Group* group = nullptr;
  const Kernel* kernel = nullptr;
  uint32_t index = 0;      // in its block
  uint32_t first_tid = 0;  // of lane 0 within the group of blocks, for the race detector
  std::vector<char> registers;
  uint64_t cluster_phase[kLanes] = {};         // the cluster barrier's phase each lane arrived in
  bool cluster_pending = false;                // arrived, not yet waited
  std::unique_ptr<AsyncGroups[]> async;        // per lane, allocated on first use
  std::unique_ptr<BulkGroups[]> bulk_groups;   // per lane, allocated on first use
  std::shared_ptr<struct InFlight> in_flight;  // of wgmma, allocated on first use
  ThreadClock* clocks = nullptr;               // 32 of them
  void park(LaneGroup g) {
    if (g.state == LaneGroup::kReady && g.pc < min_parked) min_parked = g.pc;
    parked.push_back(g);
  }
};

struct NamedBarrier {
  uint32_t arrived = 0, expected = 0;
  uint32_t true_count = 0, voted = 0;  // barrier.red
  Snapshot clock;
  uint32_t last_true = 0, last_voted = 0;  // of the last completed phase
};

struct Cta {
  Group* group = nullptr;
  Dim3 id;
  uint32_t rank = 0;  // in its cluster
  uint32_t threads = 0, live_threads = 0, shared_bytes = 0;
  uint32_t shared_capacity = 0;
  char* shared = nullptr;
  uint8_t* shadow = nullptr;
  std::vector<char> local;
  uint32_t local_stride = 0;
  std::vector<Warp> warps;
  NamedBarrier barriers[16];
};

struct Mbarrier {               // state the memory word cannot hold
  Snapshot arriving;            // clock of the arrivals of the current phase
  Snapshot done;                // clock of the last completed phase
  uint32_t tid = 0, clock = 0;  // who set it up, and when
  uint32_t pc = 0;              // of that mbarrier.init
  bool visible = false;         // to copies: the same thread has fenced since
};

struct Launch {
  const Kernel* kernel = nullptr;
  Dim3 grid, block, cluster;
  uint32_t dynamic_shared = 0;
  std::vector<char> params;
  uint64_t id = 0;
  bool cooperative = false;
  bool count = false;
};

// One cluster of blocks (a single block where there are no clusters), run by one host thread.
struct Group {
  const Launch* launch = nullptr;
  std::vector<std::unique_ptr<Cta>> ctas;
  uint64_t rng = 0;
  uint64_t steps = 0;
  Counters counters;
  RaceDetector races;
  struct Range {
    uint64_t lo = 1, hi = 0;
  };
  std::vector<Range> cache;                        // per instruction: the allocation it last touched
  uint32_t cluster_arrived = 0, cluster_live = 0;  // threads
  Snapshot cluster_clock, cluster_done;
  uint64_t cluster_phase = 0;
  std::unordered_map<uint64_t, Mbarrier> mbarriers;  // by rank and offset
  std::vector<std::function<void()>> bulk;           // copies under way, each to be carried out once
  bool init_checks = true, race_checks = true;
  uint64_t random() {
    rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
    return rng;
  }
};

template <class T>
inline T* lanes(Warp& w, const Ref& r) {
  return reinterpret_cast<T*>(w.base[r.base] + r.off);
}
inline Mask& predicate(Warp& w, const Ref& r) { return *reinterpret_cast<Mask*>(w.base[r.base] + r.off); }
inline void set_predicate(Warp& w, const Ref& r, Mask mask, Mask value) {
  if (!r.present()) return;
  Mask& p = predicate(w, r);
  p = (p & ~mask) | (value & mask);
}

// d[i] = f(i) for the lanes in `mask`.
template <class D, class F>
inline __attribute__((always_inline)) void each(Mask mask, D* d, F f) {
  if (mask == kAll) {
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) d[i] = f(i);
  } else {
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) d[i] = (mask >> i) & 1 ? f(i) : d[i];
  }
}
// The lanes of `mask` for which f(i) holds.
template <class F>
inline __attribute__((always_inline)) Mask ballot(Mask mask, F f) {
  Mask m = 0;
  for (int i = 0; i < kLanes; ++i) m |= static_cast<Mask>(f(i) ? 1 : 0) << i;
  return m & mask;
}
template <class F>
inline void for_lanes(Mask mask, F f) {
  for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

// Throws a Fault that names kernel, PTX line, source line, block and thread.
[[noreturn]] void fault(Warp& w, const Inst& in, int lane, int code, const std::string& what);
std::string place(const Kernel& k, uint32_t pc);

// Run a whole launch; throws Fault. Counters are added to *counters where not null.
void run_launch(const Launch& launch, Counters* counters);

// job(0), ..., job(n - 1), each on a host thread of its own; n is how many threads there are to use, `most`
// at the most.
void run_on_threads(uint64_t most, const std::function<void(int)>& job);

// --- used by handlers
// --------------------------------------------------------------------------------------------

// For instructions that lanes of a warp execute together: true once every live lane of `needed` is in `*mask`
// (the lanes executing, joined here by those that waited at this instruction); else the lanes are parked
// until the others come, and the handler must return at once.
bool converged(Warp& w, const Inst& in, Mask* mask, Mask needed);
// `expected` 0: all live threads of the block. `threads`: how many this warp counts for. `red` 1: joins
// `value` to the barrier's reduction.
void barrier_arrive(Warp& w, const Inst& in, Mask mask, uint32_t barrier, uint32_t expected, uint32_t threads,
                    bool wait);
void cluster_arrive(Warp& w, Mask mask);
// False where the phase is not complete: the lanes are parked at this instruction.
bool cluster_wait(Warp& w, const Inst& in, Mask mask);
// Carries out one pending bulk copy; false where there is none.
bool run_one_bulk(Group& g);
void exit_lanes(Warp& w, Mask mask);

}  // namespace softgpu
