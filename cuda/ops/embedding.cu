#include "cuda/kernels/embedding.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/packed_parts.cuh"

namespace gantrain {

using namespace cuda;

namespace {

// One launch a part: each leaves the other parts' rows alone.
void embed_packed(const Context& context, const EmbedForward& a) {
  constexpr int kThreads = 128;
  const int64_t n = a.tokens.dim(0), c = a.table->cols();
  const bool wide = aligned_to(16, raw<float>(a.prompt), raw<float>(a.x));  // rows are whole blocks
  for (const PackedPart& part : as_cuda(*a.table).parts())
    with_weights(a.table->dtype(), [&]<typename T>(Tag<T>) {
      const auto with = [&]<PackedCode kCode>() {
        launch(wide ? embed_packed_kernel<kCode, T, true, kThreads>
                    : embed_packed_kernel<kCode, T, false, kThreads>,
               dim3(blocks_for(n, 1)), kThreads, 0, context.stream, part.blocks, nf4_tensor(part, 0),
               raw<int32_t>(a.tokens), raw<float>(a.prompt), part.begin == 0, raw<float>(a.x), part.begin,
               part.rows, c);
      };
      with_packed(part.type, with);
    });
}

}  // namespace

void CudaOps::embed_forward(const EmbedForward& a) {
  constexpr int kThreads = 128;
  const int64_t n = a.tokens.dim(0), c = a.table->cols();
  const auto* prompt = raw<float>(a.prompt);
  auto* x = raw<float>(a.x);
  if (a.table->packed()) return embed_packed(context_, a);
  with_weights(a.table->dtype(), [&]<typename T>(Tag<T>) {
    const auto* table = static_cast<const T*>(as_cuda(*a.table).data());
    const bool wide = c % kWide<T> == 0 && aligned_to(16, prompt, x, table);
    const int log_lanes = log_row_lanes(c, wide ? 4 : 1);
    launch(wide ? embed_forward_kernel<T, 4, kThreads> : embed_forward_kernel<T, 1, kThreads>,
           blocks_for(n << log_lanes, kThreads), kThreads, 0, context_.stream, table, raw<int32_t>(a.tokens),
           prompt, x, n, c, log_lanes);
  });
}

void CudaOps::embed_backward(const EmbedBackward& a) {
  constexpr int kThreads = 64;
  const int64_t n = a.tokens.dim(0), c = a.dprompt.dim(1);
  launch(embed_backward_kernel<kThreads>, blocks_for(c, kThreads), kThreads, 0, context_.stream,
         raw<float>(a.dx), raw<int32_t>(a.tokens), raw<float>(a.dprompt), n, c);
}

}  // namespace gantrain
