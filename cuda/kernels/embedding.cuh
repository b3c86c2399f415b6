// Embedding lookup with the soft prompt spliced in, and the gradient of the prompt rows:
// core/ops/embedding.h.
#pragma once

#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// grid (N), block kThreads: a block owns one row. Traffic a row: C T read, C f32 written. Deterministic.
// kVector: columns a thread moves at once, 16 bytes of T; C is a multiple of it and rows are aligned to 16
// bytes. Or 1.
template <typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void embed_forward_kernel(
    const T* __restrict__ table,         // (V, C)
    const int32_t* __restrict__ tokens,  // (N)
    const float* __restrict__ prompt,    // (R, C)
    float* __restrict__ x,               // (N, C)
    int c) {
  const int64_t n = blockIdx.x, token = tokens[n];
  float* to = x + n * c;
  float v[kVector];
  if (token < 0) {
    const float* from = prompt + (-1 - token) * c;
#pragma unroll 1
    for (int j = threadIdx.x * kVector; j < c; j += kThreads * kVector) {
      load_floats(from + j, v);
      store_floats(to + j, v);
    }
    return;
  }
  const T* from = table + token * c;
#pragma unroll 1
  for (int j = threadIdx.x * kVector; j < c; j += kThreads * kVector) {
    load_row(from + j, v);
    store_floats(to + j, v);
  }
}

// grid (C / kThreads), block kThreads: a thread owns one column and adds all prompt rows in order of n, so
// that a prompt row that several inputs share gets its sum in a fixed order. Traffic: the prompt rows of dx,
// and tokens.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void embed_backward_kernel(const float* __restrict__ dx,  // (N, C)
                                                                  const int32_t* __restrict__ tokens,  // (N)
                                                                  float* __restrict__ dprompt,  // (R, C) +=
                                                                  int64_t n, int c) {
  const int j = blockIdx.x * kThreads + threadIdx.x;
  if (j >= c) return;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t token = tokens[i];
    if (token < 0) dprompt[(-1 - token) * c + j] += dx[i * c + j];
  }
}

}  // namespace gantrain::cuda
