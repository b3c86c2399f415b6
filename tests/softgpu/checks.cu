// Programs that a check must stop, each beside a sound twin that it must let pass: checks CASE broken|sound.
// checks.py runs them under many seeds.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "tests/softgpu/check.h"

constexpr int kN = 256;

// --- races in shared memory
// --------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void reverse_block(int* x) {  // a barrier between write and read
  __shared__ int s[kN];
  s[threadIdx.x] = 0;
  __syncthreads();
  s[threadIdx.x] = x[threadIdx.x];
  if (!kBroken) __syncthreads();
  x[threadIdx.x] = s[kN - 1 - threadIdx.x];
}
template <bool kBroken>
__global__ void reuse_tile(int* x) {  // a barrier between the reads of one round and the writes of the next
  __shared__ int s[kN];
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    s[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    sum += s[(threadIdx.x + 37) % kN];
    if (!kBroken) __syncthreads();
  }
  x[threadIdx.x] = sum;
}
template <bool kBroken>
__global__ void warp_exchange(int* x) {  // lanes of one warp need __syncwarp
  __shared__ int s[kN];
  s[threadIdx.x] = x[threadIdx.x];
  if (!kBroken) __syncwarp();
  x[threadIdx.x] = s[threadIdx.x ^ 1];
}
template <bool kBroken>
__global__ void byte_exchange(
    unsigned char* x) {  // neighbours write neighbouring bytes, which is no race; reading is
  __shared__ unsigned char s[kN];
  s[threadIdx.x] = 0;
  __syncthreads();
  s[threadIdx.x] = x[threadIdx.x];
  const unsigned char own = s[threadIdx.x];
  if (!kBroken) __syncthreads();
  x[threadIdx.x] = own + s[(threadIdx.x + 33) % kN];
}
template <bool kBroken>
__global__ void histogram(int* x) {
  __shared__ int s[32];
  if (threadIdx.x < 32) s[threadIdx.x] = 0;
  __syncthreads();
  if (kBroken) {
    s[threadIdx.x & 31] += 1;
  } else {
    atomicAdd(&s[threadIdx.x & 31], 1);
  }
  __syncthreads();
  if (threadIdx.x < 32) x[threadIdx.x] = s[threadIdx.x];
}
template <bool kBroken>
__global__ void half_barrier(int* x) {  // producer and consumer warps meet at a named barrier
  __shared__ int s[64];
  const int warp = threadIdx.x / 32;
  if (warp == 0) {
    s[threadIdx.x] = x[threadIdx.x];
    if (!kBroken) asm volatile("bar.arrive 1, 64;" ::: "memory");
  } else if (warp == 1) {
    if (!kBroken) asm volatile("bar.sync 1, 64;" ::: "memory");
    x[threadIdx.x] = s[threadIdx.x ^ 33];
  }
}
template <bool kBroken>
__global__ void wrong_warps(int* x) {  // the barrier joins warps 0 and 1; warp 2 reads as well
  __shared__ int s[64];
  if (threadIdx.x < 64) {
    s[threadIdx.x] = x[threadIdx.x];
    asm volatile("bar.sync 1, 64;" ::: "memory");
  }
  if (!kBroken) __syncthreads();
  if (threadIdx.x >= 64 && threadIdx.x < 96) x[threadIdx.x] = s[threadIdx.x - 64];
}

// --- addresses
// ---------------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void off_by_one(int* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (kBroken ? i <= n : i < n) x[i] = i;
}
template <bool kBroken>
__global__ void read_before(const int* x, int* y) {
  y[threadIdx.x] = x[static_cast<int>(threadIdx.x) - (kBroken ? 1 : 0)];
}
template <bool kBroken>
__global__ void misaligned(const int* x, int2* y) {
  y[threadIdx.x] = *reinterpret_cast<const int2*>(x + 2 * threadIdx.x + (kBroken ? 1 : 0));
}
template <bool kBroken>
__global__ void shared_bounds(int* x, int n) {
  extern __shared__ int dynamic[];
  dynamic[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = dynamic[(threadIdx.x + 1) % n];
}
template <bool kBroken>
__global__ void local_bounds(int* x) {
  int a[8];
  for (int i = 0; i < 8; ++i) a[i] = x[i];
  const int k = x[threadIdx.x % 4] % 8;  // values 0..7 below
  x[threadIdx.x] = a[kBroken ? k + 100000 : k];
}
__global__ void touch(int* x) { x[threadIdx.x] += 1; }

// --- memory never written
// ----------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void unwritten_shared(int* x) {
  __shared__ int s[kN];
  if (kBroken ? threadIdx.x < kN - 1 : true) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = s[(threadIdx.x + 1) % kN];
}
__global__ void copy(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x]; }

// --- barriers and masks
// ------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void divergent_barrier(int* x) {
  if (kBroken) {
    if (threadIdx.x % 32 < 16) {
      __syncthreads();
    }
  } else {
    if (threadIdx.x / 32 < 9) __syncthreads();  // true for every warp
  }
  x[threadIdx.x] = 1;
}
template <bool kBroken>
__global__ void early_exit(int* x) {  // threads that have left do not count
  if (threadIdx.x >= 200) return;
  __syncthreads();
  x[threadIdx.x] = 1;
  if (kBroken) asm volatile("bar.sync 2, 256;" ::: "memory");
}
template <bool kBroken>
__global__ void wrong_mask(int* x) {  // lanes below 16 only, but the mask names all
  int v = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    v += __shfl_xor_sync(kBroken ? 0xffffffffu : 0xffffu, v, 1);
    x[threadIdx.x] = v;
  } else {
    __syncwarp(0xffff0000u);
    x[threadIdx.x] = v + 1;
  }
  __syncthreads();
}
template <bool kBroken>
__global__ void not_named(int* x) {  // executes with a mask that leaves it out
  x[threadIdx.x] = __shfl_sync(kBroken ? 0x0000ffffu : 0xffffffffu, x[threadIdx.x], 3);
}
template <bool kBroken>
__global__ void undefined_lane(
    int* x) {  // a value taken from a lane that is not there is poison: as an index it is caught
  int v = threadIdx.x % 4;
  if (threadIdx.x < 8) {
    v = __shfl_down_sync(0xffu, v, 4);
    x[kBroken ? v : threadIdx.x] = (kBroken || threadIdx.x < 4) ? v : 0;
  }
}
template <bool kBroken>
__global__ void failing_assert(int* x) {
  if (kBroken && x[threadIdx.x] == 77) __trap();
  x[threadIdx.x] = 0;
}

// --- asynchronous copies and fragments
// -----------------------------------------------------------------------------------------

__device__ void copy_in(int* to, const int* from) {
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from)
      : "memory");
}
template <bool kBroken>
__global__ void async_no_wait(int* x) {  // the bytes are there once the thread has waited for its group
  __shared__ int s[kN];
  copy_in(&s[threadIdx.x], x + threadIdx.x);
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (!kBroken) asm volatile("cp.async.wait_group 0;" ::: "memory");
  x[threadIdx.x] = s[threadIdx.x];
}
template <bool kBroken>
__global__ void async_wait_short(int* x) {  // two groups are open: waiting until one is left frees the first
  __shared__ int s[2 * kN];
  for (int k = 0; k < 2; ++k) {
    copy_in(&s[k * kN + threadIdx.x], x + threadIdx.x);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  const int v = s[(kBroken ? kN : 0) + threadIdx.x];
  asm volatile("cp.async.wait_all;" ::: "memory");
  x[threadIdx.x] = v;
}
template <bool kBroken>
__global__ void async_no_barrier(int* x) {  // a wait is for the thread's own copies; others need a barrier
  __shared__ int s[kN];
  copy_in(&s[threadIdx.x], x + threadIdx.x);
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (!kBroken) __syncthreads();
  x[threadIdx.x] = s[threadIdx.x ^ 32];
}
template <bool kBroken>
__global__ void async_overwrite(int* x) {  // a store into bytes that a copy is about to fill
  __shared__ int s[kN];
  copy_in(&s[threadIdx.x], x + threadIdx.x);
  if (!kBroken) asm volatile("cp.async.wait_all;" ::: "memory");
  s[threadIdx.x] = 1;
  asm volatile("cp.async.wait_all;" ::: "memory");
  x[threadIdx.x] = s[threadIdx.x];
}
// d = a b of m16n8k8 with tf32 whole numbers; the broken one gives registers 1 and 2 of a in the wrong order.
template <bool kBroken>
__global__ void swapped_fragment(int* x) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto a = [](int row, int k) { return __float_as_uint(static_cast<float>(row * 3 + k)); };
  const auto b = [](int k, int col) { return __float_as_uint(static_cast<float>(k * 5 - col)); };
  const unsigned a0 = a(g, t), a1 = a(g + 8, t), a2 = a(g, t + 4), a3 = a(g + 8, t + 4);
  float d[4];
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%10,%10,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(kBroken ? a2 : a1), "r"(kBroken ? a1 : a2), "r"(a3), "r"(b(t, g)), "r"(b(t + 4, g)),
        "f"(0.0f));
  for (int i = 0; i < 4; ++i) x[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = static_cast<int>(d[i]);
}
int compare_fragment(const int* x) {
  std::vector<int> got(128);
  CHECK_CUDA(cudaMemcpy(got.data(), x, 512, cudaMemcpyDeviceToHost));
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      int want = 0;
      for (int k = 0; k < 8; ++k) want += (row * 3 + k) * (k * 5 - col);
      if (got[row * 8 + col] == want) continue;
      std::fprintf(stderr, "row %d, column %d: got %d, want %d\n", row, col, got[row * 8 + col], want);
      return 86;
    }
  }
  return 0;
}

bool g_broken;
template <class... P, class... A>
void launch(void (*broken)(P...), void (*sound)(P...), int grid, int block, size_t shared, A... args) {
  (g_broken ? broken : sound)<<<grid, block, shared>>>(args...);
}
#define BOTH(kernel) kernel<true>, kernel<false>

// Calls that a capture forbids.
int capture_case() {
  cudaStream_t s;
  CHECK_CUDA(cudaStreamCreate(&s));
  CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
  void* p = nullptr;
  cudaError_t e = cudaSuccess;
  if (g_broken) e = cudaMalloc(&p, 16);
  cudaGraph_t g = nullptr;
  const cudaError_t end = cudaStreamEndCapture(s, &g);
  std::printf("capture: %s, end %s\n", cudaGetErrorName(e), cudaGetErrorName(end));
  return e == cudaSuccess && end == cudaSuccess ? 0 : 86;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const char* name = argv[1];
  g_broken = !std::strcmp(argv[2], "broken");
  int* x;
  std::vector<int> host(kN);
  for (int i = 0; i < kN; ++i) host[i] = i % 8;
  CHECK_CUDA(cudaMalloc(&x, kN * sizeof(int)));
  CHECK_CUDA(cudaMemcpy(x, host.data(), kN * sizeof(int), cudaMemcpyHostToDevice));
  const auto is = [&](const char* s) { return !std::strcmp(name, s); };
  if (is("reverse_block"))
    launch(BOTH(reverse_block), 1, kN, 0, x);
  else if (is("reuse_tile"))
    launch(BOTH(reuse_tile), 1, kN, 0, x);
  else if (is("warp_exchange"))
    launch(BOTH(warp_exchange), 1, kN, 0, x);
  else if (is("byte_exchange"))
    launch(BOTH(byte_exchange), 1, kN, 0, reinterpret_cast<unsigned char*>(x));
  else if (is("histogram"))
    launch(BOTH(histogram), 1, kN, 0, x);
  else if (is("half_barrier"))
    launch(BOTH(half_barrier), 1, 64, 0, x);
  else if (is("wrong_warps"))
    launch(BOTH(wrong_warps), 1, 96, 0, x);
  else if (is("off_by_one"))
    launch(BOTH(off_by_one), 2, kN, 0, x, kN);
  else if (is("read_before"))
    launch(BOTH(read_before), 1, 32, 0, (const int*)x, x + 64);
  else if (is("misaligned"))
    launch(BOTH(misaligned), 1, 32, 0, (const int*)x, reinterpret_cast<int2*>(x + 128));
  else if (is("shared_bounds"))
    launch(BOTH(shared_bounds), 1, 64, (g_broken ? 63 : 64) * sizeof(int), x, 64);
  else if (is("local_bounds"))
    launch(BOTH(local_bounds), 1, 32, 0, x);
  else if (is("freed")) {
    int* y;
    CHECK_CUDA(cudaMalloc(&y, kN * sizeof(int)));
    CHECK_CUDA(cudaMemset(y, 0, kN * sizeof(int)));
    if (g_broken) CHECK_CUDA(cudaFree(y));
    touch<<<1, kN>>>(y);
  } else if (is("unwritten_shared"))
    launch(BOTH(unwritten_shared), 1, kN, 0, x);
  else if (is("unwritten_global")) {
    int* y;
    CHECK_CUDA(cudaMalloc(&y, kN * sizeof(int)));
    CHECK_CUDA(cudaMemset(y, 0, (kN - (g_broken ? 1 : 0)) * sizeof(int)));
    copy<<<1, kN>>>(y, x);
  } else if (is("divergent_barrier"))
    launch(BOTH(divergent_barrier), 1, kN, 0, x);
  else if (is("early_exit"))
    launch(BOTH(early_exit), 1, kN, 0, x);
  else if (is("wrong_mask"))
    launch(BOTH(wrong_mask), 1, kN, 0, x);
  else if (is("not_named"))
    launch(BOTH(not_named), 1, 32, 0, x);
  else if (is("undefined_lane"))
    launch(BOTH(undefined_lane), 1, 32, 0, x);
  else if (is("trap")) {
    const int v = 77;
    CHECK_CUDA(cudaMemcpy(x + 5, &v, sizeof v, cudaMemcpyHostToDevice));
    launch(BOTH(failing_assert), 1, 32, 0, x);
  } else if (is("async_no_wait")) {
    launch(BOTH(async_no_wait), 1, kN, 0, x);
  } else if (is("async_wait_short")) {
    launch(BOTH(async_wait_short), 1, kN, 0, x);
  } else if (is("async_no_barrier")) {
    launch(BOTH(async_no_barrier), 1, kN, 0, x);
  } else if (is("async_overwrite")) {
    launch(BOTH(async_overwrite), 1, kN, 0, x);
  } else if (is("swapped_fragment")) {
    launch(BOTH(swapped_fragment), 1, 32, 0, x);
    return compare_fragment(x);
  } else if (is("launch_threads")) {
    touch<<<1, g_broken ? 1025 : 256>>>(x);
    return cudaGetLastError() == cudaSuccess ? 0 : 86;
  } else if (is("launch_shared")) {
    touch<<<1, 256, g_broken ? 49153 : 49152>>>(x);
    return cudaGetLastError() == cudaSuccess ? 0 : 86;
  } else if (is("copy_past_end")) {
    return cudaMemcpy(x, host.data(), kN * sizeof(int) + (g_broken ? 4 : 0), cudaMemcpyHostToDevice) ==
                   cudaSuccess
               ? 0
               : 86;
  } else if (is("double_free")) {
    CHECK_CUDA(cudaFree(x));
    return (g_broken ? cudaFree(x) : cudaFree(nullptr)) == cudaSuccess ? 0 : 86;
  } else if (is("host_threads")) {  // how many have run the blocks of a launch (options.py)
    copy<<<8, kN>>>(x, x);
    CHECK_CUDA(cudaDeviceSynchronize());
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    std::printf("%d host threads\n", static_cast<int>(std::distance(begin(tasks), end(tasks))));
    return 0;
  } else if (is("capture")) {
    return capture_case();
  } else {
    std::printf("no case %s\n", name);
    return 2;
  }
  const cudaError_t e = cudaDeviceSynchronize();
  std::printf("%s: %s\n", name, cudaGetErrorName(e));
  return e == cudaSuccess ? 0 : 1;
}
