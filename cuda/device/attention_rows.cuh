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
  __device__ T* key(int64_t row, int head, int kv_heads, int d) const {
    return row < front ? front_k + (row * kv_heads + head) * d : k + ((row - front) * row_heads + head) * d;
  }
  __device__ T* value(int64_t row, int head, int kv_heads, int d) const {
    return row < front ? front_v + (row * kv_heads + head) * d : v + ((row - front) * row_heads + head) * d;
  }
};

}  // namespace gantrain::cuda
