#include "cuda/kernels/attention_general.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/runtime/plan.h"

namespace gantrain {

using namespace cuda;

namespace {

static_assert(sizeof(PlanSegment) == sizeof(AttentionSegment) && sizeof(PlanSpan) == sizeof(KvSpan));
static_assert(sizeof(PlanTask) == sizeof(QueryTask) && sizeof(PlanPart) == sizeof(KeyPart));

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
PlanShape general_shape(const Sizes& z) {
  return {.queries_per_task = std::max(1, kGeneralRows / (z.h / z.k)),
          .keys_per_block = kGeneralRows,
          .query_rows = z.n,
          .key_rows = z.m};
}

// Blocks that the heads of one key head take: each has kGeneralRows rows at most.
int slices(const Sizes& z) { return (z.h / z.k + kGeneralRows - 1) / kGeneralRows; }

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

}  // namespace

int64_t CudaOps::scratch(const AttentionForward&) const { return 0; }
int64_t CudaOps::scratch(const AttentionBackward& a) const { return a.q.dim(0) * a.q.dim(1) * 4; }

void CudaOps::attention_forward(const AttentionForward& a) {
  const Sizes z = sizes(a);
  const DevicePlan& plan = plans_.get(*a.plan, general_shape(z));
  if (!plan.covers_queries) {  // rows of no segment
    GT_CUDA(cudaMemsetAsync(a.o.raw(), 0, static_cast<size_t>(a.o.bytes()), context_.stream));
    if (!a.lse.empty())
      GT_CUDA(cudaMemsetAsync(a.lse.raw(), 0, static_cast<size_t>(a.lse.bytes()), context_.stream));
  }
  with_type(a.q.dtype(), [&]<typename S>(Tag<S>) {
    with_columns(z.d, [&]<int kColumns>() {
      launch(attention_general_forward_kernel<S, kColumns>, dim3(plan.task_count, z.k * slices(z)),
             dim3(kWarp, kGeneralWarps), general_shared_bytes(z.d, false), context_.stream, raw<S>(a.q),
             raw<S>(a.k), raw<S>(a.v), segments(plan), spans(plan), tasks(plan), a.scale, raw<S>(a.o),
             raw<float>(a.lse), z.h, z.k, z.d);
    });
  });
}

void CudaOps::attention_backward(const AttentionBackward& a) {
  constexpr int kRows = 4;
  const Sizes z = sizes(a);
  const DevicePlan& plan = plans_.get(*a.plan, general_shape(z));
  auto* delta = raw<float>(a.scratch);
  if (!plan.covers_queries)
    GT_CUDA(cudaMemsetAsync(a.dq.raw(), 0, static_cast<size_t>(a.dq.bytes()), context_.stream));
  with_pair(a.d_o.dtype(), a.q.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    launch(attention_delta_kernel<S, T, kRows>, blocks_for(z.n * z.h, kRows), dim3(kWarp, kRows), 0,
           context_.stream, raw<S>(a.o), raw<T>(a.d_o), delta, z.n * z.h, z.d);
    with_columns(z.d, [&]<int kColumns>() {
      launch(attention_general_query_backward_kernel<S, T, kColumns>, dim3(plan.task_count, z.k * slices(z)),
             dim3(kWarp, kGeneralWarps), general_shared_bytes(z.d, true), context_.stream, raw<S>(a.q),
             raw<S>(a.k), raw<S>(a.v), raw<T>(a.d_o), raw<float>(a.lse), delta, segments(plan), spans(plan),
             tasks(plan), a.scale, raw<T>(a.dq), z.h, z.k, z.d);
      launch(attention_general_key_backward_kernel<S, T, kColumns>, dim3(plan.key_blocks, z.k),
             dim3(kWarp, kGeneralWarps), general_shared_bytes(z.d, true), context_.stream, raw<S>(a.q),
             raw<S>(a.k), raw<S>(a.v), raw<T>(a.d_o), raw<float>(a.lse), delta, segments(plan), spans(plan),
             plan.part_offsets, parts(plan), a.scale, raw<T>(a.dk), raw<T>(a.dv), z.m, z.h, z.k, z.d);
    });
  });
}

void CudaOps::kv_append(const KvAppend& a) {
  constexpr int kThreads = 128;
  const int64_t n = a.k.dim(0), bytes = a.k.dim(1) * a.k.dim(2) * dtype_size(a.k.dtype());
  const auto run = [&]<typename Word>(Tag<Word>) {
    launch(kv_append_kernel<Word, kThreads>, blocks_for(n, 1), kThreads, 0, context_.stream, raw<Word>(a.k),
           raw<Word>(a.v), raw<int32_t>(a.slots), raw<Word>(a.k_cache), raw<Word>(a.v_cache),
           bytes / static_cast<int64_t>(sizeof(Word)));
  };
  if (bytes % 16 == 0 && aligned_to(16, a.k.raw(), a.v.raw(), a.k_cache.raw(), a.v_cache.raw()))
    run(Tag<int4>{});
  else
    run(Tag<uint16_t>{});
}

}  // namespace gantrain
