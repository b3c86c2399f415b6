// Flash attention on tensor cores (Dao 2307.08691), bf16, head sizes 64 and 128: core/ops/attention.h.
//
// Rows are (query, head) pairs of the heads that share one key head, so grouped heads need no copies of keys.
// The rows of a segment's keys are listed in device memory (cuda/runtime/plan.h): a shared prompt is listed
// by each of its readers and stored once, and its gradient is summed by the block that owns its keys. Nothing
// is added by atomics: every sum has a fixed order.
#pragma once

#include "cuda/device/attention_rows.cuh"
#include "cuda/device/attention_tile.cuh"
#include "cuda/device/plan.cuh"
#include "cuda/device/types.cuh"

namespace gantrain::cuda {

constexpr int kTensorWarps = 4, kTensorThreads = kTensorWarps * kWarp;
constexpr int kTensorRows = 16 * kTensorWarps;  // own rows of a block: 16 a warp
constexpr int kForwardKeys = 64;                // keys of a tile

// Rows of the other side in a tile of backward: what the registers leave room for.
template <int kD>
constexpr int kBackwardTile = kD == 64 ? 64 : 32;

template <int kD>
constexpr int kForwardShared = kRowBytes<kD>*(kTensorRows + 4 * kForwardKeys);
template <int kD>
constexpr int kQueryBackwardShared = kRowBytes<kD>*(2 * kTensorRows + 4 * kBackwardTile<kD>);
template <int kD>
constexpr int kKeyBackwardShared = kQueryBackwardShared<kD> + (2 * 8 + 4) * kBackwardTile<kD>;

// The tiles of keys and values that a block walks through, double buffered: stage 0 and 1 of `tiles` hold
// kKeys rows of k and as many of v. Places of rows come from the segment's list, two tiles ahead.
template <int kD, int kKeys>
struct KeyTiles {
  using Copy = TileCopy<kD, kKeys, kTensorThreads>;
  static constexpr uint32_t kTile = kRowBytes<kD> * kKeys, kStage = 2 * kTile;
  const __nv_bfloat16* k;  // the thread's piece of the block's key head, in row 0
  int64_t to_v;            // bytes from a piece of k to that of v
  const int32_t* list;     // the thread's rows in the tile that is looked up next
  int row_bytes, count;    // bytes between rows; tiles
  Copy copy;
  uint32_t tiles,
      stage;  // where the stages begin; the one that is filled next, once the tile before has arrived
  int places[Copy::kPasses];

  __device__ KeyTiles(const __nv_bfloat16* k_all, const __nv_bfloat16* v_all, const int32_t* keys,
                      int key_count, int kv_heads, int head, uint32_t at)
      : to_v(distance(k_all, v_all)),
        row_bytes(kv_heads * kRowBytes<kD>),
        count((key_count + kKeys - 1) / kKeys),
        copy(threadIdx.x),
        tiles(at),
        stage(0) {
    k = k_all + head * kD + copy.piece * 8;
    list = keys + copy.row;
    copy.at = opaque(copy.at);
    look_up();
  }
  __device__ void look_up() {
#pragma unroll
    for (int i = 0; i < Copy::kPasses; i += 4) {
      const int4 four = *reinterpret_cast<const int4*>(list + i);
      places[i] = four.x, places[i + 1] = four.y, places[i + 2] = four.z, places[i + 3] = four.w;
    }
    list += kKeys;
  }
  // Starts copying the tile that was looked up, and looks up the next.
  __device__ void start() {
#pragma unroll
    for (int i = 0; i < Copy::kPasses; ++i) {
      const void* from = row_address(k, places[i], row_bytes);
      copy_async(copy.to(tiles + stage, i), from);
      copy_async(copy.to(tiles + stage, i) + kTile, away(from, to_v));
    }
    copy_commit();
    look_up();
  }
  // Waits for tile `tile`, starts the next, and returns where the tile's keys lie; values lie kTile behind.
  // Every thread of the block must call: what the block read of the tile before is overwritten from here on.
  __device__ uint32_t arrive(int tile) {
    copy_wait<0>();
    __syncthreads();
    const uint32_t now = tiles + stage;
    stage ^= kStage;
    if (tile + 1 < count) start();
    return now;
  }
};

// grid (tasks, K * slices), block 128: a block owns 64 rows, a warp 16 of them. Tiles of 64 keys, double
// buffered. The first tile and those that the causal edge crosses are taken with care (mask, maximum,
// rescaling, no values of groups of 16 keys that the warp does not see); the loop over the others keeps the
// maximum. Shared memory: the rows of q, two tiles each of k and v. Traffic: q and o once; k and v once a
// block.
template <int kD>
__global__ __launch_bounds__(kTensorThreads) void attention_tensor_forward_kernel(
    const __nv_bfloat16* __restrict__ q,  // (N, H, D)
    const __nv_bfloat16* __restrict__ k,  // (M, K, D)
    const __nv_bfloat16* __restrict__ v,  // (M, K, D)
    const PlanSegment* __restrict__ segments, const PlanTask* __restrict__ tasks,
    const int32_t* __restrict__ keys, float scale,
    __nv_bfloat16* __restrict__ o,  // (N, H, D)
    float* __restrict__ lse,        // (N, H) or null
    int heads, int kv_heads) {
  extern __shared__ __align__(256) char tensor_shared[];
  using Tiles = KeyTiles<kD, kForwardKeys>;
  const uint32_t queries = shared_address(tensor_shared);
  const PlanTask task = tasks[blockIdx.x];
  const PlanSegment s = segments[task.segment];
  const HeadSlice h = head_slice(blockIdx.y, gridDim.y, heads, kv_heads);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, rows = task.count * h.width,
            row0 = 16 * warp;
  const bool causal = s.kv_begin >= 0;
  const int key_count = task.span_keys + (causal ? task.begin + task.count : 0);
  // Tiles from here on hold keys that some query does not see.
  const int full = (causal ? task.span_keys + task.begin + 1 : key_count) / kForwardKeys;
  const auto head_row = [&](int r) {
    return static_cast<int64_t>(s.q_begin + task.begin + r / h.width) * heads + h.first + r % h.width;
  };
  copy_rows<kD, kTensorRows, kTensorThreads>(queries, q, threadIdx.x, rows, head_row);
  Tiles tiles(k, v, keys + task.keys, key_count, kv_heads, h.head, queries + kRowBytes<kD> * kTensorRows);
  tiles.start();
  const uint32_t along = opaque(along_offset<kD>()), down = opaque(down_offset<kD>());
  float acc[kD / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  int last[2];  // the last key that a row sees: spans come first
#pragma unroll
  for (int i = 0; i < 2; ++i)
    last[i] = causal ? task.span_keys + task.begin + min(task.count - 1, (row0 + lane / 4 + 8 * i) / h.width)
                     : key_count - 1;
  // The last key that any of the warp's rows sees.
  const int seen =
      causal ? task.span_keys + task.begin + min(task.count - 1, (row0 + 15) / h.width) : key_count - 1;
  uint32_t now = tiles.arrive(0);
  uint32_t a[kD / 16][4];
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) load_a(a[step], queries + row0 * kRowBytes<kD> + down, step);
  const auto scores = [&](float(&p)[kForwardKeys / 8][4]) {
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) multiply_rows<kD, kForwardKeys>(p, a[step], now + along, step);
  };
  const float factor = scale * kLog2E;
  for (int tile = 0; tile < tiles.count;) {
    if (const int groups = (seen - tile * kForwardKeys + 16) >> 4; groups > 0) {
      float p[kForwardKeys / 8][4] = {};
      scores(p);
      softmax_tile<kD, kForwardKeys>(p, acc, max, sum, factor, [&](int i, int column) {
        return tile * kForwardKeys + column <= last[i];
      });
      multiply_columns<kD, kForwardKeys>(acc, p, now + Tiles::kTile + down, groups);
    }
    while (++tile < tiles.count) {
      now = tiles.arrive(tile);
      if (tile >= full) break;
      float p[kForwardKeys / 8][4] = {};
      scores(p);
      if (!softmax_tile_lazily<kForwardKeys>(p, max, sum, factor)) break;
      multiply_columns<kD, kForwardKeys>(acc, p, now + Tiles::kTile + down);
    }
  }
  const float total[2] = {quad_sum(sum[0]), quad_sum(sum[1])};
  const float inverse[2] = {1.0f / total[0], 1.0f / total[1]};
  store_rows<kD>(acc, inverse, tensor_shared, row0, rows, [&](int r) { return o + head_row(r) * kD; });
  if (lse && lane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row0 + lane / 4 + 8 * i;
      if (r < rows) lse[head_row(r)] = max[i] / kLog2E + logf(total[i]);
    }
  }
}

// The sum of the products of eight values each, added to `sum` in order.
__device__ inline float add_products(const __nv_bfloat16* x, const __nv_bfloat16* y, float sum) {
  const auto xs = load_vector<4>(reinterpret_cast<const uint32_t*>(x)),
             ys = load_vector<4>(reinterpret_cast<const uint32_t*>(y));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 a = unpack_pair<__nv_bfloat16>(xs.value[i]), b = unpack_pair<__nv_bfloat16>(ys.value[i]);
    sum = fmaf(a.y, b.y, fmaf(a.x, b.x, sum));
  }
  return sum;
}

// dq, and of each row what key backward needs besides: delta = <o, d_o>, summed by the four lanes that share
// it, and lse in base 2. At the end, where asked for, <dq, q> of each row, and dq rotated back. grid (tasks,
// K * slices), block 128, ownership as in forward: 64 rows a block; q and d_o stay in registers. Tiles of
// keys, double buffered. Shared memory: the rows of q and d_o, two tiles each of k and v. Traffic: q, o and
// dq once, d_o twice; k and v once a block; 8 B a row written.
template <int kD>
__global__ __launch_bounds__(kTensorThreads, 2) void attention_tensor_query_backward_kernel(
    const __nv_bfloat16* __restrict__ q, const __nv_bfloat16* __restrict__ k,
    const __nv_bfloat16* __restrict__ v, const __nv_bfloat16* __restrict__ o,
    const __nv_bfloat16* __restrict__ d_o, const float* __restrict__ lse,  // (N, H)
    float2* __restrict__ statistics,                                       // (N, H) =  lse log2(e), delta
    const PlanSegment* __restrict__ segments, const PlanTask* __restrict__ tasks,
    const int32_t* __restrict__ keys, float scale, AttentionGradients<__nv_bfloat16> to, int heads,
    int kv_heads) {
  extern __shared__ __align__(256) char tensor_shared[];
  constexpr int kKeys = kBackwardTile<kD>, kOwn = kRowBytes<kD> * kTensorRows;
  using Tiles = KeyTiles<kD, kKeys>;
  const uint32_t queries = shared_address(tensor_shared), grads = queries + kOwn;
  const PlanTask task = tasks[blockIdx.x];
  const PlanSegment s = segments[task.segment];
  const HeadSlice h = head_slice(blockIdx.y, gridDim.y, heads, kv_heads);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, rows = task.count * h.width,
            row0 = 16 * warp;
  const bool causal = s.kv_begin >= 0;
  const int key_count = task.span_keys + (causal ? task.begin + task.count : 0);
  const int full = (causal ? task.span_keys + task.begin + 1 : key_count) / kKeys;
  const auto head_row = [&](int r) {
    return static_cast<int64_t>(s.q_begin + task.begin + r / h.width) * heads + h.first + r % h.width;
  };
  copy_rows<kD, kTensorRows, kTensorThreads>(queries, q, threadIdx.x, rows, head_row);
  copy_rows<kD, kTensorRows, kTensorThreads>(grads, d_o, threadIdx.x, rows, head_row);
  copy_commit();
  Tiles tiles(k, v, keys + task.keys, key_count, kv_heads, h.head, grads + kOwn);
  tiles.start();
  const uint32_t along = opaque(along_offset<kD>()), down = opaque(down_offset<kD>());
  float row_lse[2], minus_delta[4];
  int last[2];  // the last key that a row sees: spans come first
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row0 + lane / 4 + 8 * i;
    last[i] = causal ? task.span_keys + task.begin + min(task.count - 1, r / h.width) : key_count - 1;
    const int64_t at = r < rows ? head_row(r) : 0;
    float delta = 0;
    if (r < rows) {
#pragma unroll
      for (int j = lane % 4 * 8; j < kD; j += 32)
        delta = add_products(o + at * kD + j, d_o + at * kD + j, delta);
    }
    delta = quad_sum(delta);
    row_lse[i] = r < rows ? lse[at] * kLog2E : 0.0f;
    minus_delta[2 * i] = minus_delta[2 * i + 1] = -delta;
    if (r < rows && lane % 4 == 0) statistics[at] = {row_lse[i], delta};
  }
  float acc[kD / 8][4] = {};
  uint32_t a_q[kD / 16][4], a_do[kD / 16][4];
  copy_wait<1>();
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    load_a(a_q[step], queries + row0 * kRowBytes<kD> + down, step);
    load_a(a_do[step], grads + row0 * kRowBytes<kD> + down, step);
  }
  // Of kN keys whose rows of k lie from `now` on; `left[i]`: the last of them that the lane's row sees, less
  // its own first column.
  const auto add_keys = [&]<int kN>(std::integral_constant<int, kN>, uint32_t now, const int(&left)[2],
                                    bool masked) {
    float p[kN / 8][4] = {}, ds[kN / 8][4];
    multiply_rows<kD, kN>(ds, a_do[0], now + Tiles::kTile + along, 0,
                          [&](int) -> const float(&)[4] { return minus_delta; });
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
      multiply_rows<kD, kN>(p, a_q[step], now + along, step);
      if (step > 0) multiply_rows<kD, kN>(ds, a_do[step], now + Tiles::kTile + along, step);
    }
#pragma unroll
    for (int t = 0; t < kN / 8; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = e / 2, column = 8 * t + e % 2;
        float x = exp2_fast(fmaf(p[t][e], scale * kLog2E, -row_lse[i]));
        if (masked && column > left[i]) x = 0.0f;
        ds[t][e] *= x;
      }
    }
    multiply_columns<kD, kN>(acc, ds, now + down);
  };
  int tile = 0, left[2] = {};
  for (; tile < full; ++tile) add_keys(std::integral_constant<int, kKeys>{}, tiles.arrive(tile), left, false);
#pragma unroll
  for (int i = 0; i < 2; ++i) left[i] = last[i] - full * kKeys - 2 * (lane % 4);
  // Keys that the causal edge crosses, 16 at a time: `seen` more that some row of the warp sees.
  int seen = row0 >= rows ? 0
             : causal     ? task.span_keys + task.begin + min(task.count - 1, (row0 + 15) / h.width) + 1
                          : key_count;
  for (seen -= full * kKeys; tile < tiles.count; ++tile) {
    uint32_t now = tiles.arrive(tile);
#pragma unroll 1
    for (int group = 0; group < kKeys / 16; ++group) {
      if (seen > 0) add_keys(std::integral_constant<int, 16>{}, now, left, true);
      now += 16 * kRowBytes<kD>;
      seen -= 16;
      left[0] -= 16;
      left[1] -= 16;
    }
  }
#pragma unroll
  for (int t = 0; t < kD / 8; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e) acc[t][e] *= scale;
  const auto query = [&](int r) { return static_cast<int64_t>(s.q_begin + task.begin + r / h.width); };
  if (to.dot) {
    float sum[2] = {};
    add_row_products<kD>(acc, tensor_shared, row0, sum);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row0 + lane / 4 + 8 * i;
      sum[i] = quad_sum(sum[i]);
      if (r < rows && lane % 4 == 0) to.dot[query(r) * (heads + kv_heads) + h.first + r % h.width] = sum[i];
    }
  }
  if (to.rotary) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row0 + lane / 4 + 8 * i;
      if (r < rows) rotate_back<kD>(acc, i, to.rotary + query(r) * kD);
    }
  }
  const float one[2] = {1.0f, 1.0f};
  store_rows<kD>(acc, one, tensor_shared, row0, rows,
                 [&](int r) { return to.query(query(r), h.first + r % h.width, kD); });
}

// dk and dv. grid (key blocks, K), block 128: a block owns 64 rows of keys of one key head, a warp 16 of
// them, and takes all queries of all segments that see them, in the plan's order, in runs of tiles (PlanRun).
// Tiles of `per` queries with `width` heads each, double buffered; copies go on from one run to the next. k
// stays in registers, and of v what they have room for. At the end, where asked for, <dk, k> + <dv, v> of
// each row, and dk rotated back. Shared memory: the rows of k and v, two tiles each of q and d_o, their lse
// and delta.
template <int kD>
__global__ __launch_bounds__(kTensorThreads) void attention_tensor_key_backward_kernel(
    const __nv_bfloat16* __restrict__ q, const __nv_bfloat16* __restrict__ k,
    const __nv_bfloat16* __restrict__ v, const __nv_bfloat16* __restrict__ d_o,
    const float2* __restrict__ statistics,  // (N, H): lse log2(e), delta
    const int32_t* __restrict__ run_offsets, const PlanRun* __restrict__ runs, float scale, int per,
    int width, AttentionGradients<__nv_bfloat16> to, int64_t key_rows, int heads, int kv_heads) {
  extern __shared__ __align__(256) char tensor_shared[];
  constexpr int kRows = kBackwardTile<kD>, kOwn = kRowBytes<kD> * kTensorRows, kSteps = kD / 16;
  constexpr int kKept = kD == 64 ? kSteps : 1;  // steps of v that stay in registers
  constexpr int kGroup =
      kD == 64 ? 16 : kRows;  // rows of a tile at the causal edge; registers for another loop
  constexpr uint32_t kTile = kRowBytes<kD> * kRows, kStage = 2 * kTile;
  using Copy = TileCopy<kD, kRows, kTensorThreads>;
  const uint32_t own_k = shared_address(tensor_shared), own_v = own_k + kOwn, tiles = own_v + kOwn;
  const uint32_t columns = tiles + 2 * kStage;  // (stage, kRows) pairs of lse and delta
  // Bytes from a tile's first row in (N, H, D) to the others.
  auto* in_tile = reinterpret_cast<uint32_t*>(tensor_shared + 2 * kOwn + 2 * kStage + 2 * 8 * kRows);
  const int head = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, row0 = 16 * warp;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * kTensorRows;
  const int own_rows = static_cast<int>(min(static_cast<int64_t>(kTensorRows), key_rows - base));
  const auto own_row = [&](int r) { return (base + r) * kv_heads + head; };
  copy_rows<kD, kTensorRows, kTensorThreads>(own_k, k, threadIdx.x, own_rows, own_row);
  copy_rows<kD, kTensorRows, kTensorThreads>(own_v, v, threadIdx.x, own_rows, own_row);
  const int end = run_offsets[blockIdx.x + 1];
  int index = run_offsets[blockIdx.x];

  // What is copied next: `left` queries from row `row` of (N, H) on, in the run `ahead`.
  const Copy copy(threadIdx.x);
  const int64_t to_do = distance(q, d_o);
  const int first_head = head * (heads / kv_heads), thread = threadIdx.x;
  const int statistics_in_tile = thread / width * heads + thread % width;
  if (thread < kRows) in_tile[thread] = statistics_in_tile * kRowBytes<kD>;
  const void* q_row = q;
  int ahead = index, left = 0, row = 0, run_width = 0;
  const auto next_run = [&]() {
    if (ahead == end) return;
    const PlanRun& run = runs[ahead++];
    left = run.queries;
    run_width = run.width;
    row = run.query * heads + first_head + run.head;
    q_row = q + static_cast<int64_t>(row) * kD + copy.piece * 8;
  };
  uint32_t stage = 0;
  const auto start = [&]() {
    const int count = min(left, per) * run_width;
    static_assert(Copy::kPasses == 4);
    const uint4 of_thread = *reinterpret_cast<const uint4*>(in_tile + copy.row);
    const uint32_t to_row[4] = {of_thread.x, of_thread.y, of_thread.z, of_thread.w};
#pragma unroll
    for (int i = 0; i < Copy::kPasses; ++i) {
      const bool valid = copy.row + i < count;
      const void* from = away(q_row, to_row[i]);
      copy_async(copy.to(tiles + stage, i), from, valid);
      copy_async(copy.to(tiles + stage, i) + kTile, away(from, to_do), valid);
    }
    if (thread < kRows)
      copy_async_pair(columns + stage / kStage * kRows * 8 + thread * 8,
                      statistics + row + statistics_in_tile, thread < count);
    copy_commit();
    stage ^= kStage;
    row += per * heads;
    q_row = away(q_row, static_cast<int64_t>(per) * heads * kRowBytes<kD>);
    left -= per;
    if (left <= 0) next_run();
  };
  next_run();
  __syncthreads();
  start();

#if __CUDA_ARCH__ >= 1000  // where the compiler keeps them by itself, and spills others for it if told to
  const uint32_t along = along_offset<kD>(), down = down_offset<kD>();
#else
  const uint32_t along = opaque(along_offset<kD>()), down = opaque(down_offset<kD>());
#endif
  const uint32_t lane_row = row0 * kRowBytes<kD> + down;
  float acc_k[kD / 8][4] = {}, acc_v[kD / 8][4] = {};
  uint32_t a_k[kSteps][4], a_v[kKept][4];
  copy_wait<0>();
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) load_a(a_k[step], own_k + lane_row, step);
#pragma unroll
  for (int step = 0; step < kKept; ++step) load_a(a_v[step], own_v + lane_row, step);
  // Waits for the tile under way and starts the next one; where its rows lie, and their lse and delta.
  struct Arrived {
    uint32_t rows, columns;
  };
  const auto arrive = [&]() -> Arrived {
    copy_wait<0>();
    __syncthreads();
    const Arrived now{tiles + (stage ^ kStage), columns + (stage ^ kStage) / kStage * kRows * 8};
    start();
    return now;
  };
  // Of kN rows. Where `masked`, first[i]: how many of them, from the lane's first on, do not see its key.
  const auto add_rows = [&]<int kN>(std::integral_constant<int, kN>, uint32_t now, uint32_t now_columns,
                                    const int(&first)[2], bool masked) {
    float p[kN / 8][4] = {}, ds[kN / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      multiply_rows<kD, kN>(p, a_k[step], now + along, step);
      if (step < kKept) {
        multiply_rows<kD, kN>(ds, a_v[step], now + kTile + along, step);
      } else {
        uint32_t a[4];
        load_a(a, own_v + lane_row, step);
        multiply_rows<kD, kN>(ds, a, now + kTile + along, step);
      }
    }
#pragma unroll
    for (int t = 0; t < kN / 8; ++t) {
      float of_tile[4];  // lse and delta of this lane's two columns
      load_shared(of_tile, now_columns + (8 * t + 2 * (lane % 4)) * 8);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float x = exp2_fast(fmaf(p[t][e], scale * kLog2E, -of_tile[2 * (e % 2)]));
        if (masked && 8 * t + e % 2 < first[e / 2]) x = 0.0f;
        p[t][e] = x;
        ds[t][e] = x * (ds[t][e] - of_tile[2 * (e % 2) + 1]);
      }
    }
    multiply_columns<kD, kN>(acc_v, p, now + kTile + down);
    multiply_columns<kD, kN>(acc_k, ds, now + down);
  };
  for (; index < end; ++index) {
    const PlanRun& run = runs[index];
    int left_in_run = run.queries, first[2] = {}, unseen = 0;
    if (!run.masked) {
      for (; left_in_run >= per; left_in_run -= per) {
        const Arrived now = arrive();
        add_rows(std::integral_constant<int, kRows>{}, now.rows, now.columns, first, false);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row0 + lane / 4 + 8 * i;
        first[i] = r >= run.low && r < run.high ? (r + run.shift) * width - 2 * (lane % 4) : 1 << 30;
      }
      // Rows that see none of the warp's keys.
      const int lowest = max(row0, run.low);
      unseen = lowest < min(row0 + 16, run.high) ? (lowest + run.shift) * width : 1 << 30;
    }
    // Tiles that the causal edge crosses, and the run's last if it is not full, a group of rows at a time.
    for (; left_in_run > 0; left_in_run -= per) {
      const Arrived now = arrive();
      const int count = min(left_in_run, per) * width;
#pragma unroll 1
      for (int row = 0; row < kRows; row += kGroup) {
        const int of_group[2] = {first[0] - row, first[1] - row};
        if (row < count && unseen < row + kGroup)
          add_rows(std::integral_constant<int, kGroup>{}, now.rows + row * kRowBytes<kD>,
                   now.columns + row * 8, of_group, true);
      }
      first[0] -= per * width;
      first[1] -= per * width;
      unseen -= per * width;
    }
  }
  // The copies still under way are of no bytes and go to tiles; the rows of k and v are the warp's own.
  const KeyPlace place = key_place(kTensorRows);
#pragma unroll
  for (int t = 0; t < kD / 8; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e) acc_k[t][e] *= scale;
  if (to.dot) {
    float sum[2] = {};
    add_row_products<kD>(acc_k, tensor_shared, row0, sum);
    add_row_products<kD>(acc_v, tensor_shared + kOwn, row0, sum);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row0 + lane / 4 + 8 * i;
      const int64_t query = place.row + r - to.front;
      sum[i] = quad_sum(sum[i]);
      if (r < own_rows && query >= 0 && lane % 4 == 0)
        to.dot[query * (heads + kv_heads) + heads + place.head] = sum[i];
    }
  }
  if (to.rotary) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row0 + lane / 4 + 8 * i;
      const int64_t query = place.row + r - to.front;
      if (r < own_rows && query >= 0) rotate_back<kD>(acc_k, i, to.rotary + query * kD);
    }
  }
  const float one[2] = {1.0f, 1.0f};
  store_rows<kD>(acc_k, one, tensor_shared, row0, own_rows, [&](int r) {
    return to.key(place.row + r) + to.at(place.row + r, place.head, kv_heads, kD);
  });
  store_rows<kD>(acc_v, one, tensor_shared + kOwn, row0, own_rows, [&](int r) {
    return to.value(place.row + r) + to.at(place.row + r, place.head, kv_heads, kD);
  });
}

}  // namespace gantrain::cuda
