// Embedding lookup with the soft prompt spliced in, and the gradient of the prompt rows:
// core/ops/embedding.h.
#pragma once

#include "cuda/device/norm_row.cuh"

namespace gantrain::cuda {

// grid (N * lanes / kThreads), block kThreads: the lanes of a row (RowOwner) are what 2^log_lanes says.
// Traffic a row: C T read, C f32 written. Deterministic. kVector: columns of each of two places a lane moves
// at once, 16 bytes of f32; C is a multiple of 4, and of 8 for 16-bit types, and rows are aligned to 16
// bytes. Or 1.
template <typename T, int kVector, int kThreads>
__global__ __launch_bounds__(kThreads, kFullBlocks<kThreads>) void embed_forward_kernel(
    const T* __restrict__ table,         // (V, C)
    const int32_t* __restrict__ tokens,  // (N)
    const float* __restrict__ prompt,    // (R, C)
    float* __restrict__ x,               // (N, C)
    int64_t n, int c, int log_lanes) {
  const RowOwner own = row_owner<kThreads>(log_lanes, n);
  if (own.row >= n) return;
  const int64_t token = tokens[own.row];
  float* to = x + own.row * c;
  const int apart = own.lanes * kVector;
  const auto copy = [&](const auto* from, unsigned row_lanes) {
#pragma unroll 1
    for (int j0 = 0; j0 < c; j0 += 2 * apart) {
      const int j = j0 + own.lane * kVector;
      const unsigned lanes = __ballot_sync(row_lanes, j < c);
      if (j >= c) break;
      const bool second = j + apart < c;
      float a[kVector], b[kVector];
      load_quads(from + j, apart, second, lanes, a, b);
      store_quads(to + j, apart, second, lanes, a, b);
    }
  };
  const unsigned prompts = __ballot_sync(own.owners, token < 0);
  if (token < 0)
    copy(prompt + (-1 - token) * c, prompts);
  else
    copy(table + token * c, own.owners & ~prompts);
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
