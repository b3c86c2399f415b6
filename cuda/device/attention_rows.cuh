// Where attention's backward leaves the gradients: core/ops/attention.h, AttentionBackward.
#pragma once

#include <cstdint>

namespace gantrain::cuda {

// Rows of D values. Queries: a tensor of their own, or dy, of which each row has K more heads of keys and K
// of values. Keys and values: the first `front` rows (all without dy) have tensors of their own.
template <typename T>
struct AttentionGradients {
  T* q;                  // (N, row_heads, D)
  T *k, *v;              // dy's, from its first head of keys and of values on
  T *front_k, *front_v;  // (front, K, D)
  int64_t front;
  int row_heads;        // H, or of dy H + 2 K
  const float* rotary;  // (N, D): q and k are to be rotated back; or null
  float* dot;           // (N, H + K): parts of <dy, [q; k; v]>; or null

  __device__ T* query(int64_t row, int head, int d) const { return q + (row * row_heads + head) * d; }
  // Where a row of keys begins in key(row), and one of values in value(row).
  __device__ int64_t at(int64_t row, int head, int kv_heads, int d) const {
    return (row < front ? row * kv_heads + head : (row - front) * row_heads + head) * d;
  }
  __device__ T* key(int64_t row) const { return row < front ? front_k : k; }
  __device__ T* value(int64_t row) const { return row < front ? front_v : v; }
};

// The first of a block's rows of keys and its key head, worked out again where they are wanted: held over the
// loop they would cost it registers (and the compiler holds what it knows to be the same).
struct KeyPlace {
  int64_t row;
  int head;
};
__device__ inline KeyPlace key_place(int rows_per_block) {
  int x, y;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(y));
  return {static_cast<int64_t>(x) * rows_per_block, y};
}

}  // namespace gantrain::cuda
