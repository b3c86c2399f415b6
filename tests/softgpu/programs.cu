// Whole programs for compute_80, compared with a CPU computation: a tiled GEMM (cp.async, ldmatrix, mma), a
// flash-attention loop, a scan, a histogram, a captured graph.
#include <cuda_runtime.h>

#include "tests/softgpu/programs.h"

namespace {

using bf16_bits = uint16_t;

__device__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// 16 bytes, of which `bytes` come from memory; the rest become zero.
__device__ void copy16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ void wait_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
__device__ void ldmatrix4(uint32_t (&r)[4], uint32_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(a)
               : "memory");
}
__device__ void ldmatrix4_trans(uint32_t (&r)[4], uint32_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(a)
               : "memory");
}
__device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ uint32_t pack_bf16(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}

// --- GEMM: c (m x n, f32) = a (m x k) b (k x n), bf16, all row-major; n and k multiples of 8.
// Blocks of 64 x 64, k in steps of 32, three stages. Chunks of 16 bytes are stored at chunk ^ row bits, so
// that the eight rows of an ldmatrix lie in different banks.
constexpr int kTileM = 64, kTileN = 64, kTileK = 32, kStages = 3;

__device__ uint32_t place_a(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1)) & 3) * 16; }
__device__ uint32_t place_b(int row, int chunk) { return row * 128 + ((chunk ^ row) & 7) * 16; }

__global__ void __launch_bounds__(128)
    gemm(const bf16_bits* a, const bf16_bits* b, float* c, int m, int n, int k) {
  __shared__ alignas(128) char sa[kStages][kTileM * kTileK * 2];
  __shared__ alignas(128) char sb[kStages][kTileK * kTileN * 2];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int m0 = blockIdx.y * kTileM, n0 = blockIdx.x * kTileN;
  const int wm = warp / 2 * 32, wn = warp % 2 * 32;
  const auto fetch = [&](int stage, int k0) {
    for (int i = threadIdx.x; i < kTileM * 4; i += 128) {
      const int row = i / 4, chunk = i % 4;
      const bool in = m0 + row < m && k0 + chunk * 8 < k;
      copy16(shared_address(sa[stage]) + place_a(row, chunk),
             in ? a + static_cast<size_t>(m0 + row) * k + k0 + chunk * 8 : a, in ? 16 : 0);
    }
    for (int i = threadIdx.x; i < kTileK * 8; i += 128) {
      const int row = i / 8, chunk = i % 8;
      const bool in = k0 + row < k && n0 + chunk * 8 < n;
      copy16(shared_address(sb[stage]) + place_b(row, chunk),
             in ? b + static_cast<size_t>(k0 + row) * n + n0 + chunk * 8 : b, in ? 16 : 0);
    }
    commit();
  };
  const int steps = (k + kTileK - 1) / kTileK;
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) {
      fetch(s, s * kTileK);
    } else {
      commit();
    }
  }
  float acc[2][4][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_groups<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) {
      fetch((step + kStages - 1) % kStages, (step + kStages - 1) * kTileK);
    } else {
      commit();
    }
    const uint32_t pa = shared_address(sa[step % kStages]), pb = shared_address(sb[step % kStages]);
    for (int kk = 0; kk < kTileK / 16; ++kk) {
      uint32_t fa[2][4], fb[2][4];
      for (int i = 0; i < 2; ++i) ldmatrix4(fa[i], pa + place_a(wm + i * 16 + lane % 16, kk * 2 + lane / 16));
      for (int j = 0; j < 2; ++j)
        ldmatrix4_trans(fb[j], pb + place_b(kk * 16 + lane % 16, wn / 8 + j * 2 + lane / 16));
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j) mma(acc[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int h = 0; h < 4; ++h) {
        const int row = m0 + wm + i * 16 + lane / 4 + h / 2 * 8, col = n0 + wn + j * 8 + lane % 4 * 2 + h % 2;
        if (row < m && col < n) c[static_cast<size_t>(row) * n + col] = acc[i][j][h];
      }
}

bool run_gemm() {
  bool good = true;
  constexpr int sizes[][3] = {{64, 64, 32}, {100, 136, 72}, {129, 200, 264}};
  for (const auto& [m, n, k] : sizes) {
    const auto a = random_bf16(static_cast<size_t>(m) * k), b = random_bf16(static_cast<size_t>(k) * n);
    bf16_bits *pa = upload(a), *pb = upload(b);
    float* pc = room<float>(static_cast<size_t>(m) * n);
    gemm<<<dim3((n + kTileN - 1) / kTileN, (m + kTileM - 1) / kTileM), 128>>>(pa, pb, pc, m, n, k);
    CHECK_CUDA(cudaGetLastError());
    const int cols = n;
    const auto want =
        cpu_gemm(a, m, n, k, [&](int x, int j) { return bf16_float(b[static_cast<size_t>(x) * cols + j]); });
    good &= within("gemm", download(pc, want.size()), want, 1e-4);
    CHECK_CUDA(cudaFree(pa));
    CHECK_CUDA(cudaFree(pb));
    CHECK_CUDA(cudaFree(pc));
  }
  return good;
}

// --- Attention with an online softmax: q, k, v are [heads][length][64]; causal; out f32.
constexpr int kDim = 64, kKeys = 32, kQueries = 64;

__device__ uint32_t place(int row, int chunk) { return row * 128 + ((chunk ^ row) & 7) * 16; }

__global__ void __launch_bounds__(128)
    attention(const bf16_bits* q, const bf16_bits* k, const bf16_bits* v, float* out, int length) {
  __shared__ alignas(128) char sq[kQueries * kDim * 2];
  __shared__ alignas(128) char sk[2][kKeys * kDim * 2];
  __shared__ alignas(128) char sv[2][kKeys * kDim * 2];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q0 = blockIdx.x * kQueries;
  const size_t base = static_cast<size_t>(blockIdx.y) * length * kDim;
  const auto fetch = [&](uint32_t to, const bf16_bits* from, int row0, int rows) {
    for (int i = threadIdx.x; i < rows * 8; i += 128) {
      const bool in = row0 + i / 8 < length;
      copy16(to + place(i / 8, i % 8),
             from + base + (in ? static_cast<size_t>(row0 + i / 8) * kDim + i % 8 * 8 : 0), in ? 16 : 0);
    }
  };
  const int last = min(length, q0 + kQueries), tiles = (last + kKeys - 1) / kKeys;
  fetch(shared_address(sq), q, q0, kQueries);
  fetch(shared_address(sk[0]), k, 0, kKeys);
  fetch(shared_address(sv[0]), v, 0, kKeys);
  commit();
  uint32_t fq[4][4];
  float acc[8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  for (int tile = 0; tile < tiles; ++tile) {
    __syncthreads();  // the other buffer has been read
    if (tile + 1 < tiles) {
      fetch(shared_address(sk[(tile + 1) & 1]), k, (tile + 1) * kKeys, kKeys);
      fetch(shared_address(sv[(tile + 1) & 1]), v, (tile + 1) * kKeys, kKeys);
    }
    commit();
    wait_groups<1>();
    __syncthreads();
    if (tile == 0)
      for (int i = 0; i < 4; ++i)
        ldmatrix4(fq[i], shared_address(sq) + place(warp * 16 + lane % 16, i * 2 + lane / 16));
    const uint32_t pk = shared_address(sk[tile & 1]), pv = shared_address(sv[tile & 1]);
    float s[4][4] = {};
    for (int j = 0; j < 2; ++j)  // 16 keys
      for (int i = 0; i < 4; ++i) {
        uint32_t f[4];  // keys 0-7 and 8-15 of 16 dimensions
        ldmatrix4(f, pk + place(j * 16 + lane % 8 + lane / 16 * 8, i * 2 + lane / 8 % 2));
        mma(s[2 * j], fq[i], f[0], f[1]);
        mma(s[2 * j + 1], fq[i], f[2], f[3]);
      }
    uint32_t p[4][2];
    for (int h = 0; h < 2; ++h) {
      const int row = q0 + warp * 16 + lane / 4 + h * 8;
      float most = top[h];
      for (int j = 0; j < 4; ++j)
        for (int e = 0; e < 2; ++e) {
          const int key = tile * kKeys + j * 8 + lane % 4 * 2 + e;
          float& x = s[j][h * 2 + e];
          x = key <= row && key < length ? x * 0.125f : -INFINITY;
          most = fmaxf(most, x);
        }
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float scale = most == -INFINITY ? 1.0f : __expf(top[h] - most);
      const float shift = most == -INFINITY ? 0.0f : most;
      top[h] = most;
      float part = 0;
      for (int j = 0; j < 4; ++j) {
        const float x = __expf(s[j][h * 2] - shift), y = __expf(s[j][h * 2 + 1] - shift);
        part += x + y;
        p[j][h] = pack_bf16(x, y);
      }
      sum[h] = sum[h] * scale + part;
      for (int d = 0; d < 8; ++d) acc[d][h * 2] *= scale, acc[d][h * 2 + 1] *= scale;
    }
    for (int j = 0; j < 2; ++j) {
      const uint32_t fp[4] = {p[2 * j][0], p[2 * j][1], p[2 * j + 1][0], p[2 * j + 1][1]};
      for (int d = 0; d < 4; ++d) {
        uint32_t f[4];
        ldmatrix4_trans(f, pv + place(j * 16 + lane % 16, d * 2 + lane / 16));
        mma(acc[2 * d], fp, f[0], f[1]);
        mma(acc[2 * d + 1], fp, f[2], f[3]);
      }
    }
  }
  for (int h = 0; h < 2; ++h) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    const int row = q0 + warp * 16 + lane / 4 + h * 8;
    if (row >= length) continue;
    for (int d = 0; d < 8; ++d)
      for (int e = 0; e < 2; ++e)
        out[base + static_cast<size_t>(row) * kDim + d * 8 + lane % 4 * 2 + e] = acc[d][h * 2 + e] / sum[h];
  }
}

bool run_attention() {
  const int heads = 2, length = 150;
  const size_t n = static_cast<size_t>(heads) * length * kDim;
  const auto q = random_bf16(n), k = random_bf16(n), v = random_bf16(n);
  bf16_bits *pq = upload(q), *pk = upload(k), *pv = upload(v);
  float* out = room<float>(n);
  attention<<<dim3((length + kQueries - 1) / kQueries, heads), 128>>>(pq, pk, pv, out, length);
  CHECK_CUDA(cudaGetLastError());
  std::vector<double> want(n);
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < length; ++i) {
      const auto at = [&](const std::vector<bf16_bits>& x, int row, int d) {
        return static_cast<double>(bf16_float(x[(static_cast<size_t>(h) * length + row) * kDim + d]));
      };
      std::vector<double> p(i + 1);
      double most = -INFINITY, sum = 0;
      for (int j = 0; j <= i; ++j) {
        for (int d = 0; d < kDim; ++d) p[j] += at(q, i, d) * at(k, j, d) / 8;
        most = std::fmax(most, p[j]);
      }
      for (double& x : p) x = std::exp(x - most), sum += x;
      for (int d = 0; d < kDim; ++d) {
        double s = 0;
        for (int j = 0; j <= i; ++j) s += p[j] * at(v, j, d);
        want[(static_cast<size_t>(h) * length + i) * kDim + d] = s / sum;
      }
    }
  return within("attention", download(out, n), want, 8e-3);  // probabilities are rounded to bf16
}

// --- Inclusive scan: within warps by shuffles, over the warps of a block through shared memory, over blocks
// by a second launch.
__global__ void scan_block(const int* x, int* y, int* totals, int n) {
  __shared__ int warp_total[32];
  const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int v = i < n ? x[i] : 0;
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(~0u, v, d);
    if (lane >= d) v += other;
  }
  if (lane == 31) warp_total[warp] = v;
  __syncthreads();
  if (warp == 0) {
    int t = lane < blockDim.x / 32 ? warp_total[lane] : 0;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, t, d);
      if (lane >= d) t += other;
    }
    warp_total[lane] = t;
  }
  __syncthreads();
  if (warp > 0) v += warp_total[warp - 1];
  if (i < n) y[i] = v;
  if (threadIdx.x == blockDim.x - 1) totals[blockIdx.x] = v;
}
__global__ void add_totals(int* y, const int* totals, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int before = 0;
  for (int b = 0; b < blockIdx.x; ++b) before += totals[b];
  if (i < n) y[i] += before;
}
bool run_scan() {
  const int n = 5003, threads = 512, blocks = (n + threads - 1) / threads;
  std::vector<int> x(n), want(n);
  for (int i = 0; i < n; ++i) x[i] = static_cast<int>(next_random() % 2001) - 1000;
  for (int i = 0, s = 0; i < n; ++i) want[i] = s += x[i];
  int *px = upload(x), *py = room<int>(n), *pt = room<int>(blocks);
  scan_block<<<blocks, threads>>>(px, py, pt, n);
  add_totals<<<blocks, threads>>>(py, pt, n);
  CHECK_CUDA(cudaGetLastError());
  return within("scan", download(py, n), want, 0);
}

// --- Histogram: shared counters by block, added to global ones.
__global__ void histogram(const unsigned char* x, unsigned* bins, int n) {
  __shared__ unsigned local[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    atomicAdd(&local[x[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    if (local[i]) atomicAdd(&bins[i], local[i]);
}
bool run_histogram() {
  const int n = 60001;
  std::vector<unsigned char> x(n);
  std::vector<unsigned> want(256, 0u);
  for (auto& v : x) v = static_cast<unsigned char>(next_random() % 256 & next_random()), ++want[v];
  unsigned char* px = upload(x);
  unsigned* bins = room<unsigned>(256);
  CHECK_CUDA(cudaMemset(bins, 0, 1024));
  histogram<<<7, 256>>>(px, bins, n);
  CHECK_CUDA(cudaGetLastError());
  return within("histogram", download(bins, 256), want, 0);
}

// --- A captured graph (copy in, two kernels on two streams, a join, copy out) replayed with changed inputs.
__global__ void scale(const float* x, float* y, float f, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * f;
}
__global__ void combine(const float* x, const float* y, float* z, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) z[i] = x[i] * y[i] + 1.0f;
}
bool run_graph() {
  const int n = 1000;
  const size_t bytes = n * sizeof(float);
  float *in, *out;
  CHECK_CUDA(cudaMallocHost(&in, bytes));
  CHECK_CUDA(cudaMallocHost(&out, bytes));
  float *x = room<float>(n), *y = room<float>(n), *z = room<float>(n), *r = room<float>(n);
  cudaStream_t main_stream, side;
  CHECK_CUDA(cudaStreamCreateWithFlags(&main_stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  cudaEvent_t fork, join;
  CHECK_CUDA(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
  CHECK_CUDA(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaStreamBeginCapture(main_stream, cudaStreamCaptureModeThreadLocal));
  CHECK_CUDA(cudaMemcpyAsync(x, in, bytes, cudaMemcpyHostToDevice, main_stream));
  CHECK_CUDA(cudaEventRecord(fork, main_stream));
  CHECK_CUDA(cudaStreamWaitEvent(side, fork, 0));
  scale<<<4, 256, 0, main_stream>>>(x, y, 3.0f, n);
  scale<<<4, 256, 0, side>>>(x, z, -0.5f, n);
  CHECK_CUDA(cudaEventRecord(join, side));
  CHECK_CUDA(cudaStreamWaitEvent(main_stream, join, 0));
  combine<<<4, 256, 0, main_stream>>>(y, z, r, n);
  CHECK_CUDA(cudaMemcpyAsync(out, r, bytes, cudaMemcpyDeviceToHost, main_stream));
  CHECK_CUDA(cudaStreamEndCapture(main_stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  bool good = true;
  for (int round = 0; round < 4; ++round) {
    std::vector<float> want(n);
    for (int i = 0; i < n; ++i) {
      in[i] = next_float() + static_cast<float>(round);
      want[i] = std::fma(in[i] * 3.0f, in[i] * -0.5f, 1.0f);
      out[i] = NAN;
    }
    CHECK_CUDA(cudaGraphLaunch(exec, main_stream));
    CHECK_CUDA(cudaStreamSynchronize(main_stream));
    good &= within("graph", std::vector<float>(out, out + n), want, 0);
  }
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
  return good;
}

}  // namespace

int main() {
  const bool results[] = {run_gemm(), run_attention(), run_scan(), run_histogram(), run_graph()};
  int failed = 0;
  for (bool r : results) failed += !r;
  std::printf("programs: %d failed\n", failed);
  return failed ? 1 : 0;
}
