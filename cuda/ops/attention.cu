#include "cuda/kernels/attention_decode.cuh"
#include "cuda/kernels/attention_general.cuh"
#include "cuda/kernels/attention_tensor.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/qkv.h"
#include "cuda/runtime/cudnn.h"
#include "cuda/runtime/plan.h"

namespace gantrain {

using namespace cuda;

namespace {

static_assert(sizeof(PlanSegment) == sizeof(AttentionSegment) && sizeof(PlanSpan) == sizeof(KvSpan));
static_assert(sizeof(PlanTask) == sizeof(QueryTask) && sizeof(PlanPart) == sizeof(KeyPart));
static_assert(sizeof(PlanRun) == sizeof(KeyRun) && sizeof(PlanPiece) == sizeof(KeyPiece));
static_assert(sizeof(PlanMerge) == sizeof(PieceMerge) && kListed % kForwardKeys == 0);

constexpr int64_t kWidestHead = 256;

struct Sizes {
  int64_t n, m;
  int h, k, d;
};
template <typename Args>
Sizes sizes(const Args& a) {
  GT_CHECK(a.q.dim(2) <= kWidestHead, "attention: a head size of {}, expected at most {}", a.q.dim(2),
           kWidestHead);
  return {a.q.dim(0), a.k.dim(0), static_cast<int>(a.q.dim(1)), static_cast<int>(a.k.dim(1)),
          static_cast<int>(a.q.dim(2))};
}
// How the heads of one key head are dealt to blocks: `slices` blocks of `width` heads each (the last may have
// fewer).
struct Slices {
  int count, width;
};
Slices slices(const Sizes& z, int rows_per_block) {
  const int group = z.h / z.k, count = (group + rows_per_block - 1) / rows_per_block;
  return {count, (group + count - 1) / count};
}
PlanShape general_shape(const Sizes& z, bool backward) {
  return {.queries_per_task = kGeneralRows / slices(z, kGeneralRows).width,
          .keys_per_block = backward ? kGeneralRows : 0,
          .few_queries = 0,
          .query_rows = z.n,
          .key_rows = z.m};
}
PlanShape tensor_forward_shape(const Sizes& z) {
  const int width = slices(z, kTensorRows).width;
  return {.queries_per_task = kTensorRows / width,
          .keys_per_block = 0,
          .few_queries = kDecodeRows / width,
          .query_rows = z.n,
          .key_rows = z.m,
          .piece_keys = kPieceKeys,
          .lists = PlanShape::Lists::kMany};
}
PlanShape tensor_backward_shape(const Sizes& z) {
  const int tile = z.d == 64 ? kBackwardTile<64> : kBackwardTile<128>, width = slices(z, tile).width;
  return {.queries_per_task = kTensorRows / slices(z, kTensorRows).width,
          .keys_per_block = kTensorRows,
          .few_queries = 0,
          .query_rows = z.n,
          .key_rows = z.m,
          .lists = PlanShape::Lists::kAll,
          .run_queries = tile / width,
          .run_heads = width,
          .group = z.h / z.k};
}
// The tensor-core kernels take bf16, heads of 64 and 128, and rows of 16-byte pieces.
template <typename... Pointers>
bool on_tensor_cores(const Sizes& z, DType kept, DType grads, Pointers... p) {
  return kept == DType::kBF16 && grads == DType::kBF16 && (z.d == 64 || z.d == 128) && aligned_to(16, p...);
}
template <typename F>
void with_head_size(int d, F f) {
  if (d == 64)
    f.template operator()<64>();
  else
    f.template operator()<128>();
}

// f(columns) with the smallest number of 32 columns that holds a head.
template <typename F>
void with_columns(int d, F f) {
  if (d <= 32)
    f.template operator()<1>();
  else if (d <= 64)
    f.template operator()<2>();
  else if (d <= 128)
    f.template operator()<4>();
  else
    f.template operator()<8>();
}

const PlanSegment* segments(const DevicePlan& p) { return reinterpret_cast<const PlanSegment*>(p.segments); }
const PlanSpan* spans(const DevicePlan& p) { return reinterpret_cast<const PlanSpan*>(p.spans); }
const PlanTask* tasks(const DevicePlan& p) { return reinterpret_cast<const PlanTask*>(p.tasks); }
const PlanPart* parts(const DevicePlan& p) { return reinterpret_cast<const PlanPart*>(p.parts); }
const PlanRun* runs(const DevicePlan& p) { return reinterpret_cast<const PlanRun*>(p.runs); }
const PlanPiece* pieces(const DevicePlan& p) { return reinterpret_cast<const PlanPiece*>(p.pieces); }
const PlanMerge* merges(const DevicePlan& p) { return reinterpret_cast<const PlanMerge*>(p.merges); }

// Where the pieces of long contexts leave their results in scratch.
struct Partials {
  int64_t rows;   // of partial results: slots times heads and queries
  int part_rows;  // of a slot and block
  int64_t bytes(int d) const { return rows * (4 * d + static_cast<int64_t>(sizeof(PartialRow))); }
};
Partials partials(const AttentionPlan& plan, const Sizes& z) {
  const Slices s = slices(z, kTensorRows);
  const PartialResults r = partial_results(plan, tensor_forward_shape(z));
  const int part_rows = r.queries * s.width;
  return {r.slots * z.k * s.count * part_rows, part_rows};
}

template <typename T>
AttentionGradients<T> gradients(const AttentionBackward& a, const Sizes& z) {
  AttentionGradients<T> g{.q = raw<T>(a.dq),
                          .k = nullptr,
                          .v = nullptr,
                          .front_k = raw<T>(a.dk),
                          .front_v = raw<T>(a.dv),
                          .front = z.m,
                          .row_heads = z.h,
                          .rotary = nullptr,
                          .dot = nullptr};
  if (a.dy.empty()) return g;
  g.q = raw<T>(a.dy);
  g.k = g.q + z.h * z.d;
  g.v = g.k + z.k * z.d;
  g.front = z.m - z.n;
  g.row_heads = z.h + 2 * z.k;
  return g;
}

// delta and lse of every row, into scratch.
template <typename T, typename S>
void row_statistics(const AttentionBackward& a, const Sizes& z, float2* statistics, cudaStream_t stream) {
  const auto run = [&](auto kernel, int vector) {
    int lanes = 1;
    while (lanes < 32 && lanes * vector < z.d) lanes *= 2;
    launch(kernel, blocks_for(z.n * z.h, kDeltaThreads / lanes), kDeltaThreads, 0, stream, raw<S>(a.o),
           raw<T>(a.d_o), raw<float>(a.lse), statistics, z.n * z.h, z.d, lanes);
  };
  static_assert(kWide<S> == kWide<T>);
  if (z.d % kWide<S> == 0 && aligned_to(16, a.o.raw(), a.d_o.raw()))
    run(attention_delta_kernel<S, T, kWide<S>>, kWide<S>);
  else
    run(attention_delta_kernel<S, T, 1>, 1);
}

}  // namespace

int64_t CudaOps::scratch(const AttentionForward& a) const {
  const Sizes z = sizes(a);
  return on_tensor_cores(z, a.q.dtype(), DType::kBF16) ? partials(*a.plan, z).bytes(z.d) : 0;
}
int64_t CudaOps::scratch(const AttentionBackward& a) const {
  return a.q.dim(0) * a.q.dim(1) * static_cast<int64_t>(sizeof(float2));
}

void CudaOps::attention_forward(const AttentionForward& a) {
  const Sizes z = sizes(a);
  const bool tensor =
      on_tensor_cores(z, a.q.dtype(), DType::kBF16, a.q.raw(), a.k.raw(), a.v.raw(), a.o.raw());
  if (tensor && context_.attention && is_plain_batch(*a.plan, z.n, z.m) &&
      context_.attention->forward(context_.stream, a))
    return;
  const DevicePlan& plan = plans_.get(*a.plan, tensor ? tensor_forward_shape(z) : general_shape(z, false));
  if (!plan.covers_queries) {  // rows of no segment
    GT_CUDA(cudaMemsetAsync(a.o.raw(), 0, static_cast<size_t>(a.o.bytes()), context_.stream));
    if (!a.lse.empty())
      GT_CUDA(cudaMemsetAsync(a.lse.raw(), 0, static_cast<size_t>(a.lse.bytes()), context_.stream));
  }
  if (tensor) {
    using T = __nv_bfloat16;
    const auto blocks_y = static_cast<unsigned>(z.k * slices(z, kTensorRows).count);
    const Partials part = partials(*a.plan, z);
    auto* partial = raw<float>(a.scratch);
    auto* relative = reinterpret_cast<PartialRow*>(partial + part.rows * z.d);
    with_head_size(z.d, [&]<int kD>() {
      launch(attention_tensor_forward_kernel<kD>, dim3(plan.few_begin, blocks_y), kTensorThreads,
             kForwardShared<kD>, context_.stream, raw<T>(a.q), raw<T>(a.k), raw<T>(a.v), segments(plan),
             tasks(plan), plan.keys, a.scale, raw<T>(a.o), raw<float>(a.lse), z.h, z.k);
      launch(attention_decode_kernel<kD>, dim3(plan.piece_count, blocks_y), kDecodeWarps<kD> * kWarp,
             kDecodeShared<kD>, context_.stream, raw<T>(a.q), raw<T>(a.k), raw<T>(a.v), segments(plan),
             spans(plan), tasks(plan), pieces(plan), a.scale, raw<T>(a.o), raw<float>(a.lse), partial,
             relative, part.part_rows, z.h, z.k);
      launch(attention_merge_kernel<kD>, dim3(plan.merge_count, blocks_y), kMergeThreads, 0, context_.stream,
             partial, relative, segments(plan), tasks(plan), merges(plan), raw<T>(a.o), raw<float>(a.lse),
             part.part_rows, z.h, z.k);
    });
    return;
  }
  const auto blocks_y = static_cast<unsigned>(z.k * slices(z, kGeneralRows).count);
  with_type(a.q.dtype(), [&]<typename S>(Tag<S>) {
    with_columns(z.d, [&]<int kColumns>() {
      launch(attention_general_forward_kernel<S, kColumns>, dim3(plan.task_count, blocks_y),
             dim3(kWarp, kGeneralWarps), general_shared_bytes(z.d, false), context_.stream, raw<S>(a.q),
             raw<S>(a.k), raw<S>(a.v), segments(plan), spans(plan), tasks(plan), a.scale, raw<S>(a.o),
             raw<float>(a.lse), z.h, z.k, z.d);
    });
  });
}

void CudaOps::attention_backward(const AttentionBackward& a) {
  const Sizes z = sizes(a);
  const bool tensor =
      on_tensor_cores(z, a.q.dtype(), a.d_o.dtype(), a.q.raw(), a.k.raw(), a.v.raw(), a.o.raw(), a.d_o.raw(),
                      a.dq.raw(), a.dk.raw(), a.dv.raw(), a.dy.raw(), a.rotary.raw());
  if (tensor && context_.attention && is_plain_batch(*a.plan, z.n, z.m) &&
      context_.attention->backward(context_.stream, a)) {
    if (!a.dy.empty()) rotate_backward(context_, a);
    return;
  }
  const PlanShape shape = tensor ? tensor_backward_shape(z) : general_shape(z, true);
  const DevicePlan& plan = plans_.get(*a.plan, shape);
  auto* statistics = raw<float2>(a.scratch);
  if (!plan.covers_queries)  // rows of no segment
    for (const Tensor& t : {a.dq, a.dy, a.dot})
      if (!t.empty()) GT_CUDA(cudaMemsetAsync(t.raw(), 0, static_cast<size_t>(t.bytes()), context_.stream));
  const auto blocks_y = static_cast<unsigned>(z.k * slices(z, tensor ? kTensorRows : kGeneralRows).count);
  const dim3 query_grid(plan.task_count, blocks_y), key_grid(plan.key_blocks, z.k);
  if (tensor) {
    using T = __nv_bfloat16;
    GT_CHECK(z.n * z.h < (int64_t{1} << 31), "attention: {} rows of {} heads are too many for one call", z.n,
             z.h);
    AttentionGradients<T> to = gradients<T>(a, z);
    to.rotary = raw<float>(a.rotary);
    to.dot = raw<float>(a.dot);
    with_head_size(z.d, [&]<int kD>() {
      launch(attention_tensor_query_backward_kernel<kD>, query_grid, kTensorThreads, kQueryBackwardShared<kD>,
             context_.stream, raw<T>(a.q), raw<T>(a.k), raw<T>(a.v), raw<T>(a.o), raw<T>(a.d_o),
             raw<float>(a.lse), statistics, segments(plan), tasks(plan), plan.keys, a.scale, to, z.h, z.k);
      launch(attention_tensor_key_backward_kernel<kD>, key_grid, kTensorThreads, kKeyBackwardShared<kD>,
             context_.stream, raw<T>(a.q), raw<T>(a.k), raw<T>(a.v), raw<T>(a.d_o), statistics,
             plan.run_offsets, runs(plan), a.scale, shape.run_queries, shape.run_heads, to, z.m, z.h, z.k);
    });
    return;
  }
  with_pair(a.d_o.dtype(), a.q.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    row_statistics<T, S>(a, z, statistics, context_.stream);
  });
  const dim3 block(kWarp, kGeneralWarps);
  const auto shared = static_cast<size_t>(general_shared_bytes(z.d, true));
  with_pair(a.d_o.dtype(), a.q.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    const AttentionGradients<T> to = gradients<T>(a, z);
    with_columns(z.d, [&]<int kColumns>() {
      launch(attention_general_query_backward_kernel<S, T, kColumns>, query_grid, block, shared,
             context_.stream, raw<S>(a.q), raw<S>(a.k), raw<S>(a.v), raw<T>(a.d_o), statistics,
             segments(plan), spans(plan), tasks(plan), a.scale, to, z.h, z.k, z.d);
      launch(attention_general_key_backward_kernel<S, T, kColumns>, key_grid, block, shared, context_.stream,
             raw<S>(a.q), raw<S>(a.k), raw<S>(a.v), raw<T>(a.d_o), statistics, segments(plan), spans(plan),
             plan.part_offsets, parts(plan), a.scale, to, z.m, z.h, z.k, z.d);
    });
  });
  if (!a.dy.empty()) rotate_backward(context_, a);
}

void CudaOps::kv_append(const KvAppend& a) {
  constexpr int kThreads = 128;
  const int64_t n = a.k.dim(0), bytes = a.k.dim(1) * a.k.dim(2) * dtype_size(a.k.dtype());
  const auto run = [&]<typename Word>(Tag<Word>) {
    launch(kv_append_kernel<Word, kThreads>, dim3(blocks_for(n, 1), 2), kThreads, 0, context_.stream,
           raw<Word>(a.k), raw<Word>(a.v), raw<int32_t>(a.slots), raw<Word>(a.k_cache), raw<Word>(a.v_cache),
           bytes / static_cast<int64_t>(sizeof(Word)));
  };
  if (bytes % 16 == 0 && aligned_to(16, a.k.raw(), a.v.raw(), a.k_cache.raw(), a.v_cache.raw()))
    run(Tag<int4>{});
  else
    run(Tag<uint16_t>{});
}

}  // namespace gantrain
