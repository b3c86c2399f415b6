// Flash attention on tensor cores (Dao 2307.08691), bf16, head sizes 64 and 128: core/ops/attention.h.
//
// Rows are (query, head) pairs of the heads that share one key head, so grouped heads need no copies of keys.
// Tiles of keys are gathered through the plan's spans: a shared prompt is a span like any other, and its
// gradient is summed by the block that owns its keys. Nothing is added by atomics: every sum has a fixed
// order.
#pragma once

#include "cuda/device/async_copy.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/plan.cuh"
#include "cuda/device/reduce.cuh"

namespace gantrain::cuda {

constexpr int kTensorWarps = 4, kTensorThreads = kTensorWarps * kWarp;
constexpr int kTensorRows = 16 * kTensorWarps;  // own rows of a block: 16 a warp
constexpr int kForwardKeys = 64;                // keys of a tile
constexpr int kDecodeKeys = 32, kDecodeRows = 16;
constexpr float kLog2E = 1.44269504088896341f;

// What fits into the 99 KiB that the smaller GPUs of a generation have.
template <int kD>
constexpr int kDecodeWarps = kD == 64 ? 8 : 4;

// Rows of the other side in a tile of backward: what the registers leave room for.
template <int kD>
constexpr int kBackwardTile = kD == 64 ? 64 : 32;

template <int kD>
constexpr int kForwardShared = 2 * kD*(kTensorRows + 4 * kForwardKeys);
template <int kD>
constexpr int kDecodeShared = 2 * kD*(kDecodeRows + 2 * kDecodeWarps<kD> * kDecodeKeys);
template <int kD>
constexpr int kBackwardShared = 2 * kD*(2 * kTensorRows + 4 * kBackwardTile<kD>)+4 * 4 * kBackwardTile<kD>;

// A tile of bf16 rows of kD values in shared memory: 16-byte piece c of row r lies at piece c ^ (r % 8), so
// that the eight rows of an 8 x 8 matrix lie in different banks.
template <int kD>
__device__ inline uint32_t piece_address(uint32_t tile, int row, int piece) {
  return tile + static_cast<uint32_t>((row * (kD / 8) + (piece ^ (row & 7))) * 16);
}
// Starts copying rows [0, count) of a tile of kRows rows, the rest zeros: row(r) is the place of row r in
// units of kD.
template <int kD, int kRows, int kThreads, typename Row>
__device__ inline void copy_tile(uint32_t tile, const __nv_bfloat16* from, int thread, int count, Row row) {
  constexpr int kPieces = kD / 8;
#pragma unroll
  for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
    const int at = i * kThreads + thread, r = at / kPieces, piece = at % kPieces;
    const bool valid = r < count;
    copy_async(piece_address<kD>(tile, r, piece), from + (valid ? row(r) : 0) * kD + piece * 8, valid);
  }
}

// The fragment of A: rows [row0, row0 + 16), k-step of 16 columns.
template <int kD>
__device__ inline void load_a(uint32_t (&a)[4], uint32_t tile, int row0, int step) {
  const int lane = threadIdx.x % kWarp;
  load_matrices(a, piece_address<kD>(tile, row0 + lane % 16, 2 * step + lane / 16));
}
// acc (16, kN) += A (16, kD) B^T with B a tile of kN rows.
template <int kD, int kN>
__device__ inline void multiply_rows(float (&acc)[kN / 8][4], const uint32_t (&a)[4], uint32_t tile,
                                     int step) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kN / 16; ++j) {
    uint32_t b[4];
    load_matrices(b, piece_address<kD>(tile, 16 * j + lane % 8 + 8 * (lane / 16), 2 * step + lane / 8 % 2));
    multiply_add(acc[2 * j], a, b[0], b[1]);
    multiply_add(acc[2 * j + 1], a, b[2], b[3]);
  }
}
// acc (16, kD) += P (16, kN) B with B a tile of kN rows; P is what multiply_rows left, rounded to bf16.
template <int kD, int kN>
__device__ inline void multiply_columns(float (&acc)[kD / 8][4], const float (&p)[kN / 8][4], uint32_t tile) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kN / 16; ++j) {
    const uint32_t a[4] = {pack_bf16(p[2 * j][0], p[2 * j][1]), pack_bf16(p[2 * j][2], p[2 * j][3]),
                           pack_bf16(p[2 * j + 1][0], p[2 * j + 1][1]),
                           pack_bf16(p[2 * j + 1][2], p[2 * j + 1][3])};
#pragma unroll
    for (int t = 0; t < kD / 16; ++t) {
      uint32_t b[4];
      load_matrices_transposed(b, piece_address<kD>(tile, 16 * j + lane % 16, 2 * t + lane / 16));
      multiply_add(acc[2 * t], a, b[0], b[1]);
      multiply_add(acc[2 * t + 1], a, b[2], b[3]);
    }
  }
}
// Writes a warp's rows [row0, row0 + 16) of factor * acc through the tile (whose own 16 rows are free) in
// 16-byte stores. factor[i] belongs to rows lane / 4 + 8 i; row(r) as in copy_tile, for rows r < rows.
template <int kD, typename Row>
__device__ inline void store_rows(const float (&acc)[kD / 8][4], const float (&factor)[2], char* shared,
                                  int row0, __nv_bfloat16* to, int rows, Row row) {
  constexpr int kPieces = kD / 8;
  const int lane = threadIdx.x % kWarp, group = lane / 4, pair = lane % 4;
#pragma unroll
  for (int t = 0; t < kPieces; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t at = piece_address<kD>(0, row0 + group + 8 * i, t) + 4 * pair;
      *reinterpret_cast<uint32_t*>(shared + at) =
          pack_bf16(acc[t][2 * i] * factor[i], acc[t][2 * i + 1] * factor[i]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16 * kPieces / kWarp; ++i) {
    const int at = i * kWarp + lane, r = row0 + at / kPieces, piece = at % kPieces;
    if (r < rows)
      *reinterpret_cast<int4*>(to + row(r) * kD + piece * 8) =
          *reinterpret_cast<const int4*>(shared + piece_address<kD>(0, r, piece));
  }
}

// The heads of one key head that a block takes: all, or a slice where they are more than its rows.
struct HeadSlice {
  int head, first, width;
};
__device__ inline HeadSlice head_slice(int y, int blocks, int heads, int kv_heads) {
  const int group = heads / kv_heads, slices = blocks / kv_heads, size = (group + slices - 1) / slices;
  const int head = y / slices, in_group = y % slices * size;
  return {head, head * group + in_group, min(size, group - in_group)};
}

// The online softmax of one tile of scores, two rows a lane: max and sum are of this warp's rows so far, in
// base 2; p = exp2(score * factor - max), and acc is scaled along. seen(row half, column) masks.
template <int kD, int kN, typename Seen>
__device__ inline void softmax_tile(float (&p)[kN / 8][4], float (&acc)[kD / 8][4], float (&max)[2],
                                    float (&sum)[2], float factor, bool masked, Seen seen) {
  const int pair = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float m = max[i];
#pragma unroll
    for (int t = 0; t < kN / 8; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = p[t][2 * i + c];
        x = masked && !seen(i, 8 * t + pair + c) ? -INFINITY : x * factor;
        m = fmaxf(m, x);
      }
    }
    m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, 1));
    m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, 2));
    const float shift = m == -INFINITY ? 0.0f : m;  // nothing seen so far
    const float correction = exp2f(max[i] - shift);
    float total = 0;
#pragma unroll
    for (int t = 0; t < kN / 8; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = p[t][2 * i + c];
        x = exp2f(x - shift);
        total += x;
      }
    }
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    sum[i] = sum[i] * correction + total;
    max[i] = m;
#pragma unroll
    for (int t = 0; t < kD / 8; ++t) {
      acc[t][2 * i] *= correction;
      acc[t][2 * i + 1] *= correction;
    }
  }
}

// grid (tasks, K * slices), block 128: a block owns 64 rows, a warp 16 of them. Tiles of 64 keys, double
// buffered. Shared memory: the rows of q, two tiles each of k and v. Traffic: q and o once; k and v once a
// block.
template <int kD>
__global__ __launch_bounds__(kTensorThreads) void attention_tensor_forward_kernel(
    const __nv_bfloat16* __restrict__ q,  // (N, H, D)
    const __nv_bfloat16* __restrict__ k,  // (M, K, D)
    const __nv_bfloat16* __restrict__ v,  // (M, K, D)
    const PlanSegment* __restrict__ segments, const PlanSpan* __restrict__ spans,
    const PlanTask* __restrict__ tasks, float scale,
    __nv_bfloat16* __restrict__ o,  // (N, H, D)
    float* __restrict__ lse,        // (N, H) or null
    int heads, int kv_heads) {
  extern __shared__ __align__(16) char tensor_shared[];
  char* shared = tensor_shared;
  constexpr int kTile = 2 * kD * kForwardKeys;
  const uint32_t queries = shared_address(shared), tiles = queries + 2 * kD * kTensorRows;
  const PlanTask task = tasks[blockIdx.x];
  const PlanSegment s = segments[task.segment];
  const HeadSlice h = head_slice(blockIdx.y, gridDim.y, heads, kv_heads);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, rows = task.count * h.width,
            row0 = 16 * warp;
  const int spans_total = span_keys(s, spans);
  const int key_count = spans_total + (s.kv_begin >= 0 ? task.begin + task.count : 0);
  const auto head_row = [&](int r) {
    return static_cast<int64_t>(s.q_begin + task.begin + r / h.width) * heads + h.first + r % h.width;
  };
  const auto start_tile = [&](int k0, int stage) {
    const int count = min(kForwardKeys, key_count - k0);
    const auto row = [&](int r) { return key_row(s, spans, spans_total, k0 + r) * kv_heads + h.head; };
    copy_tile<kD, kForwardKeys, kTensorThreads>(tiles + 2 * stage * kTile, k, threadIdx.x, count, row);
    copy_tile<kD, kForwardKeys, kTensorThreads>(tiles + (2 * stage + 1) * kTile, v, threadIdx.x, count, row);
    copy_commit();
  };
  copy_tile<kD, kTensorRows, kTensorThreads>(queries, q, threadIdx.x, rows, head_row);
  start_tile(0, 0);
  uint32_t a[kD / 16][4];
  float acc[kD / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  int last[2];  // the last key that a row sees: spans come first
#pragma unroll
  for (int i = 0; i < 2; ++i)
    last[i] = min(key_count - 1, spans_total + task.begin + (row0 + lane / 4 + 8 * i) / h.width);
  int stage = 0;
  for (int k0 = 0; k0 < key_count; k0 += kForwardKeys, stage ^= 1) {
    if (k0 + kForwardKeys < key_count) {
      start_tile(k0 + kForwardKeys, stage ^ 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    if (k0 == 0) {
#pragma unroll
      for (int step = 0; step < kD / 16; ++step) load_a<kD>(a[step], queries, row0, step);
    }
    float p[kForwardKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kD / 16; ++step)
      multiply_rows<kD, kForwardKeys>(p, a[step], tiles + 2 * stage * kTile, step);
    // Only the last tiles hold keys that some query does not see.
    const bool masked = k0 + kForwardKeys > min(key_count, spans_total + task.begin + 1);
    softmax_tile<kD, kForwardKeys>(p, acc, max, sum, scale * kLog2E, masked,
                                   [&](int i, int column) { return k0 + column <= last[i]; });
    multiply_columns<kD, kForwardKeys>(acc, p, tiles + (2 * stage + 1) * kTile);
    __syncthreads();
  }
  const float inverse[2] = {1.0f / sum[0], 1.0f / sum[1]};
  store_rows<kD>(acc, inverse, shared, row0, o, rows, head_row);
  if (lse && lane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row0 + lane / 4 + 8 * i;
      if (r < rows) lse[head_row(r)] = max[i] / kLog2E + logf(sum[i]);
    }
  }
}

// Few queries and many keys: decoding. grid (tasks, K * slices), block 256: the block owns up to 16 rows, and
// its eight warps share the keys: warp w takes every eighth tile of 32 keys, waits for its own copies only,
// and the eight partial results are merged in the order of the warps. A row's result depends on its own
// segment alone. Shared memory: the rows of q, and one tile each of k and v a warp. Traffic: k and v once.
template <int kD>
__global__ __launch_bounds__(kDecodeWarps<kD>* kWarp) void attention_decode_kernel(
    const __nv_bfloat16* __restrict__ q, const __nv_bfloat16* __restrict__ k,
    const __nv_bfloat16* __restrict__ v, const PlanSegment* __restrict__ segments,
    const PlanSpan* __restrict__ spans, const PlanTask* __restrict__ tasks, float scale,
    __nv_bfloat16* __restrict__ o, float* __restrict__ lse, int heads, int kv_heads) {
  extern __shared__ __align__(16) char tensor_shared[];
  char* shared = tensor_shared;
  __shared__ float part_max[kDecodeWarps<kD>][kDecodeRows], part_sum[kDecodeWarps<kD>][kDecodeRows];
  constexpr int kTile = 2 * kD * kDecodeKeys;
  static_assert(kDecodeRows * kD * 4 <= 2 * kTile);  // a warp's partial result takes the place of its tiles
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t queries = shared_address(shared), own = queries + 2 * kD * kDecodeRows + warp * 2 * kTile;
  const PlanTask task = tasks[blockIdx.x];
  const PlanSegment s = segments[task.segment];
  const HeadSlice h = head_slice(blockIdx.y, gridDim.y, heads, kv_heads);
  const int rows = task.count * h.width, spans_total = span_keys(s, spans);
  const int key_count = spans_total + (s.kv_begin >= 0 ? task.begin + task.count : 0);
  const auto head_row = [&](int r) {
    return static_cast<int64_t>(s.q_begin + task.begin + r / h.width) * heads + h.first + r % h.width;
  };
  if (warp == 0) copy_tile<kD, kDecodeRows, kWarp>(queries, q, lane, rows, head_row);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  uint32_t a[kD / 16][4];
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) load_a<kD>(a[step], queries, 0, step);
  float acc[kD / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  int last[2];  // the last key that a row sees: spans come first
#pragma unroll
  for (int i = 0; i < 2; ++i)
    last[i] = min(key_count - 1, spans_total + task.begin + (lane / 4 + 8 * i) / h.width);
  for (int k0 = warp * kDecodeKeys; k0 < key_count; k0 += kDecodeWarps<kD> * kDecodeKeys) {
    const int count = min(kDecodeKeys, key_count - k0);
    const auto row = [&](int r) { return key_row(s, spans, spans_total, k0 + r) * kv_heads + h.head; };
    copy_tile<kD, kDecodeKeys, kWarp>(own, k, lane, count, row);
    copy_tile<kD, kDecodeKeys, kWarp>(own + kTile, v, lane, count, row);
    copy_commit();
    copy_wait<0>();
    __syncwarp();
    float p[kDecodeKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) multiply_rows<kD, kDecodeKeys>(p, a[step], own, step);
    const bool masked = k0 + kDecodeKeys > min(key_count, spans_total + task.begin + 1);
    softmax_tile<kD, kDecodeKeys>(p, acc, max, sum, scale * kLog2E, masked,
                                  [&](int i, int column) { return k0 + column <= last[i]; });
    multiply_columns<kD, kDecodeKeys>(acc, p, own + kTile);
    __syncwarp();
  }
  float* part =
      reinterpret_cast<float*>(shared + 2 * kD * kDecodeRows);  // (warps, rows, D), in the tiles' place
  float* mine = part + warp * (2 * kTile / 4);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = lane / 4 + 8 * i;
#pragma unroll
    for (int t = 0; t < kD / 8; ++t)
      *reinterpret_cast<float2*>(mine + r * kD + 8 * t + 2 * (lane % 4)) = {acc[t][2 * i], acc[t][2 * i + 1]};
    if (lane % 4 == 0) {
      part_max[warp][r] = max[i];
      part_sum[warp][r] = sum[i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * kD / 2; i += kDecodeWarps<kD> * kWarp) {
    const int r = i / (kD / 2), j = 2 * (i % (kD / 2));
    float most = part_max[0][r];
#pragma unroll
    for (int w = 1; w < kDecodeWarps<kD>; ++w) most = fmaxf(most, part_max[w][r]);
    float total = 0;
    float2 value = {};
#pragma unroll
    for (int w = 0; w < kDecodeWarps<kD>; ++w) {
      const float factor = exp2f(part_max[w][r] - most);
      const float2 x = *reinterpret_cast<const float2*>(part + w * (2 * kTile / 4) + r * kD + j);
      total += part_sum[w][r] * factor;
      value.x += x.x * factor;
      value.y += x.y * factor;
    }
    const float inverse = 1.0f / total;
    *reinterpret_cast<uint32_t*>(o + head_row(r) * kD + j) = pack_bf16(value.x * inverse, value.y * inverse);
    if (lse && j == 0) lse[head_row(r)] = most / kLog2E + logf(total);
  }
}

// dq. grid (tasks, K * slices), block 128, ownership as in forward: 64 rows a block. Tiles of keys, double
// buffered. Shared memory: the rows of q and d_o, two tiles each of k and v.
template <int kD>
__global__ __launch_bounds__(kTensorThreads) void attention_tensor_query_backward_kernel(
    const __nv_bfloat16* __restrict__ q, const __nv_bfloat16* __restrict__ k,
    const __nv_bfloat16* __restrict__ v, const __nv_bfloat16* __restrict__ d_o, const float* __restrict__ lse,
    const float* __restrict__ delta, const PlanSegment* __restrict__ segments,
    const PlanSpan* __restrict__ spans, const PlanTask* __restrict__ tasks, float scale,
    __nv_bfloat16* __restrict__ dq, int heads, int kv_heads) {
  extern __shared__ __align__(16) char tensor_shared[];
  char* shared = tensor_shared;
  constexpr int kKeys = kBackwardTile<kD>, kTile = 2 * kD * kKeys, kOwn = 2 * kD * kTensorRows;
  const uint32_t queries = shared_address(shared), grads = queries + kOwn, tiles = grads + kOwn;
  const PlanTask task = tasks[blockIdx.x];
  const PlanSegment s = segments[task.segment];
  const HeadSlice h = head_slice(blockIdx.y, gridDim.y, heads, kv_heads);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, rows = task.count * h.width,
            row0 = 16 * warp;
  const int spans_total = span_keys(s, spans);
  const int key_count = spans_total + (s.kv_begin >= 0 ? task.begin + task.count : 0);
  const auto head_row = [&](int r) {
    return static_cast<int64_t>(s.q_begin + task.begin + r / h.width) * heads + h.first + r % h.width;
  };
  const auto start_tile = [&](int k0, int stage) {
    const int count = min(kKeys, key_count - k0);
    const auto row = [&](int r) { return key_row(s, spans, spans_total, k0 + r) * kv_heads + h.head; };
    copy_tile<kD, kKeys, kTensorThreads>(tiles + 2 * stage * kTile, k, threadIdx.x, count, row);
    copy_tile<kD, kKeys, kTensorThreads>(tiles + (2 * stage + 1) * kTile, v, threadIdx.x, count, row);
    copy_commit();
  };
  copy_tile<kD, kTensorRows, kTensorThreads>(queries, q, threadIdx.x, rows, head_row);
  copy_tile<kD, kTensorRows, kTensorThreads>(grads, d_o, threadIdx.x, rows, head_row);
  start_tile(0, 0);
  float row_lse[2], row_delta[2];
  int last[2];  // the last key that a row sees: spans come first
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row0 + lane / 4 + 8 * i;
    last[i] = min(key_count - 1, spans_total + task.begin + r / h.width);
    row_lse[i] = r < rows ? lse[head_row(r)] * kLog2E : 0.0f;
    row_delta[i] = r < rows ? delta[head_row(r)] : 0.0f;
  }
  float acc[kD / 8][4] = {};
  int stage = 0;
  for (int k0 = 0; k0 < key_count; k0 += kKeys, stage ^= 1) {
    if (k0 + kKeys < key_count) {
      start_tile(k0 + kKeys, stage ^ 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const uint32_t keys = tiles + 2 * stage * kTile, values = keys + kTile;
    float p[kKeys / 8][4] = {}, ds[kKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
      uint32_t a[4];
      load_a<kD>(a, queries, row0, step);
      multiply_rows<kD, kKeys>(p, a, keys, step);
      load_a<kD>(a, grads, row0, step);
      multiply_rows<kD, kKeys>(ds, a, values, step);
    }
    const bool masked = k0 + kKeys > min(key_count, spans_total + task.begin + 1);
#pragma unroll
    for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = e / 2, key = k0 + 8 * t + 2 * (lane % 4) + e % 2;
        const bool seen = !masked || key <= last[i];
        ds[t][e] = seen ? exp2f(p[t][e] * (scale * kLog2E) - row_lse[i]) * (ds[t][e] - row_delta[i]) : 0.0f;
      }
    }
    multiply_columns<kD, kKeys>(acc, ds, keys);
    __syncthreads();
  }
  const float factor[2] = {scale, scale};
  store_rows<kD>(acc, factor, shared, row0, dq, rows, head_row);
}

// dk and dv. grid (key blocks, K), block 128: a block owns 64 rows of keys of one key head, a warp 16 of
// them, and takes all queries of all segments that see them, in the plan's order. Tiles of query rows, double
// buffered. Shared memory: the rows of k and v, two tiles each of q and d_o with their lse and delta.
template <int kD>
__global__ __launch_bounds__(kTensorThreads) void attention_tensor_key_backward_kernel(
    const __nv_bfloat16* __restrict__ q, const __nv_bfloat16* __restrict__ k,
    const __nv_bfloat16* __restrict__ v, const __nv_bfloat16* __restrict__ d_o, const float* __restrict__ lse,
    const float* __restrict__ delta, const PlanSegment* __restrict__ segments,
    const PlanSpan* __restrict__ spans, const int32_t* __restrict__ part_offsets,
    const PlanPart* __restrict__ parts, float scale, __nv_bfloat16* __restrict__ dk,
    __nv_bfloat16* __restrict__ dv, int64_t key_rows, int heads, int kv_heads) {
  extern __shared__ __align__(16) char tensor_shared[];
  char* shared = tensor_shared;
  constexpr int kRows = kBackwardTile<kD>, kTile = 2 * kD * kRows, kOwn = 2 * kD * kTensorRows;
  const uint32_t keys = shared_address(shared), values = keys + kOwn, tiles = values + kOwn;
  float* statistics =
      reinterpret_cast<float*>(shared + 2 * kOwn + 4 * kTile);  // (stage, lse and delta, kRows)
  const int head = blockIdx.y, group = heads / kv_heads, warp = threadIdx.x / kWarp,
            lane = threadIdx.x % kWarp;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * kTensorRows;
  const int own_rows = static_cast<int>(min(static_cast<int64_t>(kTensorRows), key_rows - base)),
            row0 = 16 * warp;
  const auto own_row = [&](int r) { return (base + r) * kv_heads + head; };
  copy_tile<kD, kTensorRows, kTensorThreads>(keys, k, threadIdx.x, own_rows, own_row);
  copy_tile<kD, kTensorRows, kTensorThreads>(values, v, threadIdx.x, own_rows, own_row);
  copy_commit();
  float acc_k[kD / 8][4] = {}, acc_v[kD / 8][4] = {};
  for (int index = part_offsets[blockIdx.x]; index < part_offsets[blockIdx.x + 1]; ++index) {
    const PlanPart part = parts[index];
    const PlanSegment s = segments[part.segment];
    const int spans_total = span_keys(s, spans), rows = s.q_count * group;
    const bool own_part = part.key >= spans_total;
    // The segment's key number of row 0 of this block, and the first query that sees any key of the part.
    const int key0 = part.key + static_cast<int>(base - part.row);
    const int begin = own_part ? (part.key - spans_total) * group / kRows * kRows : 0;
    const auto head_row = [&](int r) {
      return static_cast<int64_t>(s.q_begin + r / group) * heads + head * group + r % group;
    };
    const auto start_tile = [&](int r0, int stage) {
      const int count = min(kRows, rows - r0);
      const auto row = [&](int r) { return head_row(r0 + r); };
      copy_tile<kD, kRows, kTensorThreads>(tiles + 2 * stage * kTile, q, threadIdx.x, count, row);
      copy_tile<kD, kRows, kTensorThreads>(tiles + (2 * stage + 1) * kTile, d_o, threadIdx.x, count, row);
      copy_commit();
      if (static_cast<int>(threadIdx.x) < kRows) {
        const bool valid = static_cast<int>(threadIdx.x) < count;
        const int64_t at = valid ? row(threadIdx.x) : 0;
        statistics[2 * stage * kRows + threadIdx.x] = valid ? lse[at] * kLog2E : 0.0f;
        statistics[(2 * stage + 1) * kRows + threadIdx.x] = valid ? delta[at] : 0.0f;
      }
    };
    start_tile(begin, 0);
    int stage = 0;
    for (int r0 = begin; r0 < rows; r0 += kRows, stage ^= 1) {
      if (r0 + kRows < rows) {
        start_tile(r0 + kRows, stage ^ 1);
        copy_wait<1>();
      } else {
        copy_wait<0>();
      }
      __syncthreads();
      const uint32_t queries = tiles + 2 * stage * kTile, grads = queries + kTile;
      float p[kRows / 8][4] = {}, ds[kRows / 8][4] = {};
#pragma unroll
      for (int step = 0; step < kD / 16; ++step) {
        uint32_t a[4];
        load_a<kD>(a, keys, row0, step);
        multiply_rows<kD, kRows>(p, a, queries, step);
        load_a<kD>(a, values, row0, step);
        multiply_rows<kD, kRows>(ds, a, grads, step);
      }
      // The first row of the tile that sees a key, for this lane's two keys; none where the part does not
      // hold it.
      int first[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int own = row0 + lane / 4 + 8 * i, in_part = static_cast<int>(base - part.row) + own;
        first[i] = in_part < 0 || in_part >= part.count ? kRows
                   : own_part                           ? (key0 + own - spans_total) * group - r0
                                                        : 0;
      }
#pragma unroll
      for (int t = 0; t < kRows / 8; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 8 * t + 2 * (lane % 4) + e % 2;
          const bool seen = column >= first[e / 2] && column < rows - r0;
          const float* of_tile = statistics + 2 * stage * kRows + column;
          p[t][e] = seen ? exp2f(p[t][e] * (scale * kLog2E) - of_tile[0]) : 0.0f;
          ds[t][e] = p[t][e] * (ds[t][e] - of_tile[kRows]);
        }
      }
      multiply_columns<kD, kRows>(acc_v, p, grads);
      multiply_columns<kD, kRows>(acc_k, ds, queries);
      __syncthreads();
    }
  }
  copy_wait<0>();
  __syncthreads();
  const float factor[2] = {scale, scale}, one[2] = {1.0f, 1.0f};
  store_rows<kD>(acc_k, factor, shared, row0, dk, own_rows, own_row);
  store_rows<kD>(acc_v, one, shared + kOwn, row0, dv, own_rows, own_row);
}

}  // namespace gantrain::cuda
