// Programs of compute_90a that a check must stop, each beside a sound twin: hopper_checks CASE broken|sound.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "tests/softgpu/hopper.h"

namespace cg = cooperative_groups;
constexpr int kN = 256;

__device__ void bulk_load(void* to, const void* from, int bytes, uint64_t* b) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(b))
      : "memory");
}
__device__ void prepare(uint64_t* b, int count) {
  if (threadIdx.x == 0) {
    barrier_init(b, count);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
}

template <bool kBroken>
__global__ void bulk_no_wait(int* x) {  // the bytes are there once the barrier's phase has completed
  __shared__ alignas(16) int s[kN];
  __shared__ uint64_t bar;
  prepare(&bar, 1);
  if (threadIdx.x == 0) {
    barrier_expect(&bar, kN * 4);
    bulk_load(s, x, kN * 4, &bar);
  }
  if (!kBroken) barrier_wait(&bar, 0);
  const int v = s[threadIdx.x];
  barrier_wait(&bar, 0);
  x[threadIdx.x] = v;
}
template <bool kBroken>
__global__ void wrong_parity(int* x) {  // waiting for the phase before the current one returns at once
  __shared__ alignas(16) int s[kN];
  __shared__ uint64_t bar;
  prepare(&bar, 1);
  if (threadIdx.x == 0) {
    barrier_expect(&bar, kN * 4);
    bulk_load(s, x, kN * 4, &bar);
  }
  barrier_wait(&bar, kBroken ? 1 : 0);
  x[threadIdx.x] = s[threadIdx.x];
}
template <bool kBroken>
__global__ void wrong_bytes(int* x) {  // more bytes expected than ever come
  __shared__ alignas(16) int s[kN];
  __shared__ uint64_t bar;
  prepare(&bar, 1);
  if (threadIdx.x == 0) {
    barrier_expect(&bar, kN * 4 + (kBroken ? 16 : 0));
    bulk_load(s, x, kN * 4, &bar);
  }
  barrier_wait(&bar, 0);
  x[threadIdx.x] = s[threadIdx.x];
}
template <bool kBroken>
__global__ void no_init(int* x) {
  __shared__ alignas(16) int s[kN];
  __shared__ uint64_t bar;
  if (!kBroken) prepare(&bar, 1);
  if (threadIdx.x == 0) {
    barrier_expect(&bar, kN * 4);
    bulk_load(s, x, kN * 4, &bar);
  }
  barrier_wait(&bar, 0);
  x[threadIdx.x] = s[threadIdx.x];
}
template <bool kBroken>
__global__ void init_no_fence(int* x) {  // copies see an mbarrier that was set up only after a fence
  __shared__ alignas(16) int s[kN];
  __shared__ uint64_t bar[2];
  if (threadIdx.x == 0) {
    barrier_init(&bar[0], 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    barrier_init(&bar[1], 1);
    if (!kBroken) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  for (int i = 0; i < 2; ++i) {
    if (threadIdx.x == 0) {
      barrier_expect(&bar[i], kN * 2);
      bulk_load(s + i * kN / 2, x, kN * 2, &bar[i]);
    }
    barrier_wait(&bar[i], 0);
  }
  x[threadIdx.x] = s[threadIdx.x];
}
template <bool kBroken>
__global__ void reuse_stage(int* x) {  // the buffer is filled again only when everybody has read it
  __shared__ alignas(16) int s[kN];
  __shared__ uint64_t bar;
  prepare(&bar, 1);
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) {
      barrier_expect(&bar, kN * 4);
      bulk_load(s, x, kN * 4, &bar);
    }
    barrier_wait(&bar, round & 1);
    sum += s[threadIdx.x];
    if (!kBroken) __syncthreads();
  }
  x[kN + threadIdx.x] = sum;
}
template <bool kBroken>
__global__ void store_overwritten(int* x) {  // a bulk copy still reads what is written
  __shared__ alignas(16) int s[kN];
  s[threadIdx.x] = 1;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(x),
                 "r"(shared_address(s)), "r"(kN * 4)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    if (!kBroken) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
  __syncthreads();
  s[threadIdx.x] = 2;
}
template <bool kBroken>
__global__ void store_no_barrier(int* x) {  // the copy reads what other threads have written
  __shared__ alignas(16) int s[kN];
  s[threadIdx.x] = 1;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  if (!kBroken) __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(x),
                 "r"(shared_address(s)), "r"(kN * 4)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
}
template <bool kBroken>
__global__ void bulk_size(int* x) {  // sizes are multiples of 16
  __shared__ alignas(16) int s[kN];
  __shared__ uint64_t bar;
  prepare(&bar, 1);
  constexpr int bytes = kBroken ? 24 : 32;
  if (threadIdx.x == 0) {
    barrier_expect(&bar, bytes);
    bulk_load(s, x, bytes, &bar);
  }
  barrier_wait(&bar, 0);
  if (threadIdx.x < 6) x[threadIdx.x] = s[threadIdx.x];
}
template <bool kBroken>
__global__ void too_many_arrivals(int* x) {  // more arrivals at once than the phase awaits
  __shared__ uint64_t bar;
  prepare(&bar, 2);
  if (threadIdx.x == 0)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bar)),
                 "r"(kBroken ? 3 : 2)
                 : "memory");
  barrier_wait(&bar, 0);
  x[threadIdx.x] = 1;
}
template <bool kBroken>
__global__ void __cluster_dims__(2)
    cluster_no_barrier(int* x) {  // another block's memory needs the cluster's barrier
  __shared__ int s[kN];
  cg::cluster_group cluster = cg::this_cluster();
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (!kBroken) cluster.sync();
  const int v = cluster.map_shared_rank(s, cluster.block_rank() ^ 1)[threadIdx.x];
  cluster.sync();
  x[blockIdx.x * kN + threadIdx.x] = v;
}
template <bool kBroken>
__global__ void __cluster_dims__(2) cluster_exited(int* x) {  // a block stays while others read its memory
  __shared__ int s[kN];
  cg::cluster_group cluster = cg::this_cluster();
  s[threadIdx.x] = x[threadIdx.x];
  cluster.sync();
  if (kBroken && cluster.block_rank() == 1) return;
  if (kBroken) asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  if (cluster.block_rank() == 0) x[kN + threadIdx.x] = cluster.map_shared_rank(s, 1)[threadIdx.x];
  if (!kBroken) cluster.sync();
}
template <bool kBroken>
__global__ void tensor_rank(const __grid_constant__ CUtensorMap map,
                            int* x) {  // the map's rank is the instruction's
  __shared__ alignas(128) float s[64];
  __shared__ uint64_t bar;
  prepare(&bar, 1);
  if (threadIdx.x == 0) {
    barrier_expect(&bar, 256);
    if (kBroken) {
      asm volatile(
          "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2}], "
          "[%3];" ::"r"(shared_address(s)),
          "l"(&map), "r"(0), "r"(shared_address(&bar))
          : "memory");
    } else {
      tensor_load2(s, &map, 0, 0, &bar);
    }
  }
  barrier_wait(&bar, 0);
  if (threadIdx.x < 64) x[threadIdx.x] = static_cast<int>(s[threadIdx.x]);
}

// --- wgmma: m64n8k16 of bf16, matrices without swizzle ("core matrices" of 8 rows of 16 bytes, one after the
// other)

using Bits = unsigned short;
struct Operands {
  alignas(128) Bits a[64 * 16], b[8 * 16];
};
__device__ void fill(Operands& o, const int* x) {
  for (int i = threadIdx.x; i < 64 * 16; i += blockDim.x)
    o.a[i] = static_cast<Bits>(0x3f80 + x[i % kN] % 4 * 16);
  for (int i = threadIdx.x; i < 8 * 16; i += blockDim.x)
    o.b[i] = static_cast<Bits>(0x3f80 + x[i % kN] % 4 * 16);
}
__device__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ void ready(Operands& o, const int* x) {
  fill(o, x);
  proxy_fence();
  __syncthreads();
}
__device__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
__device__ void pin(float (&d)[4]) {
  asm volatile("" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])::"memory");
}
__device__ void wgmma(float (&d)[4], const Operands& o) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, 1, 1, 1, 0, 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "l"(descriptor(shared_address(o.a), 128, 256, 0)),
                 "l"(descriptor(shared_address(o.b), 128, 256, 0)));
}
__device__ void wgmma_register(float (&d)[4], const unsigned (&a)[4], const Operands& o) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor(shared_address(o.b), 128, 256, 0)));
}
__device__ void put(int* x, const float (&d)[4]) {
  if (threadIdx.x < 128) x[threadIdx.x] = static_cast<int>(d[0] + d[1] + d[2] + d[3]);
}

template <bool kBroken>
__global__ void wgmma_no_wait(int* x) {  // the result is there after the wait
  __shared__ Operands o;
  float d[4] = {};
  ready(o, x);
  wgmma_fence();
  wgmma(d, o);
  wgmma_commit();
  if (!kBroken) wgmma_wait<0>();
  put(x, d);
  wgmma_wait<0>();
}
template <bool kBroken>
__global__ void wgmma_no_commit(int* x) {  // a wait is for groups that were committed
  __shared__ Operands o;
  float d[4] = {};
  ready(o, x);
  wgmma_fence();
  wgmma(d, o);
  if (!kBroken) wgmma_commit();
  wgmma_wait<0>();
  put(x, d);
}
template <bool kBroken>
__global__ void wgmma_wait_short(int* x) {  // of two groups, the first is done
  __shared__ Operands o;
  float d[4] = {}, e[4] = {};
  ready(o, x);
  wgmma_fence();
  wgmma(d, o);
  wgmma_commit();
  wgmma(e, o);
  wgmma_commit();
  wgmma_wait<1>();
  put(x, kBroken ? e : d);
  wgmma_wait<0>();
  pin(d), pin(e);
  put(x, e);
}
template <bool kBroken>
__global__ void wgmma_first_fence(int* x) {  // a fence comes before the first
  __shared__ Operands o;
  float d[4] = {};
  ready(o, x);
  if (!kBroken) wgmma_fence();
  wgmma(d, o);
  wgmma_commit();
  wgmma_wait<0>();
  put(x, d);
}
template <bool kBroken>
__global__ void wgmma_no_fence(int* x) {  // and after every other access to the registers
  __shared__ Operands o;
  float d[4] = {};
  ready(o, x);
  for (int round = 0; round < 3; ++round) {
    if (round == 0 || !kBroken) wgmma_fence();
    wgmma(d, o);
    wgmma_commit();
    wgmma_wait<0>();
    for (float& v : d) v *= 0.5f;
    pin(d);
  }
  put(x, d);
}
template <bool kBroken>
__global__ void wgmma_registers(int* x) {  // registers of a stay as they are until the wait
  __shared__ Operands o;
  float d[4] = {};
  ready(o, x);
  unsigned a[4];
  for (int i = 0; i < 4; ++i) a[i] = x[threadIdx.x] * 0x10001u + 0x3f803f80u;
  for (int round = 0; round < 2; ++round) {
    asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
    wgmma_fence();
    wgmma_register(d, a, o);
    wgmma_commit();
    if (!kBroken) wgmma_wait<0>();
    // Into the same registers, which a plain addition would not promise.
    for (unsigned& v : a) asm volatile("add.u32 %0, %0, 16;" : "+r"(v));
    wgmma_wait<0>();
  }
  put(x, d);
}
template <bool kBroken>
__global__ void wgmma_overwrite(
    int* x) {  // shared memory, too, although every thread is past the instruction
  __shared__ Operands o;
  float d[4] = {};
  ready(o, x);
  wgmma_fence();
  wgmma(d, o);
  wgmma_commit();
  if (!kBroken) wgmma_wait<0>();
  __syncthreads();
  if (threadIdx.x < 8 * 16) o.b[threadIdx.x] = 0x4000;
  wgmma_wait<0>();
  put(x, d);
}
template <bool kBroken>
__global__ void wgmma_refill(int* x) {  // a producer fills the buffer again when it is told that it is free
  __shared__ Operands o;
  __shared__ uint64_t full, empty;
  prepare(&full, 1);
  if (threadIdx.x == 0) barrier_init(&empty, 128);
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (warp == 4 && threadIdx.x % 32 == 0) {
    for (int round = 0; round < 4; ++round) {
      if (round) barrier_wait(&empty, (round - 1) & 1);
      barrier_expect(&full, 2048 + 256);
      bulk_load(o.a, x, 2048, &full);
      bulk_load(o.b, x, 256, &full);
    }
  } else if (warp < 4) {
    float d[4] = {};
    for (int round = 0; round < 4; ++round) {
      barrier_wait(&full, round & 1);
      wgmma_fence();
      wgmma(d, o);
      wgmma_commit();
      if (!kBroken) wgmma_wait<0>();
      barrier_arrive(&empty);
      wgmma_wait<0>();
    }
    pin(d);
    put(x + kN, d);
  }
}
template <bool kBroken>
__global__ void wgmma_no_proxy(int* x) {  // what threads wrote passes to the async proxy by a fence
  __shared__ Operands o;
  float d[4] = {};
  fill(o, x);
  if (!kBroken) proxy_fence();
  __syncthreads();
  wgmma_fence();
  wgmma(d, o);
  wgmma_commit();
  wgmma_wait<0>();
  put(x, d);
}
template <bool kBroken>
__global__ void wgmma_proxy_of_one(int* x) {  // one thread's fence before the barrier covers what it knows of
  __shared__ Operands o;
  float d[4] = {};
  fill(o, x);
  if (kBroken && threadIdx.x == 0) proxy_fence();
  __syncthreads();
  if (!kBroken) proxy_fence();  // after the barrier: every reader's own, for all that was written before
  wgmma_fence();
  wgmma(d, o);
  wgmma_commit();
  wgmma_wait<0>();
  put(x, d);
}
template <bool kBroken>
__global__ void store_no_proxy(int* x) {  // and so it is before a bulk copy reads it, in every round
  __shared__ alignas(16) int s[kN];
  for (int round = 0; round < 3; ++round) {
    s[threadIdx.x] = round;
    if (!kBroken || round < 2) proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(x),
                   "r"(shared_address(s)), "r"(kN * 4)
                   : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    }
    __syncthreads();
  }
}

bool g_broken;
void launch(void (*broken)(int*), void (*sound)(int*), int grid, int* x) {
  (g_broken ? broken : sound)<<<grid, kN>>>(x);
}
#define CASE(kernel, grid)                                                \
  {                                                                       \
#kernel, [](int* x) { launch(kernel<true>, kernel<false>, grid, x); } \
  }

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  g_broken = !std::strcmp(argv[2], "broken");
  int* x;
  CHECK_CUDA(cudaMalloc(&x, 4 * kN * sizeof(int)));
  CHECK_CUDA(cudaMemset(x, 0, 4 * kN * sizeof(int)));
  const struct {
    const char* name;
    void (*run)(int*);
  } cases[] = {CASE(bulk_no_wait, 1),
               CASE(wrong_parity, 1),
               CASE(wrong_bytes, 1),
               CASE(no_init, 1),
               CASE(init_no_fence, 1),
               CASE(reuse_stage, 1),
               CASE(store_overwritten, 1),
               CASE(store_no_barrier, 1),
               CASE(bulk_size, 1),
               CASE(too_many_arrivals, 1),
               CASE(cluster_no_barrier, 2),
               CASE(cluster_exited, 2),
               CASE(wgmma_no_wait, 1),
               CASE(wgmma_no_commit, 1),
               CASE(wgmma_wait_short, 1),
               CASE(wgmma_first_fence, 1),
               CASE(wgmma_no_fence, 1),
               CASE(wgmma_registers, 1),
               CASE(wgmma_overwrite, 1),
               CASE(wgmma_refill, 1),
               CASE(wgmma_no_proxy, 1),
               CASE(wgmma_proxy_of_one, 1),
               CASE(store_no_proxy, 1),
               {"tensor_rank", [](int* p) {
                  const CUtensorMap map =
                      map2(p, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, 16, 16, 8, 8, CU_TENSOR_MAP_SWIZZLE_NONE);
                  if (g_broken) {
                    tensor_rank<true><<<1, kN>>>(map, p);
                  } else {
                    tensor_rank<false><<<1, kN>>>(map, p);
                  }
                }}};
  for (const auto& c : cases) {
    if (std::strcmp(c.name, argv[1])) continue;
    c.run(x);
    const cudaError_t e = cudaDeviceSynchronize();
    std::printf("%s: %s\n", c.name, cudaGetErrorName(e));
    return e == cudaSuccess ? 0 : 1;
  }
  std::printf("no case %s\n", argv[1]);
  return 2;
}
