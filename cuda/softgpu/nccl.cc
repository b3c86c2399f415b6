// A stand-in for NCCL between processes of one machine, each with a software GPU of its own: the functions
// that nccl.h declares for sums and broadcasts of f32, as operations of their stream. Ranks meet in shared
// memory, a piece of kPiece numbers at a time, and add in the order of ranks.
//
// Besides what the real one refuses it checks what that leaves to the GPU or to chance: buffers that are not
// device memory or hold bytes never written, two ranks on one device, ranks that call different things.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <nccl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <new>
#include <random>

#include "cuda/softgpu/library.h"

#define SOFTGPU_EXPORT extern "C" __attribute__((visibility("default")))

namespace softgpu::nccl {
namespace {

constexpr int kMostRanks = 64;
constexpr size_t kPiece = size_t{1} << 16;  // numbers of a rank that are there at once

// In shared memory; all zeros at first.
struct Shared {
  std::atomic<int> ready;  // 2: mutex and condition are made (1: by somebody, just now)
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  int joined, size;
  int device[kMostRanks];     // of each rank, plus 1
  pid_t process[kMostRanks];  // 0: not here yet
  uint64_t arrivals;          // of all ranks, at all meetings so far
  uint64_t call[kMostRanks];  // what a rank is at: kind, count, root
  float piece[kMostRanks][kPiece];
};

}  // namespace
}  // namespace softgpu::nccl

struct ncclComm {
  softgpu::nccl::Shared* shared = nullptr;
  int rank = 0, size = 0;
  uint64_t meetings = 0;
  std::atomic<bool> aborted = false, peer_lost = false;
  std::atomic<int> holders = 1;  // the program, and operations in streams
  std::string name;              // of the shared memory
};

namespace softgpu::nccl {
namespace {

thread_local std::string g_error;

ncclResult_t complain(ncclResult_t result, const std::string& what) {
  g_error = what;
  std::fprintf(stderr, "softgpu: NCCL: %s\n", what.c_str());
  return result;
}

class Lock {
 public:
  explicit Lock(Shared& s) : s_(s) {
    // One that was killed inside has left counts behind that no waiting depends on.
    if (pthread_mutex_lock(&s_.mutex) == EOWNERDEAD) pthread_mutex_consistent(&s_.mutex);
  }
  ~Lock() { pthread_mutex_unlock(&s_.mutex); }
  // Until somebody changes something, or a moment is over: an abort sets no condition.
  void wait() {
    timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 20'000'000;
    if (until.tv_nsec >= 1'000'000'000) ++until.tv_sec, until.tv_nsec -= 1'000'000'000;
    if (pthread_cond_timedwait(&s_.changed, &s_.mutex, &until) == EOWNERDEAD)
      pthread_mutex_consistent(&s_.mutex);
  }

 private:
  Shared& s_;
};

Shared* open_shared(const char* name) {
  const int fd = shm_open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return nullptr;
  void* memory = MAP_FAILED;
  if (ftruncate(fd, sizeof(Shared)) == 0)
    memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) return nullptr;
  auto* s = static_cast<Shared*>(memory);
  int none = 0;
  if (s->ready.compare_exchange_strong(none, 1)) {
    pthread_mutexattr_t m;
    pthread_mutexattr_init(&m);
    pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&m, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&s->mutex, &m);
    pthread_condattr_t c;
    pthread_condattr_init(&c);
    pthread_condattr_setpshared(&c, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&s->changed, &c);
    s->ready = 2;
  }
  while (s->ready != 2) usleep(100);
  return s;
}

// All ranks are here. False: this communicator was aborted, or a process of another rank has ended.
bool meet(ncclComm& c) {
  Shared& s = *c.shared;
  Lock lock(s);
  const uint64_t all = ++c.meetings * static_cast<uint64_t>(c.size);
  ++s.arrivals;
  pthread_cond_broadcast(&s.changed);
  while (s.arrivals < all && !c.aborted && !c.peer_lost) {
    lock.wait();
    for (int r = 0; r < c.size; ++r)
      if (kill(s.process[r], 0) != 0 && errno == ESRCH && s.arrivals < all) c.peer_lost = true;
  }
  return !c.aborted && !c.peer_lost;
}

enum Kind : uint64_t { kSum = 1, kBroadcast = 2 };
struct Work {
  ncclComm* comm;
  const float* from;
  float* to;
  size_t count;
  Kind kind;
  int root;
};

int run(void* state, char* message, size_t size) {
  const Work& w = *static_cast<Work*>(state);
  ncclComm& c = *w.comm;
  Shared& s = *c.shared;
  const auto refuse = [&](int code, const std::string& what) {
    std::snprintf(message, size, "rank %d: %s", c.rank, what.c_str());
    return code;
  };
  const bool reads = w.kind == kSum || c.rank == w.root;
  char why[768];
  if (reads)
    if (const int e = softgpu_check(w.from, 4 * w.count, 0, 1, 1, why, sizeof why))
      return refuse(e, fmt::format("read of sendbuff: {}", why));
  if (const int e = softgpu_check(w.to, 4 * w.count, 0, 1, 0, why, sizeof why))
    return refuse(e, fmt::format("write of recvbuff: {}", why));
  const uint64_t call = static_cast<uint64_t>(w.kind) << 62 | static_cast<uint64_t>(w.root) << 48 | w.count;
  for (size_t at = 0; at < w.count; at += kPiece) {
    const size_t n = std::min(kPiece, w.count - at);
    s.call[c.rank] = call;
    if (reads) std::memcpy(s.piece[c.rank], w.from + at, 4 * n);
    if (!meet(c)) return 0;
    for (int r = 0; r < c.size; ++r)
      if (s.call[r] != call)
        return refuse(cudaErrorInvalidValue,
                      fmt::format("rank {} calls something else; the real library would hang", r));
    if (w.kind == kSum) {
      for (size_t i = 0; i < n; ++i) {
        float sum = s.piece[0][i];
        for (int r = 1; r < c.size; ++r) sum += s.piece[r][i];
        w.to[at + i] = sum;
      }
    } else {
      std::memcpy(w.to + at, s.piece[w.root], 4 * n);
    }
    if (!meet(c)) return 0;  // before anybody's next piece
  }
  softgpu_mark(w.to, 4 * w.count, 0, 1, 1);
  return 0;
}

// Its memory goes once neither the program nor an operation needs it.
void release(ncclComm* c) {
  if (--c->holders != 0) return;
  munmap(c->shared, sizeof(Shared));
  delete c;
}

ncclResult_t submit(const char* name, const Work& w, ncclDataType_t type, cudaStream_t stream) {
  if (!w.comm) return complain(ncclInvalidArgument, fmt::format("{}: no communicator", name));
  if (w.comm->aborted || w.comm->peer_lost)
    return complain(ncclInvalidUsage, fmt::format("{}: the communicator was aborted", name));
  if (type != ncclFloat32)
    return complain(ncclInvalidArgument, fmt::format("{}: only f32 is done by the software GPU", name));
  if (w.kind == kBroadcast && (w.root < 0 || w.root >= w.comm->size))
    return complain(ncclInvalidArgument, fmt::format("{}: root {} of {}", name, w.root, w.comm->size));
  if (w.count == 0) return ncclSuccess;
  if (w.count >= uint64_t{1} << 48) return complain(ncclInvalidArgument, fmt::format("{}: the count", name));
  const uint64_t bytes = 4 * w.count;
  const SoftgpuCall call{name,
                         0,
                         w.kind == kSum ? bytes * static_cast<uint64_t>(w.comm->size) : bytes,
                         bytes,
                         run,
                         [](void* state) {
                           auto* work = static_cast<Work*>(state);
                           ncclComm* c = work->comm;
                           delete work;
                           release(c);
                         },
                         new Work(w)};
  ++w.comm->holders;
  const int e = softgpu_submit(stream, &call);
  if (e != cudaSuccess)
    return complain(ncclUnhandledCudaError, fmt::format("{}: the stream answers {}", name,
                                                        cudaGetErrorName(static_cast<cudaError_t>(e))));
  return ncclSuccess;
}

}  // namespace
}  // namespace softgpu::nccl

using namespace softgpu::nccl;

SOFTGPU_EXPORT ncclResult_t ncclGetVersion(int* version) {
  if (!version) return complain(ncclInvalidArgument, "ncclGetVersion: no place for it");
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

SOFTGPU_EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  if (!id) return complain(ncclInvalidArgument, "ncclGetUniqueId: no place for it");
  std::random_device random;
  std::memset(id->internal, 0, sizeof id->internal);
  std::snprintf(id->internal, sizeof id->internal, "/softgpu-nccl-%08x%08x%08x%08x", random(), random(),
                random(), random());
  return ncclSuccess;
}

SOFTGPU_EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                                   ncclConfig_t* config) {
  if (!comm) return complain(ncclInvalidArgument, "ncclCommInitRankConfig: no place for the communicator");
  *comm = nullptr;
  if (size < 1 || size > kMostRanks || rank < 0 || rank >= size)
    return complain(ncclInvalidArgument,
                    fmt::format("ncclCommInitRankConfig: rank {} of {}, at most {} are done here", rank, size,
                                kMostRanks));
  if (config && (config->magic != 0xcafebeef || config->size != sizeof(ncclConfig_t)))
    return complain(ncclInvalidArgument, "ncclCommInitRankConfig: not an NCCL_CONFIG_INITIALIZER");
  if (std::memchr(id.internal, 0, sizeof id.internal) == nullptr ||
      std::strncmp(id.internal, "/softgpu-nccl-", 14) != 0)
    return complain(ncclInvalidArgument, "ncclCommInitRankConfig: not an id of ncclGetUniqueId");
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return ncclUnhandledCudaError;
  auto c = std::make_unique<ncclComm>();
  c->shared = open_shared(id.internal);
  if (!c->shared)
    return complain(ncclSystemError,
                    fmt::format("ncclCommInitRankConfig: {}: {}", id.internal, std::strerror(errno)));
  c->rank = rank, c->size = size, c->name = id.internal;
  Shared& s = *c->shared;
  {
    Lock lock(s);
    if (s.size != 0 && s.size != size)
      return complain(ncclInvalidArgument,
                      fmt::format("ncclCommInitRankConfig: {} ranks here, {} elsewhere", size, s.size));
    s.size = size;
    s.device[rank] = device + 1;
    s.process[rank] = getpid();
    if (++s.joined == size) shm_unlink(id.internal);  // all have it
    for (int r = 0; r < size; ++r)
      if (r != rank && s.device[r] == device + 1) {
        shm_unlink(id.internal);
        return complain(ncclInvalidUsage,
                        fmt::format("Duplicate GPU detected: rank {} and rank {} both on device "
                                    "{} (tools/softgpu --devices N counts more)",
                                    r, rank, device));
      }
    pthread_cond_broadcast(&s.changed);
    const bool blocking = !config || config->blocking != 0;
    while (blocking && s.joined < size) lock.wait();
  }
  *comm = c.release();
  return (*comm)->shared->joined < size ? ncclInProgress : ncclSuccess;
}
SOFTGPU_EXPORT ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(comm, size, id, rank, nullptr);
}

SOFTGPU_EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  if (!comm || !state) return complain(ncclInvalidArgument, "ncclCommGetAsyncError: a null argument");
  const Lock lock(*comm->shared);
  *state = comm->peer_lost                     ? ncclRemoteError
           : comm->shared->joined < comm->size ? ncclInProgress
                                               : ncclSuccess;
  return ncclSuccess;
}

SOFTGPU_EXPORT ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  return comm ? ncclSuccess : complain(ncclInvalidArgument, "ncclCommFinalize: no communicator");
}
SOFTGPU_EXPORT ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm) return ncclSuccess;
  release(comm);
  return ncclSuccess;
}
SOFTGPU_EXPORT ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (!comm) return ncclSuccess;
  comm->aborted = true;
  shm_unlink(comm->name.c_str());  // where some rank has not come
  return ncclCommDestroy(comm);
}

SOFTGPU_EXPORT ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                                          ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (op != ncclSum)
    return complain(ncclInvalidArgument, "ncclAllReduce: only ncclSum is done by the software GPU");
  return submit("ncclAllReduce",
                {comm, static_cast<const float*>(from), static_cast<float*>(to), count, kSum, 0}, type,
                stream);
}
SOFTGPU_EXPORT ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type,
                                          int root, ncclComm_t comm, cudaStream_t stream) {
  return submit("ncclBroadcast",
                {comm, static_cast<const float*>(from), static_cast<float*>(to), count, kBroadcast, root},
                type, stream);
}

SOFTGPU_EXPORT const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}
SOFTGPU_EXPORT const char* ncclGetLastError(ncclComm_t) { return g_error.c_str(); }
