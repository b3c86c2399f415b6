// A program that does not link NCCL but opens it on first use: two processes, sums and broadcasts between
// them.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <nccl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <vector>

#include "tests/softgpu/check.h"

#define EXPECT(condition)                                                \
  do {                                                                   \
    if (!(condition)) {                                                  \
      std::printf("rank %d, line %d: %s\n", rank, __LINE__, #condition); \
      return 1;                                                          \
    }                                                                    \
  } while (0)

// The id goes from rank 0 to rank 1 through a pipe. device[r]: of rank r.
int work(int rank, int to, int from, const int* device, ncclResult_t begins) {
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::printf("%s\n", dlerror());
    return 1;
  }
#define OPEN(name) const auto name = reinterpret_cast<decltype(&::name)>(dlsym(library, #name))
  OPEN(ncclGetVersion);
  OPEN(ncclGetUniqueId);
  OPEN(ncclCommInitRankConfig);
  OPEN(ncclCommGetAsyncError);
  OPEN(ncclCommDestroy);
  OPEN(ncclCommAbort);
  OPEN(ncclAllReduce);
  OPEN(ncclBroadcast);
  int version = 0;
  EXPECT(ncclGetVersion(&version) == ncclSuccess && version == NCCL_VERSION_CODE);
  CHECK_CUDA(cudaSetDevice(device[rank]));
  ncclUniqueId id = {};
  if (rank == 0) {
    EXPECT(ncclGetUniqueId(&id) == ncclSuccess);
    EXPECT(write(to, &id, sizeof id) == sizeof id);
  } else {
    EXPECT(read(from, &id, sizeof id) == sizeof id);
  }
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  ncclResult_t state = ncclCommInitRankConfig(&comm, 2, id, rank, &config);
  if (begins != ncclSuccess) {  // whoever comes second is told
    char told = state != ncclInProgress;
    if (told) EXPECT(state == begins && write(to, &told, 1) == 1);
    if (!told) {
      EXPECT(read(from, &told, 1) == 1);
      EXPECT(ncclCommAbort(comm) == ncclSuccess);
    }
    return 0;
  }
  while (state == ncclInProgress) {
    usleep(1000);
    EXPECT(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
  }
  EXPECT(state == ncclSuccess);

  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreate(&stream));
  for (const size_t n : {size_t{1}, size_t{1000}, size_t{3 << 16} + 5}) {
    std::vector<float> a(n), b(n), sum(n), got(n);
    for (size_t i = 0; i < n; ++i) {
      a[i] = std::sin(static_cast<float>(i));
      b[i] = 1.0f / static_cast<float>(i + 1);
      sum[i] = a[i] + b[i];
    }
    const std::vector<float>& own = rank == 0 ? a : b;
    float *x, *y;
    CHECK_CUDA(cudaMalloc(&x, 4 * n));
    CHECK_CUDA(cudaMalloc(&y, 4 * n));
    CHECK_CUDA(cudaMemcpy(x, own.data(), 4 * n, cudaMemcpyHostToDevice));
    const auto holds = [&](const float* p, const std::vector<float>& want) {
      CHECK_CUDA(cudaStreamSynchronize(stream));
      CHECK_CUDA(cudaMemcpy(got.data(), p, 4 * n, cudaMemcpyDeviceToHost));
      return got == want;
    };
    EXPECT(ncclAllReduce(x, y, n, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
    EXPECT(holds(y, sum) && holds(x, own));
    EXPECT(ncclBroadcast(x, x, n, ncclFloat32, 1, comm, stream) == ncclSuccess);
    EXPECT(holds(x, b));
    EXPECT(ncclAllReduce(y, y, n, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
    for (float& s : sum) s *= 2;
    EXPECT(holds(y, sum));
    CHECK_CUDA(cudaFree(x));
    CHECK_CUDA(cudaFree(y));
  }
  float* x;
  CHECK_CUDA(cudaMalloc(&x, 4));
  EXPECT(ncclAllReduce(x, x, 1, ncclFloat32, ncclMax, comm, stream) == ncclInvalidArgument);
  EXPECT(ncclAllReduce(x, x, 1, ncclFloat16, ncclSum, comm, stream) == ncclInvalidArgument);
  EXPECT(ncclBroadcast(x, x, 1, ncclFloat32, 2, comm, stream) == ncclInvalidArgument);
  EXPECT(ncclCommDestroy(comm) == ncclSuccess);
  return 0;
}

bool on_two(int first_device, int second_device, ncclResult_t begins) {
  int there[2], back[2];
  if (pipe(there) != 0 || pipe(back) != 0) return false;
  const int device[2] = {first_device, second_device};
  pid_t child[2];
  for (int rank = 0; rank < 2; ++rank) {
    child[rank] = fork();
    if (child[rank] == 0) {
      const int code =
          rank == 0 ? work(0, there[1], back[0], device, begins) : work(1, back[1], there[0], device, begins);
      std::fflush(nullptr);
      _exit(code);
    }
  }
  bool good = true;
  for (const pid_t c : child) {
    int status = 0;
    good &= waitpid(c, &status, 0) == c && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  for (const int fd : {there[0], there[1], back[0], back[1]}) close(fd);
  return good;
}

int main() {
  const bool sums = on_two(0, 1, ncclSuccess), duplicates = on_two(1, 1, ncclInvalidUsage);
  std::printf("nccl: sums and broadcasts %s, one device twice %s\n", sums ? "good" : "wrong",
              duplicates ? "refused" : "taken");
  return sums && duplicates ? 0 : 1;
}
