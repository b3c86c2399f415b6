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
  CHECK_CUDA(cudaMalloc(&x, 2 * kN * sizeof(int)));
  CHECK_CUDA(cudaMemset(x, 0, 2 * kN * sizeof(int)));
  const struct {
    const char* name;
    void (*run)(int*);
  } cases[] = {CASE(bulk_no_wait, 1),
               CASE(wrong_parity, 1),
               CASE(wrong_bytes, 1),
               CASE(no_init, 1),
               CASE(reuse_stage, 1),
               CASE(store_overwritten, 1),
               CASE(store_no_barrier, 1),
               CASE(bulk_size, 1),
               CASE(too_many_arrivals, 1),
               CASE(cluster_no_barrier, 2),
               CASE(cluster_exited, 2),
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
