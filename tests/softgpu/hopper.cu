// compute_90a: bulk and tensor copies, mbarriers, wgmma, clusters; a GEMM of TMA, mbarriers and wgmma, and a
// reduction over a cluster. Compared with a CPU computation.
#include <cooperative_groups.h>
#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <functional>

#include "tests/softgpu/hopper.h"
#include "tests/softgpu/programs.h"

namespace {

using bf16_bits = uint16_t;
namespace cg = cooperative_groups;

// --- GEMM: c (m x n, f32) = a b. A warp fetches, a warpgroup multiplies; k in steps of 64, two stages. a is
// [m][k] or (kTransA) [k][m], b is [k][n] (kTransB) or [n][k]: all four go through the 128-byte swizzle.
constexpr int kTileM = 64, kTileN = 128, kTileK = 64, kStages = 2;
constexpr int kBytesA = kTileM * kTileK * 2, kBytesB = kTileN * kTileK * 2;

template <bool kTransA, bool kTransB>
__device__ void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, bool keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, %67, %68;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),
        "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
        "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
        "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),
        "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]),
        "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]),
        "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "l"(a), "l"(b), "r"(static_cast<int>(keep)), "n"(kTransA ? 1 : 0), "n"(kTransB ? 1 : 0));
}

// kDeferred: the products of a step run on while the next step's are issued.
template <bool kTransA, bool kTransB, bool kDeferred>
__global__ void __launch_bounds__(160)
    gemm(const __grid_constant__ CUtensorMap ma, const __grid_constant__ CUtensorMap mb, float* c, int m,
         int n, int k) {
  extern __shared__ __align__(1024) char smem[];
  __shared__ uint64_t full[kStages], empty[kStages];
  char* sa = smem;
  char* sb = smem + kStages * kBytesA;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int m0 = blockIdx.y * kTileM, n0 = blockIdx.x * kTileN, steps = (k + kTileK - 1) / kTileK;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (warp == 4) {
    if (lane == 0) {
      for (int step = 0; step < steps; ++step) {
        const int s = step % kStages, k0 = step * kTileK;
        if (step >= kStages) barrier_wait(&empty[s], (step / kStages - 1) & 1);
        barrier_expect(&full[s], kBytesA + kBytesB);
        tensor_load2(sa + s * kBytesA, &ma, kTransA ? m0 : k0, kTransA ? k0 : m0, &full[s]);
        for (int half = 0; half < 2; ++half)
          tensor_load2(sb + s * kBytesB + half * kBytesB / 2, &mb, kTransB ? n0 + half * 64 : k0,
                       kTransB ? k0 : n0 + half * 64, &full[s]);
      }
    }
    return;
  }
  float acc[64];
  for (float& x : acc) x = 0;
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages;
    barrier_wait(&full[s], (step / kStages) & 1);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int kk = 0; kk < kTileK / 16; ++kk) {
      const uint32_t a = shared_address(sa + s * kBytesA) + kk * (kTransA ? 2048 : 32);
      const uint32_t b = shared_address(sb + s * kBytesB) + kk * (kTransB ? 2048 : 32);
      wgmma_m64n128k16<kTransA, kTransB>(acc, descriptor(a, 16, 1024, 1), descriptor(b, kBytesB / 2, 1024, 1),
                                         step + kk > 0);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (!kDeferred) {
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      if (lane == 0) barrier_arrive(&empty[s]);
    } else {
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (lane == 0 && step > 0) barrier_arrive(&empty[(step - 1) % kStages]);
    }
  }
  if (kDeferred) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (float& x : acc) asm volatile("" : "+f"(x)::"memory");
  }
  for (int i = 0; i < 64; ++i) {
    const int row = m0 + warp * 16 + lane / 4 + i % 4 / 2 * 8, col = n0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row < m && col < n) c[static_cast<size_t>(row) * n + col] = acc[i];
  }
}

template <bool kTransA, bool kTransB, bool kDeferred = false>
bool run_gemm() {
  constexpr int sizes[][3] = {{64, 128, 64}, {104, 200, 328}};
  bool good = true;
  for (const auto& [m, n, k] : sizes) {
    const auto a = random_bf16(static_cast<size_t>(m) * k), b = random_bf16(static_cast<size_t>(k) * n);
    std::vector<bf16_bits> at(a.size());
    const int rows = m, cols = n, depth = k;
    for (int i = 0; i < rows; ++i)
      for (int x = 0; x < depth; ++x)
        at[static_cast<size_t>(x) * rows + i] = a[static_cast<size_t>(i) * depth + x];
    bf16_bits *pa = upload(kTransA ? at : a), *pb = upload(b);
    float* pc = room<float>(static_cast<size_t>(m) * n);
    const CUtensorMap ma = map2(pa, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, kTransA ? m : k, kTransA ? k : m, 64,
                                64, CU_TENSOR_MAP_SWIZZLE_128B);
    const CUtensorMap mb = map2(pb, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, kTransB ? n : k, kTransB ? k : n, 64,
                                64, CU_TENSOR_MAP_SWIZZLE_128B);
    constexpr int shared = kStages * (kBytesA + kBytesB);
    CHECK_CUDA(cudaFuncSetAttribute(gemm<kTransA, kTransB, kDeferred>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    gemm<kTransA, kTransB, kDeferred>
        <<<dim3((n + kTileN - 1) / kTileN, (m + kTileM - 1) / kTileM), 160, shared>>>(ma, mb, pc, m, n, k);
    CHECK_CUDA(cudaGetLastError());
    const auto want = cpu_gemm(a, m, n, k, [&](int x, int j) {
      return bf16_float(b[kTransB ? static_cast<size_t>(x) * cols + j : static_cast<size_t>(j) * depth + x]);
    });
    good &= within("gemm", download(pc, want.size()), want, 1e-4);
    CHECK_CUDA(cudaFree(pa));
    CHECK_CUDA(cudaFree(pb));
    CHECK_CUDA(cudaFree(pc));
  }
  return good;
}

// --- A sum over a cluster of four blocks through their shared memory.
__global__ void __cluster_dims__(4) cluster_sum(const float* x, float* y, int n) {
  __shared__ float partial[4], total;
  cg::cluster_group cluster = cg::this_cluster();
  const int rank = cluster.block_rank(), first = blockIdx.x / 4 * n;
  float sum = 0;
  for (int i = rank * blockDim.x + threadIdx.x; i < n; i += 4 * blockDim.x) sum += x[first + i];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) total = partial[0] + partial[1] + partial[2] + partial[3];
  cluster.sync();
  if (threadIdx.x == 0) {
    float all = 0;
    for (int r = 0; r < 4; ++r) all += *cluster.map_shared_rank(&total, r);
    y[blockIdx.x] = all;
  }
  cluster.sync();
}
bool run_cluster_sum() {
  const int n = 1000, clusters = 3;
  std::vector<float> x(n * clusters), want(clusters * 4);
  for (int i = 0; i < n * clusters; ++i) {
    x[i] = static_cast<float>(static_cast<int>(next_random() % 201) - 100);
    for (int r = 0; r < 4; ++r) want[i / n * 4 + r] += x[i];
  }
  float *px = upload(x), *py = room<float>(want.size());
  cluster_sum<<<clusters * 4, 128>>>(px, py, n);
  CHECK_CUDA(cudaGetLastError());
  return within("cluster_sum", download(py, want.size()), want, 0);
}
// Remote atomics and remote mbarrier arrivals: every block adds to, and arrives at, its right neighbour.
__global__ void __cluster_dims__(4) cluster_ring(int* y) {
  __shared__ int sum;
  __shared__ uint64_t bar;
  cg::cluster_group cluster = cg::this_cluster();
  const unsigned next = (cluster.block_rank() + 1) % 4;
  if (threadIdx.x == 0) {
    sum = 0;
    barrier_init(&bar, blockDim.x);
  }
  cluster.sync();
  uint32_t remote_sum, remote_bar;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_sum) : "r"(shared_address(&sum)), "r"(next));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_bar) : "r"(shared_address(&bar)), "r"(next));
  asm volatile("red.relaxed.cluster.shared::cluster.add.u32 [%0], %1;" ::"r"(remote_sum),
               "r"(threadIdx.x + cluster.block_rank() * 1000)
               : "memory");
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote_bar) : "memory");
  barrier_wait(&bar, 0);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
  cluster.sync();
}
bool run_cluster_ring() {
  std::vector<int> want(8);
  for (int b = 0; b < 8; ++b) want[b] = 64 * 63 / 2 + 64 * 1000 * ((b + 3) % 4);
  int* y = room<int>(8);
  cluster_ring<<<8, 64>>>(y);
  CHECK_CUDA(cudaGetLastError());
  return within("cluster_ring", download(y, 8), want, 0);
}

// --- Bulk copies in and out, and from block to block.
__global__ void __cluster_dims__(2) bulk_round(const int* x, int* y, int n) {
  extern __shared__ __align__(128) int s[];  // two halves of n: own, from the other block
  __shared__ uint64_t bar[2];
  cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank();
  if (threadIdx.x == 0) {
    barrier_init(&bar[0], 1), barrier_init(&bar[1], 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    barrier_expect(&bar[1], n * 4);
  }
  cluster.sync();
  if (threadIdx.x == 0) {
    barrier_expect(&bar[0], n * 4);
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(s)),
        "l"(x + rank * n), "r"(n * 4), "r"(shared_address(&bar[0]))
        : "memory");
  }
  barrier_wait(&bar[0], 0);
  s[threadIdx.x] += 1;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t to, at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(s + n)), "r"(rank ^ 1));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(&bar[1])), "r"(rank ^ 1));
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            to),
        "r"(shared_address(s)), "r"(n * 4), "r"(at)
        : "memory");
  }
  barrier_wait(&bar[1], 0);
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(y + rank * n),
                 "r"(shared_address(s + n)), "r"(n * 4)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
  cluster.sync();
}
bool run_bulk() {
  const int n = 128;
  std::vector<int> x(2 * n), want(2 * n);
  for (int& v : x) v = static_cast<int>(next_random());
  for (int i = 0; i < 2 * n; ++i)
    want[i] = static_cast<int>(static_cast<unsigned>(x[(i + n) % (2 * n)]) + 1u);
  int *px = upload(x), *py = room<int>(2 * n);
  bulk_round<<<2, n, 2 * n * 4>>>(px, py, n);
  CHECK_CUDA(cudaGetLastError());
  return within("bulk", download(py, 2 * n), want, 0);
}

// --- Tensor copies: a box of a 3-d tensor, parts of it outside, in every swizzle; stored again elsewhere.
// Block 0 of each cluster of two fetches for both.
constexpr int kBox0 = 8, kBox1 = 12, kBox2 = 3, kBoxes = kBox0 * kBox1 * kBox2;
__global__ void __cluster_dims__(2)
    tensor_round(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, int c0,
                 int c1, int c2, float* image) {
  extern __shared__ __align__(1024) float box[];
  __shared__ uint64_t bar;
  cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) {
    barrier_init(&bar, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    barrier_expect(&bar, kBoxes * 4);
  }
  cluster.sync();
  if (cluster.block_rank() == 0 && threadIdx.x == 0)
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, "
        "{%2,%3,%4}], [%5], %6;" ::"r"(shared_address(box)),
        "l"(&from), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(&bar)), "h"((short)3)
        : "memory");
  barrier_wait(&bar, 0);
  for (int i = threadIdx.x; i < kBoxes; i += blockDim.x) image[cluster.block_rank() * kBoxes + i] = box[i];
  if (cluster.block_rank() == 1 && threadIdx.x == 0) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1,%2,%3}], [%4];" ::"l"(&to),
                 "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(box))
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
  cluster.sync();
}
bool run_tensor() {
  bool good = true;
  const int d0 = 20, d1 = 17, d2 = 5, count = d0 * d1 * d2;
  std::vector<float> x(count);
  for (float& v : x) v = next_float();
  float *px = upload(x), *py = room<float>(count), *image = room<float>(2 * kBoxes);
  constexpr int places[][3] = {{4, 2, 1}, {-3, -5, -1}, {16, 10, 3}};
  for (int mode = 0; mode <= 3; ++mode) {
    // A row of the box is 32 bytes, so that every swizzle may be used.
    const auto swizzle = static_cast<CUtensorMapSwizzle>(mode);
    const CUtensorMap from = map3(px, d0, d1, d2, kBox0, kBox1, kBox2, swizzle),
                      to = map3(py, d0, d1, d2, kBox0, kBox1, kBox2, swizzle);
    for (const auto& [c0, c1, c2] : places) {
      CHECK_CUDA(cudaMemset(py, 0, count * 4));
      tensor_round<<<2, 64, kBoxes * 4>>>(from, to, c0, c1, c2, image);
      CHECK_CUDA(cudaGetLastError());
      // 16-byte units of the 128-byte rows of shared memory are exchanged by the number of the row: all three
      // bits of it, two, or one (CUDA Driver API, "CUtensorMapSwizzle"; CUDA programming guide, "swizzle").
      std::vector<float> want(2 * kBoxes), stored(count);
      for (int i = 0; i < kBoxes; ++i) {
        const int y0 = c0 + i % kBox0, y1 = c1 + i / kBox0 % kBox1, y2 = c2 + i / (kBox0 * kBox1);
        const bool in = y0 >= 0 && y0 < d0 && y1 >= 0 && y1 < d1 && y2 >= 0 && y2 < d2;
        const int unit = i / 4 % 8, row = i / 32;
        const int moved = mode == 0   ? unit
                          : mode == 1 ? unit ^ (row & 1)
                          : mode == 2 ? unit ^ (row & 3)
                                      : unit ^ (row & 7);
        const int place = row * 32 + moved * 4 + i % 4;
        const float v = in ? x[(static_cast<size_t>(y2) * d1 + y1) * d0 + y0] : 0.0f;
        want[place] = want[kBoxes + place] = v;
        if (in) stored[(static_cast<size_t>(y2) * d1 + y1) * d0 + y0] = v;
      }
      good &= within("tensor_load", download(image, 2 * kBoxes), want, 0);
      good &= within("tensor_store", download(py, count), stored, 0);
    }
  }
  return good;
}

// --- wgmma of every type on small whole numbers, matrices without swizzle: "core matrices" of 8 rows of 16
// bytes, neighbours in k 128 bytes apart (leading offset), in m or n 256 (stride offset).
__host__ __device__ constexpr int core_place(int row, int byte) {
  return row / 8 * 256 + byte / 16 * 128 + row % 8 * 16 + byte % 16;
}
#define WGMMA_KERNEL(NAME, TEXT, TAIL, REG, CONSTRAINT)                                                    \
  __global__ void NAME(const char* a, const char* b, REG* d) {                                             \
    __shared__ alignas(128) char sa[64 * 32], sb[16 * 32];                                                 \
    for (int i = threadIdx.x; i < 64 * 32; i += 128) sa[core_place(i / 32, i % 32)] = a[i];                \
    for (int i = threadIdx.x; i < 16 * 32; i += 128) sb[core_place(i / 32, i % 32)] = b[i];                \
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");                                           \
    __syncthreads();                                                                                       \
    REG r[8] = {3, 3, 3, 3, 3, 3, 3, 3};                                                                   \
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");                                                \
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned." TEXT                  \
                 " {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, p" TAIL ";}"                                         \
                 : "+" CONSTRAINT(r[0]), "+" CONSTRAINT(r[1]), "+" CONSTRAINT(r[2]), "+" CONSTRAINT(r[3]), \
                   "+" CONSTRAINT(r[4]), "+" CONSTRAINT(r[5]), "+" CONSTRAINT(r[6]), "+" CONSTRAINT(r[7])  \
                 : "l"(descriptor(shared_address(sa), 128, 256, 0)),                                       \
                   "l"(descriptor(shared_address(sb), 128, 256, 0)));                                      \
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");                                         \
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");                                         \
    for (int i = 0; i < 8; ++i) {                                                                          \
      const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i % 4 / 2 * 8;                        \
      d[row * 16 + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = r[i];                                        \
    }                                                                                                      \
  }
WGMMA_KERNEL(wgmma_f16, "m64n16k16.f32.f16.f16", ", 1, 1, 0, 0", float, "f")
WGMMA_KERNEL(wgmma_negated, "m64n16k16.f32.f16.f16", ", -1, 1, 0, 0", float, "f")
WGMMA_KERNEL(wgmma_tf32, "m64n16k8.f32.tf32.tf32", ", 1, 1", float, "f")
WGMMA_KERNEL(wgmma_e4m3, "m64n16k32.f32.e4m3.e4m3", ", 1, 1", float, "f")
WGMMA_KERNEL(wgmma_e5m2, "m64n16k32.f32.e5m2.e5m2", ", 1, 1", float, "f")
WGMMA_KERNEL(wgmma_s8, "m64n16k32.s32.s8.s8", "", int, "r")
WGMMA_KERNEL(wgmma_u8, "m64n16k32.s32.u8.u8", "", int, "r")

// The bits of a whole number of at most 3 in the types above.
uint32_t f16_of(int v) {
  return (v < 0 ? 0x8000u : 0u) | (v == 0             ? 0u
                                   : std::abs(v) == 1 ? 0x3c00u
                                   : std::abs(v) == 2 ? 0x4000u
                                                      : 0x4200u);
}
uint32_t tf32_of(int v) {
  const float f = static_cast<float>(v);
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
uint32_t e4m3_of(int v) {
  return (v < 0 ? 0x80u : 0u) | (v == 0 ? 0u : std::abs(v) == 1 ? 0x38u : std::abs(v) == 2 ? 0x40u : 0x44u);
}
uint32_t e5m2_of(int v) {
  return (v < 0 ? 0x80u : 0u) | (v == 0 ? 0u : std::abs(v) == 1 ? 0x3cu : std::abs(v) == 2 ? 0x40u : 0x42u);
}
uint32_t byte_of(int v) { return static_cast<uint8_t>(v); }

template <class T>
bool run_wgmma(const char* name, void (*kernel)(const char*, const char*, T*), int bytes,
               uint32_t (*bits)(int), int lo, int sign) {
  const int k = 32 / bytes;
  std::vector<int> a(64 * k), b(16 * k);
  std::vector<char> ab(64 * 32), bb(16 * 32);
  const auto fill = [&](std::vector<int>* v, std::vector<char>* out) {
    for (size_t i = 0; i < v->size(); ++i) {
      (*v)[i] = static_cast<int>(next_random() % static_cast<unsigned>(4 - lo)) + lo;
      const uint32_t u = bits((*v)[i]);
      std::memcpy(out->data() + i * bytes, &u, bytes);
    }
  };
  fill(&a, &ab), fill(&b, &bb);
  std::vector<double> want(64 * 16);
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j < 16; ++j) {
      double s = 3;
      for (int x = 0; x < k; ++x) s += sign * a[i * k + x] * b[j * k + x];
      want[i * 16 + j] = s;
    }
  char *pa = upload(ab), *pb = upload(bb);
  T* pd = room<T>(64 * 16);
  kernel<<<1, 128>>>(pa, pb, pd);
  CHECK_CUDA(cudaGetLastError());
  return within(name, download(pd, want.size()), want, 0);
}
bool run_wgmma_types() {
  bool good = run_wgmma("wgmma_f16", wgmma_f16, 2, f16_of, -3, 1);
  good &= run_wgmma("wgmma_negated", wgmma_negated, 2, f16_of, -3, -1);
  good &= run_wgmma("wgmma_tf32", wgmma_tf32, 4, tf32_of, -3, 1);
  good &= run_wgmma("wgmma_e4m3", wgmma_e4m3, 1, e4m3_of, -3, 1);
  good &= run_wgmma("wgmma_e5m2", wgmma_e5m2, 1, e5m2_of, -3, 1);
  good &= run_wgmma("wgmma_s8", wgmma_s8, 1, byte_of, -3, 1);
  good &= run_wgmma("wgmma_u8", wgmma_u8, 1, byte_of, 0, 1);
  return good;
}

// a from registers: the fragment of m16n8k16's a, each warp its 16 rows. kHalf: f16 in and out, else bf16 and
// f32.
template <bool kHalf>
__global__ void wgmma_register(const uint16_t* a, const uint16_t* b, float* d) {
  __shared__ alignas(128) char sb[16 * 32];
  for (int i = threadIdx.x; i < 16 * 32; i += 128)
    sb[core_place(i / 32, i % 32)] = reinterpret_cast<const char*>(b)[i];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
  uint32_t r[4];
  for (int i = 0; i < 4; ++i)
    r[i] = *reinterpret_cast<const uint32_t*>(a + (row + i % 2 * 8) * 16 + col + i / 2 * 8);
  asm volatile("" : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3])::"memory");
  const uint64_t db = descriptor(shared_address(sb), 128, 256, 0);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  if constexpr (kHalf) {
    uint32_t c[4] = {0x42004200, 0x42004200, 0x42004200, 0x42004200};  // 3, twice
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f16.f16.f16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "l"(db));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 8; ++i) {
      const __half_raw h{static_cast<unsigned short>(c[i / 2] >> (i % 2 * 16))};
      d[(row + i % 4 / 2 * 8) * 16 + i / 4 * 8 + col + i % 2] = __half2float(h);
    }
  } else {
    float c[8] = {3, 3, 3, 3, 3, 3, 3, 3};
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, "
        "%12, 1, 1, "
        "1, 0;"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])
        : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "l"(db));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 8; ++i) d[(row + i % 4 / 2 * 8) * 16 + i / 4 * 8 + col + i % 2] = c[i];
  }
}
uint32_t bf16_of(int v) { return tf32_of(v) >> 16; }
struct Whole {  // small whole numbers: a 64 x 16, b 16 x 16 (n, k), 3 + a b
  std::vector<uint16_t> a, b;
  std::vector<double> want;
  explicit Whole(uint32_t (*bits)(int)) : a(64 * 16), b(16 * 16), want(64 * 16, 3) {
    std::vector<int> av(a.size()), bv(b.size());
    for (size_t i = 0; i < a.size(); ++i) av[i] = static_cast<int>(next_random() % 7) - 3, a[i] = bits(av[i]);
    for (size_t i = 0; i < b.size(); ++i) bv[i] = static_cast<int>(next_random() % 7) - 3, b[i] = bits(bv[i]);
    for (int i = 0; i < 64; ++i)
      for (int j = 0; j < 16; ++j)
        for (int x = 0; x < 16; ++x) want[i * 16 + j] += av[i * 16 + x] * bv[j * 16 + x];
  }
};
template <bool kHalf>
bool run_wgmma_register() {
  const Whole w(kHalf ? f16_of : bf16_of);
  float* d = room<float>(64 * 16);
  wgmma_register<kHalf><<<1, 128>>>(upload(w.a), upload(w.b), d);
  CHECK_CUDA(cudaGetLastError());
  return within(kHalf ? "wgmma_register_f16" : "wgmma_register_bf16", download(d, w.want.size()), w.want, 0);
}
// f16 accumulators with both matrices in shared memory; the second product keeps nothing of the first.
__global__ void wgmma_half(const char* a, const char* b, float* d) {
  __shared__ alignas(128) char sa[64 * 32], sb[16 * 32];
  for (int i = threadIdx.x; i < 64 * 32; i += 128) sa[core_place(i / 32, i % 32)] = a[i];
  for (int i = threadIdx.x; i < 16 * 32; i += 128) sb[core_place(i / 32, i % 32)] = b[i];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  uint32_t c[4] = {0x42004200, 0x42004200, 0x42004200, 0x42004200};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  for (int keep = 0; keep < 2; ++keep)
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %6, 0; wgmma.mma_async.sync.aligned.m64n16k16.f16.f16.f16 "
        "{%0,%1,%2,%3}, %4, "
        "%5, p, 1, 1, 0, 0;}"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "l"(descriptor(shared_address(sa), 128, 256, 0)), "l"(descriptor(shared_address(sb), 128, 256, 0)),
          "r"(keep));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
  for (int i = 0; i < 8; ++i) {
    const __half_raw h{static_cast<unsigned short>(c[i / 2] >> (i % 2 * 16))};
    d[(row + i % 4 / 2 * 8) * 16 + i / 4 * 8 + col + i % 2] = __half2float(h);
  }
}
bool run_wgmma_half() {
  Whole w(f16_of);
  for (double& v : w.want) v = 2 * (v - 3);
  float* d = room<float>(64 * 16);
  wgmma_half<<<1, 128>>>(reinterpret_cast<char*>(upload(w.a)), reinterpret_cast<char*>(upload(w.b)), d);
  CHECK_CUDA(cudaGetLastError());
  return within("wgmma_f16_f16", download(d, w.want.size()), w.want, 0);
}
__global__ void wgmma_saturated(int start, int* d) {  // 32 products of 127 * 127 onto `start`
  __shared__ alignas(128) char sa[64 * 32], sb[8 * 32];
  for (int i = threadIdx.x; i < 64 * 32; i += 128) sa[i] = 127;
  for (int i = threadIdx.x; i < 8 * 32; i += 128) sb[i] = 127;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  int c[4] = {start, start, start, start};
  asm volatile("" : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])::"memory");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8.satfinite {%0,%1,%2,%3}, %4, %5, 1;"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "l"(descriptor(shared_address(sa), 128, 256, 0)),
                 "l"(descriptor(shared_address(sb), 128, 256, 0)));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = c[i];
}
bool run_wgmma_saturated() {
  bool good = true;
  constexpr int sum = 32 * 127 * 127;
  for (const int start : {INT32_MAX - 5, INT32_MAX - sum, INT32_MAX - sum + 1, INT32_MIN}) {
    int* d = room<int>(512);
    wgmma_saturated<<<1, 128>>>(start, d);
    CHECK_CUDA(cudaGetLastError());
    const std::vector<int> want(512, start > INT32_MAX - sum ? INT32_MAX : start + sum);
    good &= within("wgmma_saturated", download(d, 512), want, 0);
  }
  return good;
}

// st.async and red.async to the other block of a cluster, in every width; an mbarrier there counts the bytes.
__global__ void __cluster_dims__(2) store_async(unsigned* y) {
  __shared__ alignas(16) unsigned s[32 * 9 + 2];
  __shared__ uint64_t bar;
  cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), lane = threadIdx.x;
  for (int i = lane; i < 32 * 9 + 2; i += 32) s[i] = i < 32 * 9 ? 7 : 100;
  if (lane == 0) {
    barrier_init(&bar, 1);
    barrier_expect(&bar, 32 * (4 + 8 + 16 + 8 + 4 + 4 + 4));
  }
  cluster.sync();
  uint32_t to, at;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(s)), "r"(rank ^ 1));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(&bar)), "r"(rank ^ 1));
  const unsigned v = rank * 1000 + lane;
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to + lane * 4),
      "r"(v), "r"(at)
      : "memory");
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(
                   to + 128 + lane * 8),
               "r"(v + 1), "r"(v + 2), "r"(at)
               : "memory");
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
          to + 384 + lane * 16),
      "r"(v + 3), "r"(v + 4), "r"(v + 5), "r"(v + 6), "r"(at)
      : "memory");
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(to + 896 + lane * 8),
      "l"(v * 0x100000001ull), "r"(at)
      : "memory");
  asm volatile(
      "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.min.s32 [%0], %1, [%2];" ::"r"(
          to + 1152),
      "r"(static_cast<int>(lane) - 10), "r"(at)
      : "memory");
  asm volatile(
      "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.inc.u32 [%0], %1, [%2];" ::"r"(
          to + 1156),
      "r"(200), "r"(at)
      : "memory");
  asm volatile(
      "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.xor.b32 [%0], %1, [%2];" ::"r"(
          to + 1156),
      "r"(0), "r"(at)
      : "memory");
  barrier_wait(&bar, 0);
  for (int i = lane; i < 32 * 9 + 2; i += 32) y[blockIdx.x * (32 * 9 + 2) + i] = s[i];
  cluster.sync();
}
bool run_store_async() {
  constexpr int size = 32 * 9 + 2;
  std::vector<unsigned> want(2 * size);
  for (int b = 0; b < 2; ++b) {
    unsigned* w = want.data() + b * size;
    for (unsigned l = 0; l < 32; ++l) {
      const unsigned v = (b ^ 1) * 1000 + l;
      w[l] = v;
      for (unsigned k = 0; k < 2; ++k) w[32 + l * 2 + k] = v + 1 + k;
      for (unsigned k = 0; k < 4; ++k) w[96 + l * 4 + k] = v + 3 + k;
      for (unsigned k = 0; k < 2; ++k) w[224 + l * 2 + k] = v;
    }
    w[288] = static_cast<unsigned>(-10), w[289] = 132;
  }
  unsigned* y = room<unsigned>(want.size());
  store_async<<<2, 32>>>(y);
  CHECK_CUDA(cudaGetLastError());
  return within("store_async", download(y, want.size()), want, 0);
}

// cp.reduce.async.bulk into global memory, of two blocks at once.
#define REDUCE(WHAT, TO)                                                                                \
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group." WHAT " [%0], [%1], %2;" ::"l"(TO), \
               "r"(shared_address(s)), "r"(256)                                                         \
               : "memory")
__global__ void bulk_reductions(unsigned* y, int which) {
  __shared__ alignas(16) unsigned s[64];
  const unsigned i = threadIdx.x;
  s[i] = which == 0   ? __float_as_uint(static_cast<float>(i) / 4)
         : which == 3 ? 0x3f804000u
                      : i * 77 + blockIdx.x;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (i == 0) {
    if (which == 0) REDUCE("add.f32", y);
    if (which == 1) REDUCE("max.s32", y);
    if (which == 2) REDUCE("add.u64", y);
    if (which == 3) REDUCE("add.noftz.bf16", y);
    if (which == 4) REDUCE("or.b32", y);
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}
bool run_bulk_reductions() {
  bool good = true;
  for (int which = 0; which < 5; ++which) {
    std::vector<unsigned> start(64), want(64);
    for (int i = 0; i < 64; ++i) start[i] = which == 0 ? tf32_of(i) : which == 3 ? 0x40003f80u : 1000 + i;
    for (int i = 0; i < 64; ++i) {
      const unsigned s0 = i * 77, s1 = i * 77 + 1;
      unsigned& w = want[i] = start[i];
      float f;
      std::memcpy(&f, &w, 4);
      f += static_cast<float>(i) / 2;
      if (which == 0) std::memcpy(&w, &f, 4);
      if (which == 1) w = std::max(w, s1);
      if (which == 2) w += s0 + s1;     // no carry between the halves
      if (which == 3) w = 0x408040a0u;  // 2 + 2 * 1, 1 + 2 * 2
      if (which == 4) w |= s0 | s1;
    }
    unsigned* y = upload(start);
    bulk_reductions<<<2, 64>>>(y, which);
    CHECK_CUDA(cudaGetLastError());
    good &= within("bulk_reductions", download(y, 64), want, 0);
  }
  return good;
}

}  // namespace

int main() {
  const bool results[] = {run_gemm<false, false>(),
                          run_gemm<false, true>(),
                          run_gemm<true, false>(),
                          run_gemm<true, true>(),
                          run_gemm<false, true, true>(),
                          run_cluster_sum(),
                          run_cluster_ring(),
                          run_bulk(),
                          run_tensor(),
                          run_wgmma_types(),
                          run_wgmma_register<false>(),
                          run_wgmma_register<true>(),
                          run_wgmma_half(),
                          run_wgmma_saturated(),
                          run_store_async(),
                          run_bulk_reductions()};
  int failed = 0;
  for (bool r : results) failed += !r;
  std::printf("hopper: %d failed\n", failed);
  return failed ? 1 : 0;
}
