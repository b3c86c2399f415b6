// Attention on the f32 units, for any head size and any stored type: core/ops/attention.h.
#pragma once

#include "cuda/device/attention_rows.cuh"
#include "cuda/device/plan.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

// One shape for the three kernels: kWarps warps, each with kOwn rows (forward and dq: a row is one query of
// one head; dk and dv: one key), against tiles of 32 rows of the other side, one row a lane. Scores need no
// shuffles: a lane takes a whole product over D; sums over the tile then run with one lane a column.
constexpr int kGeneralWarps = 4, kGeneralOwn = 4, kGeneralRows = kGeneralWarps * kGeneralOwn,
              kGeneralTile = 32;

// Shared memory: two tiles and two sets of own rows in f32, rows padded by one against bank conflicts.
constexpr int64_t general_shared_bytes(int64_t d, bool backward) {
  return 4 * (d + 1) * (2 * kGeneralTile + (backward ? 2 : 1) * kGeneralRows);
}

// One row of D values from memory to shared memory in f32, by a warp.
template <typename S>
__device__ inline void load_row(const S* from, float* to, int d, float factor) {
  for (int j = threadIdx.x; j < d; j += kWarp) to[j] = to_float(from[j]) * factor;
}

// sum[i] = <own row i, tile row of this lane>
template <int kOwn>
__device__ inline void products(const float* own, const float* tile, int d, float (&sum)[kOwn]) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) sum[i] = 0;
  const float* mine = tile + threadIdx.x * (d + 1);
  for (int j = 0; j < d; ++j) {
    const float x = mine[j];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sum[i] = fmaf(own[i * (d + 1) + j], x, sum[i]);
  }
}
// acc[i][t] += sum over the tile's rows r of weight[i] (held by lane r) * tile[r][32 t + lane]
template <int kOwn, int kColumns>
__device__ inline void accumulate(const float (&weight)[kOwn], const float* tile, int d, int rows,
                                  float (&acc)[kOwn][kColumns]) {
  for (int r = 0; r < rows; ++r) {
    float w[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) w[i] = __shfl_sync(kAllLanes, weight[i], r);
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      const int j = t * kWarp + static_cast<int>(threadIdx.x);
      const float x = j < d ? tile[r * (d + 1) + j] : 0.0f;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) acc[i][t] = fmaf(w[i], x, acc[i][t]);
    }
  }
}

// grid (tasks, K), block (32, kGeneralWarps): a block owns the queries of one task for the heads that share
// one key head. Deterministic; a query's result depends on its own segment alone. kColumns * 32 >= D.
template <typename S, int kColumns>
__global__ __launch_bounds__(kWarp* kGeneralWarps) void attention_general_forward_kernel(
    const S* __restrict__ q,  // (N, H, D)
    const S* __restrict__ k,  // (M, K, D)
    const S* __restrict__ v,  // (M, K, D)
    const PlanSegment* __restrict__ segments, const PlanSpan* __restrict__ spans,
    const PlanTask* __restrict__ tasks, float scale,
    S* __restrict__ o,        // (N, H, D)
    float* __restrict__ lse,  // (N, H) or null
    int heads, int kv_heads, int d) {
  extern __shared__ float shared[];
  float *keys = shared, *values = keys + kGeneralTile * (d + 1), *queries = values + kGeneralTile * (d + 1);
  const PlanTask task = tasks[blockIdx.x];
  const PlanSegment s = segments[task.segment];
  const int group = heads / kv_heads, slices = gridDim.y / kv_heads, head = blockIdx.y / slices;
  const int slice = (group + slices - 1) / slices, in_group = blockIdx.y % slices * slice;
  const int width = min(slice, group - in_group), warp = threadIdx.y, lane = threadIdx.x;
  const int rows = task.count * width, first = warp * kGeneralOwn;
  const bool causal = s.kv_begin >= 0;
  const int spans_total = span_keys(s, spans);
  const auto head_row = [&](int r) {
    return static_cast<int64_t>(s.q_begin + task.begin + r / width) * heads + head * group + in_group +
           r % width;
  };
  for (int i = first; i < first + kGeneralOwn; ++i) {
    if (i < rows) {
      load_row(q + head_row(i) * d, queries + i * (d + 1), d, scale);
    } else {
      for (int j = lane; j < d; j += kWarp) queries[i * (d + 1) + j] = 0.0f;
    }
  }
  float acc[kGeneralOwn][kColumns] = {}, max[kGeneralOwn], sum[kGeneralOwn];
#pragma unroll
  for (int i = 0; i < kGeneralOwn; ++i) max[i] = -INFINITY, sum[i] = 0;
  const int key_count = spans_total + (causal ? task.begin + task.count : 0);
  for (int k0 = 0; k0 < key_count; k0 += kGeneralTile) {
    const int count = min(kGeneralTile, key_count - k0);
    __syncthreads();
    for (int i = warp; i < kGeneralTile; i += kGeneralWarps) {
      if (i < count) {
        const int64_t row = key_row(s, spans, spans_total, k0 + i) * kv_heads + head;
        load_row(k + row * d, keys + i * (d + 1), d, 1.0f);
        load_row(v + row * d, values + i * (d + 1), d, 1.0f);
      } else {
        for (int j = lane; j < d; j += kWarp) keys[i * (d + 1) + j] = 0.0f;
      }
    }
    __syncthreads();
    float p[kGeneralOwn];
    products(queries + first * (d + 1), keys, d, p);
#pragma unroll
    for (int i = 0; i < kGeneralOwn; ++i) {
      const int query = task.begin + (first + i) / width, key = k0 + lane;
      const bool seen = lane < count && first + i < rows && (key < spans_total || key - spans_total <= query);
      const float score = seen ? p[i] : -INFINITY;
      const float m = fmaxf(max[i], warp_max(score));
      // A tile of which the query sees nothing changes nothing.
      const float correction = m == -INFINITY ? 1.0f : expf(max[i] - m);
      p[i] = seen ? expf(score - m) : 0.0f;
      sum[i] = sum[i] * correction + warp_sum(p[i]);
      max[i] = m;
#pragma unroll
      for (int t = 0; t < kColumns; ++t) acc[i][t] *= correction;
    }
    accumulate(p, values, d, count, acc);
  }
#pragma unroll
  for (int i = 0; i < kGeneralOwn; ++i) {
    if (first + i >= rows) continue;
    const int64_t row = head_row(first + i);
    const float inverse = 1.0f / sum[i];
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      const int j = t * kWarp + lane;
      if (j < d) o[row * d + j] = from_float<S>(acc[i][t] * inverse);
    }
    if (lse && lane == 0) lse[row] = max[i] + logf(sum[i]);
  }
}

// statistics[n, h] = (lse, delta = <o, d_o>), the row terms of softmax's backward. grid (rows /
// kRows), block (kDeltaThreads): a thread takes kVector values at a time, `lanes` threads (a power of two, at
// most 32) share a row, so that kRows = kDeltaThreads / lanes. Traffic: o, d_o and lse once.
constexpr int kDeltaThreads = 128;
template <typename S, typename T, int kVector>
__global__ __launch_bounds__(kDeltaThreads) void attention_delta_kernel(
    const S* __restrict__ o,        // (rows, D)
    const T* __restrict__ d_o,      // (rows, D)
    const float* __restrict__ lse,  // (rows)
    float2* __restrict__ statistics, int64_t rows, int d, int lanes) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kDeltaThreads / lanes) + threadIdx.x / lanes;
  const bool valid = row < rows;
  const int64_t begin = valid ? row * d : 0;
  float sum = 0;
#pragma unroll 1
  for (int j = threadIdx.x % lanes * kVector; valid && j < d; j += lanes * kVector) {
    const auto x = load_vector<kVector>(o + begin + j);
    const auto y = load_vector<kVector>(d_o + begin + j);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum = fmaf(to_float(x.value[i]), to_float(y.value[i]), sum);
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
  if (valid && threadIdx.x % lanes == 0) statistics[row] = {lse[row], sum};
}

// dq. Grid, block and ownership as in forward; kColumns * 32 >= D.
template <typename S, typename T, int kColumns>
__global__ __launch_bounds__(kWarp* kGeneralWarps) void attention_general_query_backward_kernel(
    const S* __restrict__ q, const S* __restrict__ k, const S* __restrict__ v, const T* __restrict__ d_o,
    const float2* __restrict__ statistics,  // (N, H): lse, delta
    const PlanSegment* __restrict__ segments, const PlanSpan* __restrict__ spans,
    const PlanTask* __restrict__ tasks, float scale, AttentionGradients<T> to, int heads, int kv_heads,
    int d) {
  extern __shared__ float shared[];
  float *keys = shared, *values = keys + kGeneralTile * (d + 1), *queries = values + kGeneralTile * (d + 1);
  float* grads = queries + kGeneralRows * (d + 1);
  const PlanTask task = tasks[blockIdx.x];
  const PlanSegment s = segments[task.segment];
  const int group = heads / kv_heads, slices = gridDim.y / kv_heads, head = blockIdx.y / slices;
  const int slice = (group + slices - 1) / slices, in_group = blockIdx.y % slices * slice;
  const int width = min(slice, group - in_group), warp = threadIdx.y, lane = threadIdx.x;
  const int rows = task.count * width, first = warp * kGeneralOwn;
  const bool causal = s.kv_begin >= 0;
  const int spans_total = span_keys(s, spans);
  const auto head_row = [&](int r) {
    return static_cast<int64_t>(s.q_begin + task.begin + r / width) * heads + head * group + in_group +
           r % width;
  };
  float row_lse[kGeneralOwn], row_delta[kGeneralOwn];
#pragma unroll
  for (int i = 0; i < kGeneralOwn; ++i) {
    const int r = first + i;
    row_lse[i] = row_delta[i] = 0;
    if (r < rows) {
      load_row(q + head_row(r) * d, queries + r * (d + 1), d, scale);
      load_row(d_o + head_row(r) * d, grads + r * (d + 1), d, 1.0f);
      row_lse[i] = statistics[head_row(r)].x;
      row_delta[i] = statistics[head_row(r)].y;
    } else {
      for (int j = lane; j < d; j += kWarp) queries[r * (d + 1) + j] = grads[r * (d + 1) + j] = 0.0f;
    }
  }
  float acc[kGeneralOwn][kColumns] = {};
  const int key_count = spans_total + (causal ? task.begin + task.count : 0);
  for (int k0 = 0; k0 < key_count; k0 += kGeneralTile) {
    const int count = min(kGeneralTile, key_count - k0);
    __syncthreads();
    for (int i = warp; i < kGeneralTile; i += kGeneralWarps) {
      if (i < count) {
        const int64_t row = key_row(s, spans, spans_total, k0 + i) * kv_heads + head;
        load_row(k + row * d, keys + i * (d + 1), d, 1.0f);
        load_row(v + row * d, values + i * (d + 1), d, 1.0f);
      } else {
        for (int j = lane; j < d; j += kWarp) keys[i * (d + 1) + j] = values[i * (d + 1) + j] = 0.0f;
      }
    }
    __syncthreads();
    float score[kGeneralOwn], ds[kGeneralOwn];
    products(queries + first * (d + 1), keys, d, score);
    products(grads + first * (d + 1), values, d, ds);
#pragma unroll
    for (int i = 0; i < kGeneralOwn; ++i) {
      const int query = task.begin + (first + i) / width, key = k0 + lane;
      const bool seen = lane < count && first + i < rows && (key < spans_total || key - spans_total <= query);
      ds[i] = seen ? expf(score[i] - row_lse[i]) * (ds[i] - row_delta[i]) : 0.0f;
    }
    accumulate(ds, keys, d, count, acc);
  }
#pragma unroll
  for (int i = 0; i < kGeneralOwn; ++i) {
    if (first + i >= rows) continue;
    const int r = first + i;
    T* dq = to.query(s.q_begin + task.begin + r / width, head * group + in_group + r % width, d);
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      const int j = t * kWarp + lane;
      if (j < d) dq[j] = from_float<T>(acc[i][t] * scale);
    }
  }
}

// dk and dv. grid (key blocks, K), block (32, kGeneralWarps): a block owns kGeneralRows rows of keys of one
// key head and takes all queries of all segments that see them, in the plan's order: a shared prompt's
// gradient is summed over the batch here. Deterministic. kColumns * 32 >= D.
template <typename S, typename T, int kColumns>
__global__
__launch_bounds__(kWarp* kGeneralWarps, kColumns == 8 ? 4 : 6) void attention_general_key_backward_kernel(
    const S* __restrict__ q, const S* __restrict__ k, const S* __restrict__ v, const T* __restrict__ d_o,
    const float2* __restrict__ statistics,  // (N, H): lse, delta
    const PlanSegment* __restrict__ segments, const PlanSpan* __restrict__ spans,
    const int32_t* __restrict__ part_offsets, const PlanPart* __restrict__ parts, float scale,
    AttentionGradients<T> to, int64_t key_rows, int heads, int kv_heads, int d) {
  extern __shared__ float shared[];
  float *queries = shared, *grads = queries + kGeneralTile * (d + 1), *keys = grads + kGeneralTile * (d + 1);
  float* values = keys + kGeneralRows * (d + 1);
  const int head = blockIdx.y, group = heads / kv_heads, warp = threadIdx.y, lane = threadIdx.x;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * kGeneralRows;
  const int own_rows = static_cast<int>(min(static_cast<int64_t>(kGeneralRows), key_rows - base));
  const int first = warp * kGeneralOwn;
  for (int i = first; i < first + kGeneralOwn; ++i) {
    if (i < own_rows) {
      load_row(k + ((base + i) * kv_heads + head) * d, keys + i * (d + 1), d, scale);
      load_row(v + ((base + i) * kv_heads + head) * d, values + i * (d + 1), d, 1.0f);
    } else {
      for (int j = lane; j < d; j += kWarp) keys[i * (d + 1) + j] = values[i * (d + 1) + j] = 0.0f;
    }
  }
  float acc_k[kGeneralOwn][kColumns] = {}, acc_v[kGeneralOwn][kColumns] = {};
  for (int part_index = part_offsets[blockIdx.x]; part_index < part_offsets[blockIdx.x + 1]; ++part_index) {
    const PlanPart part = parts[part_index];
    const PlanSegment s = segments[part.segment];
    const int spans_total = span_keys(s, spans);
    // A part of the segment's own rows is seen from query part.key - spans_total on; one of its spans by
    // every query.
    const bool own_part = part.key >= spans_total;
    const int begin = own_part ? (part.key - spans_total) * group : 0, rows = s.q_count * group;
    const auto head_row = [&](int r) {
      return static_cast<int64_t>(s.q_begin + r / group) * heads + head * group + r % group;
    };
    for (int r0 = begin; r0 < rows; r0 += kGeneralTile) {
      const int count = min(kGeneralTile, rows - r0);
      __syncthreads();
      for (int i = warp; i < kGeneralTile; i += kGeneralWarps) {
        if (i < count) {
          load_row(q + head_row(r0 + i) * d, queries + i * (d + 1), d, 1.0f);
          load_row(d_o + head_row(r0 + i) * d, grads + i * (d + 1), d, 1.0f);
        } else {
          for (int j = lane; j < d; j += kWarp) queries[i * (d + 1) + j] = grads[i * (d + 1) + j] = 0.0f;
        }
      }
      __syncthreads();
      const float2 of_row = lane < count ? statistics[head_row(r0 + lane)] : float2{};
      float p[kGeneralOwn], ds[kGeneralOwn];
      products(keys + first * (d + 1), queries, d, p);
      products(values + first * (d + 1), grads, d, ds);
#pragma unroll
      for (int i = 0; i < kGeneralOwn; ++i) {
        const int row = static_cast<int>(base - part.row) + first + i;  // of the part
        const int query = (r0 + lane) / group;
        const bool seen = lane < count && row >= 0 && row < part.count &&
                          (!own_part || part.key + row - spans_total <= query);
        p[i] = seen ? expf(p[i] - of_row.x) : 0.0f;
        ds[i] = p[i] * (ds[i] - of_row.y);
      }
      accumulate(p, grads, d, count, acc_v);
      accumulate(ds, queries, d, count, acc_k);
    }
  }
  const KeyPlace place = key_place(kGeneralRows);
#pragma unroll
  for (int i = 0; i < kGeneralOwn; ++i) {
    if (first + i >= own_rows) continue;
    const int64_t row = place.row + first + i;
    const int64_t at = to.at(row, place.head, kv_heads, d);
    T *dk = to.key(row) + at, *dv = to.value(row) + at;
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      const int j = t * kWarp + lane;
      if (j >= d) continue;
      dk[j] = from_float<T>(acc_k[i][t] * scale);
      dv[j] = from_float<T>(acc_v[i][t]);
    }
  }
}

// k_cache[slots[n]] = k[n], and v likewise: grid (N, 2), the second for v; block kThreads; rows of `words`
// words. A negative slot: the row is not cached.
template <typename Word, int kThreads>
__global__ __launch_bounds__(kThreads) void kv_append_kernel(const Word* __restrict__ k,
                                                             const Word* __restrict__ v,
                                                             const int32_t* __restrict__ slots,
                                                             Word* __restrict__ k_cache,
                                                             Word* __restrict__ v_cache, int words) {
  const int64_t n = blockIdx.x, slot = slots[n];
  if (slot < 0) return;
  const Word* from = (blockIdx.y ? v : k) + n * words;
  Word* to = (blockIdx.y ? v_cache : k_cache) + slot * words;
#pragma unroll 1
  for (int j = threadIdx.x; j < words; j += kThreads) to[j] = from[j];
}

}  // namespace gantrain::cuda
