// Loops whose speed on the GPU in software speed.py measures: speed LOOP LAUNCHES
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

constexpr int kBlocks = 8, kThreads = 256, kCount = 1 << 20;

__global__ void arithmetic(float* x, const float*, int rounds) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  float a = x[i], b = a + 1, c = a - 1, d = a * 0.5f;
  int n = i, m = i * 3;
  for (int r = 0; r < rounds; ++r) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      a = fmaf(a, 0.999f, b), b = fmaf(b, 0.5f, c), c = c * 0.25f + d, d = fmaxf(d, a);
      n = n * 5 + m, m = (m ^ n) + r;
    }
  }
  x[i] = a + b + c + d + n + m;
}
__global__ void memory(float* y, const float* x, int rounds) {
  for (int r = 0; r < rounds; ++r)
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < kCount; i += gridDim.x * blockDim.x)
      y[i] = x[i] * 0.5f + y[i];
}
__global__ void shared(float* y, const float* x, int rounds) {
  __shared__ float s[kThreads];
  float v = x[threadIdx.x];
  for (int r = 0; r < rounds; ++r) {
    s[threadIdx.x] = v;
    __syncthreads();
    v += s[(threadIdx.x + r) % kThreads];
    __syncthreads();
  }
  y[blockIdx.x * blockDim.x + threadIdx.x] = v;
}
__global__ void shuffle(float* y, const float* x, int rounds) {
  float v = x[threadIdx.x];
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  y[blockIdx.x * blockDim.x + threadIdx.x] = v;
}
__global__ void mma(float* y, const float* x, int rounds) {
  float d[4][4] = {};
  unsigned a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = 0x3f803f80 + threadIdx.x;
  for (int i = 0; i < 2; ++i) b[i] = 0x3c003c00 + threadIdx.x;
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int k = 0; k < 4; ++k)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
          "{%0,%1,%2,%3};"
          : "+f"(d[k][0]), "+f"(d[k][1]), "+f"(d[k][2]), "+f"(d[k][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  float sum = x[threadIdx.x];
  for (auto& row : d)
    for (float v : row) sum += v;
  y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const struct {
    const char* name;
    void (*kernel)(float*, const float*, int);
    int rounds;
  } loops[] = {{"arithmetic", arithmetic, 200},
               {"memory", memory, 1},
               {"shared", shared, 300},
               {"shuffle", shuffle, 400},
               {"mma", mma, 100}};
  float *x, *y;
  if (cudaMalloc(&x, kCount * 4) != cudaSuccess || cudaMalloc(&y, kCount * 4) != cudaSuccess) return 1;
  cudaMemset(x, 0, kCount * 4);
  cudaMemset(y, 0, kCount * 4);
  for (const auto& l : loops) {
    if (std::strcmp(l.name, argv[1])) continue;
    for (int i = std::atoi(argv[2]); i > 0; --i) l.kernel<<<kBlocks, kThreads>>>(y, x, l.rounds);
    const cudaError_t e = cudaDeviceSynchronize();
    if (e != cudaSuccess) std::printf("%s\n", cudaGetErrorString(e));
    return e == cudaSuccess ? 0 : 1;
  }
  std::printf("no loop %s\n", argv[1]);
  return 2;
}
