// Attention of few queries and many keys, as in decoding, on tensor cores: bf16, head sizes 64 and 128. A
// context is cut into pieces of kPieceKeys keys, a block each, and the pieces' results are merged in their
// order (Flash-Decoding).
#pragma once

#include "cuda/device/plan.cuh"
#include "cuda/kernels/attention_tile.cuh"

namespace gantrain::cuda {

constexpr int kDecodeKeys = 32, kDecodeRows = 16;
constexpr int kPieceKeys =
    512;  // 4 K/V tiles a warp with heads of 128; of the traffic, partial results are 3 % at most
constexpr int kMergeThreads = 128;

// What fits into the 99 KiB that the smaller GPUs of a generation have.
template <int kD>
constexpr int kDecodeWarps = kD == 64 ? 8 : 4;
// Values between the rows of a partial result in shared memory: eight more, so that four rows lie in
// different banks.
template <int kD>
constexpr int kPartStride = kD + 8;
template <int kD>
constexpr int kDecodeShared = kRowBytes<kD>*(kDecodeRows + 2 * kDecodeWarps<kD> * kDecodeKeys) +
                              2 * 4 * kDecodeWarps<kD>* kDecodeRows;

// A partial result in scratch: kD values of rows of the softmax's numerator, and what it is relative to.
struct PartialRow {
  float max, sum;  // in base 2
};

// grid (pieces, K * slices), block kDecodeWarps * 32: a block owns one piece of the keys of up to 16 rows.
// Its warps take the piece's tiles of 32 keys in turn and wait for their own copies only; their results are
// merged in the order of the warps. A row's result depends on its own segment alone. The only piece of a task
// gives the result; of several, each writes its partial result. Shared memory: the rows of q, one tile each
// of k and v a warp, and the warps' maxima and sums. Traffic: k and v once; a partial result is (D + 2)
// values a row.
template <int kD>
__global__ __launch_bounds__(kDecodeWarps<kD>* kWarp, 1) void attention_decode_kernel(
    const __nv_bfloat16* __restrict__ q,  // (N, H, D)
    const __nv_bfloat16* __restrict__ k,  // (M, K, D)
    const __nv_bfloat16* __restrict__ v,  // (M, K, D)
    const PlanSegment* __restrict__ segments, const PlanSpan* __restrict__ spans,
    const PlanTask* __restrict__ tasks, const PlanPiece* __restrict__ pieces, float scale,
    __nv_bfloat16* __restrict__ o,      // (N, H, D)
    float* __restrict__ lse,            // (N, H) or null
    float* __restrict__ partial,        // (slots, K * slices, part_rows, D)
    PartialRow* __restrict__ relative,  // (slots, K * slices, part_rows)
    int part_rows, int heads, int kv_heads) {
  extern __shared__ __align__(256) char tensor_shared[];
  constexpr int kTile = kRowBytes<kD> * kDecodeKeys, kWarps = kDecodeWarps<kD>, kStride = kPartStride<kD>;
  static_assert(kDecodeRows * kStride * 4 <=
                2 * kTile);  // a warp's partial result takes the place of its tiles
  char* in_tiles = tensor_shared + kRowBytes<kD> * kDecodeRows;
  auto* warp_rows = reinterpret_cast<PartialRow*>(in_tiles + kWarps * 2 * kTile);  // (warps, rows)
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t queries = shared_address(tensor_shared), own = shared_address(in_tiles) + warp * 2 * kTile;
  const PlanPiece piece = pieces[blockIdx.x];
  const PlanTask task = tasks[piece.task];
  const PlanSegment s = segments[task.segment];
  const HeadSlice h = head_slice(blockIdx.y, gridDim.y, heads, kv_heads);
  const int rows = task.count * h.width;
  const bool causal = s.kv_begin >= 0;
  const int key_end = min(piece.first + kPieceKeys, task.span_keys + (causal ? task.begin + task.count : 0));
  const int seen_by_all = causal ? task.span_keys + task.begin + 1 : key_end;
  const auto head_row = [&](int r) {
    return static_cast<int64_t>(s.q_begin + task.begin + r / h.width) * heads + h.first + r % h.width;
  };
  if (warp == 0) copy_rows<kD, kDecodeRows, kWarp>(queries, q, lane, rows, head_row);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  const uint32_t along = along_offset<kD>(), down = down_offset<kD>();
  uint32_t a[kD / 16][4];
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) load_a(a[step], queries + down, step);
  float acc[kD / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  int last[2];  // the last key that a row sees: spans come first
#pragma unroll
  for (int i = 0; i < 2; ++i)
    last[i] =
        causal ? min(key_end - 1, task.span_keys + task.begin + (lane / 4 + 8 * i) / h.width) : key_end - 1;
  int span = s.span_begin,
      span_first = 0;  // where this lane's keys have come to; span_first: the span's first key
  constexpr int kPieces = kD / 8;
  const auto copy_tile = [&](int k0) {
    // Each lane finds the row of one key; keys past the end are zeros.
    const int key = k0 + lane;
    int row = -1;
    if (key < key_end) {
      if (key >= task.span_keys) {
        row = s.kv_begin + key - task.span_keys;
      } else {
        while (key - span_first >= spans[span].count) span_first += spans[span++].count;
        row = spans[span].begin + key - span_first;
      }
    }
    const int at_lane = lane / kPieces, at_piece = lane % kPieces;
#pragma unroll
    for (int r = 0; r < kDecodeKeys; r += kWarp / kPieces) {
      const int place = __shfl_sync(kAllLanes, row, r + at_lane);
      const int64_t from =
          (static_cast<int64_t>((place < 0 ? 0 : place)) * kv_heads + h.head) * kD + at_piece * 8;
      const uint32_t to = own + piece_offset<kD>(r + at_lane, at_piece);
      copy_async(to, k + from, place >= 0);
      copy_async(to + kTile, v + from, place >= 0);
    }
  };
  for (int k0 = piece.first + warp * kDecodeKeys; k0 < key_end; k0 += kWarps * kDecodeKeys) {
    copy_tile(k0);
    copy_commit();
    copy_wait<0>();
    __syncwarp();
    float p[kDecodeKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) multiply_rows<kD, kDecodeKeys>(p, a[step], own + along, step);
    const bool masked = k0 + kDecodeKeys > min(key_end, seen_by_all);
    softmax_tile<kD, kDecodeKeys>(p, acc, max, sum, scale * kLog2E,
                                  [&](int i, int column) { return !masked || k0 + column <= last[i]; });
    multiply_columns<kD, kDecodeKeys>(acc, p, own + kTile + down);
    __syncwarp();
  }
  float* part = reinterpret_cast<float*>(in_tiles);  // (warps, rows, kStride), in the tiles' place
  float* mine = part + warp * (2 * kTile / 4);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = lane / 4 + 8 * i;
#pragma unroll
    for (int t = 0; t < kD / 8; ++t)
      *reinterpret_cast<float2*>(mine + r * kStride + 8 * t + 2 * (lane % 4)) = {acc[t][2 * i],
                                                                                 acc[t][2 * i + 1]};
    const float total = quad_sum(sum[i]);
    if (lane % 4 == 0) warp_rows[warp * kDecodeRows + r] = {max[i], total};
  }
  __syncthreads();
  const int64_t slot_row = (static_cast<int64_t>(piece.slot) * gridDim.y + blockIdx.y) * part_rows;
  for (int i = threadIdx.x; i < rows * kD / 2; i += kWarps * kWarp) {
    const int r = i / (kD / 2), j = 2 * (i % (kD / 2));
    float most = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, warp_rows[w * kDecodeRows + r].max);
    // A row that sees none of the piece's keys has nothing to add.
    const float shift = most == -INFINITY ? 0.0f : most;
    float total = 0;
    float2 value = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const PartialRow of_warp = warp_rows[w * kDecodeRows + r];
      const float factor = exp2_fast(of_warp.max - shift);
      const float2 x = *reinterpret_cast<const float2*>(part + w * (2 * kTile / 4) + r * kStride + j);
      total += of_warp.sum * factor;
      value.x += x.x * factor;
      value.y += x.y * factor;
    }
    if (piece.slot >= 0) {
      *reinterpret_cast<float2*>(partial + (slot_row + r) * kD + j) = value;
      if (j == 0) relative[slot_row + r] = {most, total};
      continue;
    }
    const float inverse = 1.0f / total;
    *reinterpret_cast<uint32_t*>(o + head_row(r) * kD + j) = pack_bf16(value.x * inverse, value.y * inverse);
    if (lse && j == 0) lse[head_row(r)] = most / kLog2E + logf(total);
  }
}

// The pieces' results in their order. grid (merges, K * slices), block kMergeThreads: a block owns the rows
// of one task, a thread four columns of a row. Traffic: every partial result once.
template <int kD>
__global__ __launch_bounds__(kMergeThreads) void attention_merge_kernel(
    const float* __restrict__ partial,  // (slots, K * slices, part_rows, D)
    const PartialRow* __restrict__ relative, const PlanSegment* __restrict__ segments,
    const PlanTask* __restrict__ tasks, const PlanMerge* __restrict__ merges,
    __nv_bfloat16* __restrict__ o,  // (N, H, D)
    float* __restrict__ lse,        // (N, H) or null
    int part_rows, int heads, int kv_heads) {
  const PlanMerge merge = merges[blockIdx.x];
  const PlanTask task = tasks[merge.task];
  const PlanSegment s = segments[task.segment];
  const HeadSlice h = head_slice(blockIdx.y, gridDim.y, heads, kv_heads);
  const int64_t step = static_cast<int64_t>(gridDim.y) * part_rows;
  const int64_t first = (static_cast<int64_t>(merge.slot) * gridDim.y + blockIdx.y) * part_rows;
  for (int i = threadIdx.x; i < task.count * h.width * (kD / 4); i += kMergeThreads) {
    const int r = i / (kD / 4), j = 4 * (i % (kD / 4));
    float most = -INFINITY, total = 0;
    float4 value = {};
    for (int p = 0; p < merge.count; ++p) {
      const int64_t row = first + p * step + r;
      const PartialRow of_piece = relative[row];
      const float4 x = *reinterpret_cast<const float4*>(partial + row * kD + j);
      const float larger = fmaxf(most, of_piece.max);
      if (larger == -INFINITY) continue;  // nothing seen so far
      const float before = exp2_fast(most - larger), now = exp2_fast(of_piece.max - larger);
      total = total * before + of_piece.sum * now;
      value.x = value.x * before + x.x * now;
      value.y = value.y * before + x.y * now;
      value.z = value.z * before + x.z * now;
      value.w = value.w * before + x.w * now;
      most = larger;
    }
    const float inverse = 1.0f / total;
    const int64_t row =
        static_cast<int64_t>(s.q_begin + task.begin + r / h.width) * heads + h.first + r % h.width;
    *reinterpret_cast<uint2*>(o + row * kD + j) = {pack_bf16(value.x * inverse, value.y * inverse),
                                                   pack_bf16(value.z * inverse, value.w * inverse)};
    if (lse && j == 0) lse[row] = most / kLog2E + logf(total);
  }
}

}  // namespace gantrain::cuda
