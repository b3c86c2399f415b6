// NCCL, opened on first use and never linked: this is the only place that sees its header. A build without
// the header has nccl_absent.cc in its place.
#include <dlfcn.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "cuda/cuda_device.h"
#include "cuda/runtime/check.h"

namespace gantrain {
namespace {

constexpr const char* kLibrary = "libnccl.so.2";

// The functions that are used, by the names of the header.
struct Functions {
  decltype(&ncclGetVersion) version;
  decltype(&ncclGetUniqueId) unique_id;
  decltype(&ncclCommInitRankConfig) init;
  decltype(&ncclCommGetAsyncError) async_error;
  decltype(&ncclCommFinalize) finalize;
  decltype(&ncclCommDestroy) destroy;
  decltype(&ncclCommAbort) abort;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclBroadcast) broadcast;
  decltype(&ncclGetErrorString) error_string;
  decltype(&ncclGetLastError) last_error;
};
template <typename F>
void find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  if (!*function) fail("{}: there is no {} in it; expected NCCL 2.14 or newer", kLibrary, name);
}

Functions open_library() {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);  // for the life of the process
  if (!library)
    fail(
        "several ranks on GPUs need NCCL, which cannot be opened: {}; install libnccl2, or the PyPI package "
        "nvidia-nccl-cu13 with its lib folder in LD_LIBRARY_PATH",
        dlerror());
  Functions f = {};
  find(library, "ncclGetVersion", &f.version);
  find(library, "ncclGetUniqueId", &f.unique_id);
  find(library, "ncclCommInitRankConfig", &f.init);
  find(library, "ncclCommGetAsyncError", &f.async_error);
  find(library, "ncclCommFinalize", &f.finalize);
  find(library, "ncclCommDestroy", &f.destroy);
  find(library, "ncclCommAbort", &f.abort);
  find(library, "ncclAllReduce", &f.all_reduce);
  find(library, "ncclBroadcast", &f.broadcast);
  find(library, "ncclGetErrorString", &f.error_string);
  find(library, "ncclGetLastError", &f.last_error);
  return f;
}

// NCCL's communicator never blocks a call (its operations wait on the GPU), so that one which a lost rank
// would leave waiting for ever can be aborted: by the watch over the hosts' connections, or by the guard that
// asks NCCL for its own errors.
class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Device& device, std::unique_ptr<HostCommunicator> hosts)
      : f_(open_library()),
        stream_(static_cast<cudaStream_t>(cuda_stream(device))),
        hosts_(std::move(hosts)) {
    int version = 0;
    call(f_.version(&version), "ncclGetVersion");
    version_ = version;
    // The same everywhere, or the library would find out by hanging.
    const std::string own = std::to_string(version);
    const std::vector<std::string> versions = hosts_->all_gather(own);
    for (size_t r = 0; r < versions.size(); ++r)
      if (versions[r] != versions[0])
        fail("{}: rank {} has version {}, rank 0 version {}; install the same on all machines", kLibrary, r,
             versions[r], versions[0]);
    ncclUniqueId id = {};
    if (rank() == 0) call(f_.unique_id(&id), "ncclGetUniqueId");
    const std::string first = hosts_->all_gather({id.internal, sizeof id.internal}).front();
    std::memcpy(id.internal, first.data(), sizeof id.internal);
    hosts_->watch([this](const std::string& what) { lose(what); });
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    {
      const std::lock_guard lock(mutex_);
      const ncclResult_t begun = f_.init(&comm_, size(), id, rank(), &config);
      if (begun != ncclInProgress) call(begun, "ncclCommInitRankConfig");
    }
    try {
      settle("ncclCommInitRankConfig");
    } catch (...) {
      give_up();
      throw;
    }
    guard_ = std::thread([this] { guard(); });
  }
  ~NcclCommunicator() override {
    stop_guard();
    give_up();
  }

  int rank() const override { return hosts_->rank(); }
  int size() const override { return hosts_->size(); }
  std::string description() const override {
    return fmt::format("{}; gradients by NCCL {}.{}.{}", hosts_->description(), version_ / 10000,
                       version_ / 100 % 100, version_ % 100);
  }

  void all_reduce(Tensor t) override {
    agree("ncclAllReduce", t, 0);
    enqueue("ncclAllReduce", [&] {
      return f_.all_reduce(t.raw(), t.raw(), static_cast<size_t>(t.count()), ncclFloat32, ncclSum, comm_,
                           stream_);
    });
  }
  void broadcast(Tensor t, int from) override {
    agree("ncclBroadcast", t, from);
    enqueue("ncclBroadcast", [&] {
      return f_.broadcast(t.raw(), t.raw(), static_cast<size_t>(t.count()), ncclFloat32, from, comm_,
                          stream_);
    });
  }
  std::vector<std::string> all_gather(std::string_view bytes) override {
    check_lost();
    try {
      return hosts_->all_gather(bytes);
    } catch (const Error&) {
      check_lost();  // NCCL's own word comes first
      throw;
    }
  }
  void leave() override {
    check_lost();
    const cudaError_t error = cudaStreamSynchronize(stream_);
    if (error != cudaSuccess)
      fail("rank {} of {}: {} at the end of the work", rank(), size(), cudaGetErrorString(error));
    stop_guard();
    hosts_->leave();
    const std::lock_guard lock(mutex_);
    if (!comm_) return;
    // Its errors cannot matter any more; a communicator that does not finish in time is aborted.
    ncclResult_t state = f_.finalize(comm_);
    for (int i = 0; state == ncclInProgress && i < 5000; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      (void)f_.async_error(comm_, &state);
    }
    if (state == ncclSuccess) (void)f_.destroy(std::exchange(comm_, nullptr));
  }

 private:
  // Whether all ranks are at the same call, before anything waits on the GPU for one that is not.
  void agree(const char* what, const Tensor& t, int from) {
    GT_CHECK(t.dtype() == DType::kF32, "{} of {}", what, dtype_name(t.dtype()));
    GT_CHECK(from >= 0 && from < size(), "{} from rank {} of {}", what, from, size());
    const std::string own = fmt::format("{} of {} numbers, root {}", what, t.count(), from);
    const std::vector<std::string> all = all_gather(own);
    for (size_t r = 0; r < all.size(); ++r)
      GT_CHECK(all[r] == own, "rank {} calls {}, rank {} {}", r, all[r], rank(), own);
  }
  template <typename Call>
  void enqueue(const char* what, const Call& call_it) {
    {
      const std::lock_guard lock(mutex_);
      throw_if_lost();
      const ncclResult_t result = call_it();
      if (result != ncclInProgress) call(result, what);
    }
    settle(what);
  }
  // Until a call that went on in NCCL's own thread is on the stream.
  void settle(const char* what) {
    const auto begin = std::chrono::steady_clock::now();
    int looks = 0;
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        throw_if_lost();
        ncclResult_t state = ncclSuccess;
        call(f_.async_error(comm_, &state), "ncclCommGetAsyncError");
        if (state == ncclSuccess) return;
        // The hosts' watch knows better which rank it is that NCCL misses: it has a second to say so.
        if (state == ncclRemoteError ? ++looks > 500 : state != ncclInProgress) call(state, what);
      }
      // A moment is all it takes, but for the first meeting.
      const bool at_once = std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(2);
      std::this_thread::sleep_for(std::chrono::microseconds(at_once ? 20 : 2000));
    }
  }
  void call(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess) return;
    const char* more = comm_ ? f_.last_error(comm_) : nullptr;
    fail("rank {} of {}: {}: {}{}{}; NCCL_DEBUG=INFO says more", rank(), size(), what,
         f_.error_string(result), more && *more ? ": " : "", more && *more ? more : "");
  }

  void lose(const std::string& what) {
    const std::lock_guard lock(mutex_);
    if (lost_.empty()) lost_ = what;
    // What waits on the GPU for the lost rank ends, with numbers that nobody will use.
    if (comm_) (void)f_.abort(std::exchange(comm_, nullptr));
  }
  void give_up() {
    const std::lock_guard lock(mutex_);
    if (comm_) (void)f_.abort(std::exchange(comm_, nullptr));
  }
  void throw_if_lost() const {
    if (!lost_.empty()) fail("{}", lost_);
  }
  void check_lost() {
    const std::lock_guard lock(mutex_);
    throw_if_lost();
  }
  void guard() {
    std::unique_lock lock(mutex_);
    int looks = 0;
    while (!over_) {
      wake_.wait_for(lock, std::chrono::seconds(1));
      if (over_ || !comm_) continue;
      ncclResult_t state = ncclSuccess;
      if (f_.async_error(comm_, &state) != ncclSuccess || state == ncclSuccess || state == ncclInProgress)
        continue;
      if (state == ncclRemoteError && ++looks < 3) continue;  // as in settle()
      lost_ = fmt::format("rank {} of {}: NCCL: {}: {}; NCCL_DEBUG=INFO says more", rank(), size(),
                          f_.error_string(state), f_.last_error(comm_));
      (void)f_.abort(std::exchange(comm_, nullptr));
    }
  }
  void stop_guard() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
    if (guard_.joinable()) guard_.join();
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
  std::string lost_;  // why nothing works any more
  ncclComm_t comm_ = nullptr;
  std::thread guard_;
  int version_ = 0;
  const Functions f_;
  cudaStream_t stream_;
  std::unique_ptr<HostCommunicator> hosts_;  // the last: its watch uses all the others until it ends
};

}  // namespace

std::unique_ptr<Communicator> make_cuda_communicator(Device& device,
                                                     std::unique_ptr<HostCommunicator> hosts) {
  return std::make_unique<NcclCommunicator>(device, std::move(hosts));
}

}  // namespace gantrain
