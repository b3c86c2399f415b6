#include "cuda/kernels/attention_general.cuh"
#include "cuda/kernels/attention_tensor.cuh"

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
// How the heads of one key head are dealt to blocks: `slices` blocks of `width` heads each (the last may have
// fewer).
struct Slices {
  int count, width;
};
Slices slices(const Sizes& z, int rows_per_block) {
  const int group = z.h / z.k, count = (group + rows_per_block - 1) / rows_per_block;
  return {count, (group + count - 1) / count};
}
PlanShape general_shape(const Sizes& z) {
  return {.queries_per_task = kGeneralRows / slices(z, kGeneralRows).width,
          .keys_per_block = kGeneralRows,
          .few_queries = 0,
          .query_rows = z.n,
          .key_rows = z.m};
}
PlanShape tensor_shape(const Sizes& z) {
  const int width = slices(z, kTensorRows).width;
  return {.queries_per_task = kTensorRows / width,
          .keys_per_block = kTensorRows,
          .few_queries = kDecodeRows / width,
          .query_rows = z.n,
          .key_rows = z.m};
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

}  // namespace

int64_t CudaOps::scratch(const AttentionForward&) const { return 0; }
int64_t CudaOps::scratch(const AttentionBackward& a) const { return a.q.dim(0) * a.q.dim(1) * 4; }

void CudaOps::attention_forward(const AttentionForward& a) {
  const Sizes z = sizes(a);
  const bool tensor =
      on_tensor_cores(z, a.q.dtype(), DType::kBF16, a.q.raw(), a.k.raw(), a.v.raw(), a.o.raw());
  const DevicePlan& plan = plans_.get(*a.plan, tensor ? tensor_shape(z) : general_shape(z));
  if (!plan.covers_queries) {  // rows of no segment
    GT_CUDA(cudaMemsetAsync(a.o.raw(), 0, static_cast<size_t>(a.o.bytes()), context_.stream));
    if (!a.lse.empty())
      GT_CUDA(cudaMemsetAsync(a.lse.raw(), 0, static_cast<size_t>(a.lse.bytes()), context_.stream));
  }
  if (tensor) {
    using S = __nv_bfloat16;
    const auto blocks_y = static_cast<unsigned>(z.k * slices(z, kTensorRows).count);
    with_head_size(z.d, [&]<int kD>() {
      const auto run = [&](auto kernel, int begin, int end, int threads, size_t shared) {
        launch(kernel, dim3(end - begin, blocks_y), dim3(threads), shared, context_.stream, raw<S>(a.q),
               raw<S>(a.k), raw<S>(a.v), segments(plan), spans(plan), tasks(plan) + begin, a.scale,
               raw<S>(a.o), raw<float>(a.lse), z.h, z.k);
      };
      run(attention_tensor_forward_kernel<kD>, 0, plan.few_begin, kTensorThreads, kForwardShared<kD>);
      run(attention_decode_kernel<kD>, plan.few_begin, plan.task_count, kDecodeWarps<kD> * kWarp,
          kDecodeShared<kD>);
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
  constexpr int kRows = 4;
  const Sizes z = sizes(a);
  const bool tensor = on_tensor_cores(z, a.q.dtype(), a.d_o.dtype(), a.q.raw(), a.k.raw(), a.v.raw(),
                                      a.d_o.raw(), a.dq.raw(), a.dk.raw(), a.dv.raw());
  const DevicePlan& plan = plans_.get(*a.plan, tensor ? tensor_shape(z) : general_shape(z));
  auto* delta = raw<float>(a.scratch);
  if (!plan.covers_queries)
    GT_CUDA(cudaMemsetAsync(a.dq.raw(), 0, static_cast<size_t>(a.dq.bytes()), context_.stream));
  with_pair(a.d_o.dtype(), a.q.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    launch(attention_delta_kernel<S, T, kRows>, blocks_for(z.n * z.h, kRows), dim3(kWarp, kRows), 0,
           context_.stream, raw<S>(a.o), raw<T>(a.d_o), delta, z.n * z.h, z.d);
  });
  const auto blocks_y = static_cast<unsigned>(z.k * slices(z, tensor ? kTensorRows : kGeneralRows).count);
  const dim3 query_grid(plan.task_count, blocks_y), key_grid(plan.key_blocks, z.k);
  if (tensor) {
    using T = __nv_bfloat16;
    with_head_size(z.d, [&]<int kD>() {
      launch(attention_tensor_query_backward_kernel<kD>, query_grid, kTensorThreads, kBackwardShared<kD>,
             context_.stream, raw<T>(a.q), raw<T>(a.k), raw<T>(a.v), raw<T>(a.d_o), raw<float>(a.lse), delta,
             segments(plan), spans(plan), tasks(plan), a.scale, raw<T>(a.dq), z.h, z.k);
      launch(attention_tensor_key_backward_kernel<kD>, key_grid, kTensorThreads, kBackwardShared<kD>,
             context_.stream, raw<T>(a.q), raw<T>(a.k), raw<T>(a.v), raw<T>(a.d_o), raw<float>(a.lse), delta,
             segments(plan), spans(plan), plan.part_offsets, parts(plan), a.scale, raw<T>(a.dk), raw<T>(a.dv),
             z.m, z.h, z.k);
    });
    return;
  }
  const dim3 block(kWarp, kGeneralWarps);
  const auto shared = static_cast<size_t>(general_shared_bytes(z.d, true));
  with_pair(a.d_o.dtype(), a.q.dtype(), [&]<typename T, typename S>(Tag<T>, Tag<S>) {
    with_columns(z.d, [&]<int kColumns>() {
      launch(attention_general_query_backward_kernel<S, T, kColumns>, query_grid, block, shared,
             context_.stream, raw<S>(a.q), raw<S>(a.k), raw<S>(a.v), raw<T>(a.d_o), raw<float>(a.lse), delta,
             segments(plan), spans(plan), tasks(plan), a.scale, raw<T>(a.dq), z.h, z.k, z.d);
      launch(attention_general_key_backward_kernel<S, T, kColumns>, key_grid, block, shared, context_.stream,
             raw<S>(a.q), raw<S>(a.k), raw<S>(a.v), raw<T>(a.d_o), raw<float>(a.lse), delta, segments(plan),
             spans(plan), plan.part_offsets, parts(plan), a.scale, raw<T>(a.dk), raw<T>(a.dv), z.m, z.h, z.k,
             z.d);
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
