#include "model/runner.h"

#include <algorithm>
#include <cmath>

#include "core/ops.h"

namespace gantrain {

ForwardArgs Runner::args() {
  return {.llama = &llama_,
          .batch = &*batch_,
          .prompt = prompt_,
          .acts = &acts_,
          .cache = nullptr,
          .slots = {},
          .lora = lora_};
}

void Runner::forward(const PackedBatch& batch, ConstTensor prompt, Saving saving, int layers,
                     const LoraAdapter* lora) {
  const int n = layers < 0 ? static_cast<int>(llama_.layers().size()) : layers;
  GT_CHECK(batch.rows() > 0, "an empty batch");
  Arena counting;
  take_activations(counting, device_, llama_, batch.rows(), saving, n, batch.plan(), lora);
  {
    const Range range(device_, "activations");
    Arena& arena = workspace_.reserve(counting.peak());
    acts_ = take_activations(arena, device_, llama_, batch.rows(), saving, n, batch.plan(), lora);
  }
  batch_.emplace(device_, batch);
  prompt_ = prompt;
  lora_ = lora;
  llama_forward(device_, args());
}

OwnedTensor Runner::output_rows(const std::vector<int32_t>& rows) {
  OwnedTensor out(device_, DType::kF32, {static_cast<int64_t>(rows.size()), llama_.config().hidden_size});
  const OwnedTensor rows_d = upload(device_, std::span<const int32_t>(rows));
  gather_rows(device_, {.x = acts_.x_out, .rows = rows_d, .y = out});
  return out;
}

std::vector<float> Runner::logits(const std::vector<int32_t>& rows) {
  const int64_t vocab = llama_.config().vocab_size;
  std::vector<float> out(rows.size() * static_cast<size_t>(vocab));
  // In chunks, straight to the host.
  constexpr size_t kChunk = 256;
  for (size_t at = 0; at < rows.size(); at += kChunk) {
    const size_t n = std::min(kChunk, rows.size() - at);
    const OwnedTensor rows_d = upload(device_, std::span<const int32_t>(rows.data() + at, n));
    OwnedTensor chunk(device_, DType::kF32, {static_cast<int64_t>(n), vocab});
    HeadLogits op{.x = acts_.x_out,
                  .rows = rows_d,
                  .gain = llama_.final_gain(),
                  .w = &llama_.head(),
                  .eps = llama_.config().rms_norm_eps,
                  .logits = chunk,
                  .scratch = {}};
    const int64_t bytes = std::max<int64_t>(1, head_logits_scratch(device_, op));
    op.scratch = head_workspace_.reserve(bytes).take(DType::kU8, {bytes});
    head_logits(device_, op);
    device_.copy_out(out.data() + at * static_cast<size_t>(vocab), chunk);
  }
  return out;
}

void Runner::begin_backward() {
  GT_CHECK(acts_.saving != Saving::kNothing,
           "this batch was run for inference: nothing was saved for a backward");
  device_.fill_zero(acts_.dx);
}

HeadResult Runner::head(const HeadRequest& request, bool backward) {
  const Range range(device_, "head");
  const size_t n = request.rows.size();
  GT_CHECK(request.labels.size() == n, "{} rows, {} labels", n, request.labels.size());
  GT_CHECK(request.ce_weight.empty() || request.ce_weight.size() == n, "{} rows, {} weights", n,
           request.ce_weight.size());
  HeadResult result;
  if (n == 0) return result;
  const int64_t r = static_cast<int64_t>(n);
  auto maybe = [&](const auto& v) {
    using T = typename std::decay_t<decltype(v)>::value_type;
    return v.empty() ? OwnedTensor() : upload(device_, std::span<const T>(v));
  };
  const OwnedTensor rows = maybe(request.rows), labels = maybe(request.labels), ce = maybe(request.ce_weight);
  const OwnedTensor kl_weight = maybe(request.kl_weight), keys = maybe(request.keys),
                    counters = maybe(request.counters);
  OwnedTensor nll(device_, DType::kF32, {r}), kl, argmax;
  if (!request.reference.empty()) kl = OwnedTensor(device_, DType::kF32, {r});
  if (request.argmax) argmax = OwnedTensor(device_, DType::kI32, {r});
  HeadLoss op{.x = acts_.x_out,
              .rows = rows,
              .gain = llama_.final_gain(),
              .w = &llama_.head(),
              .eps = llama_.config().rms_norm_eps,
              .labels = labels,
              .ce_weight = ce,
              .reference = request.reference,
              .kl_weight = kl_weight,
              .embedding = request.embedding_grad.empty() ? nullptr : &llama_.embedding(),
              .embedding_grad = request.embedding_grad,
              .key = keys,
              .counter = counters,
              .tau = request.tau,
              .top_k = request.top_k,
              .nll = nll,
              .kl = kl,
              .argmax = argmax,
              .dx = backward ? acts_.dx : Tensor(),
              .scratch = {}};
  op.scratch = head_workspace_.reserve(head_loss_scratch(device_, op))
                   .take(DType::kU8, {head_loss_scratch(device_, op)});
  head_loss(device_, op);
  result.nll = download(device_, nll);
  if (!kl.empty()) result.kl = download(device_, kl);
  if (request.argmax) {
    result.argmax.resize(n);
    device_.copy_out(result.argmax.data(), argmax);
  }
  for (size_t i = 0; i < n; ++i)
    if (!std::isfinite(result.nll[i]) || (!result.kl.empty() && !std::isfinite(result.kl[i]))) {
      find_non_finite(device_, args());
      fail(
          "the loss of scored row {} is not finite ({}), though every activation before the head is; a "
          "smaller "
          "optimizer.lr or dtype=f32 may help",
          i, result.nll[i]);
    }
  return result;
}

void Runner::add_output_gradient(ConstTensor dy, const std::vector<int32_t>& rows) {
  const OwnedTensor rows_d = upload(device_, std::span<const int32_t>(rows));
  scatter_add_rows(device_, {.dy = dy, .rows = rows_d, .dx = acts_.dx});
}

void Runner::backward() { llama_backward(device_, args()); }

void Runner::add_prompt_gradient(Tensor dprompt) {
  embed_backward(device_, {.dx = acts_.dx, .tokens = batch_->tokens, .dprompt = dprompt});
}

OwnedTensor Runner::input_gradient_rows(const std::vector<int32_t>& rows) {
  OwnedTensor out(device_, DType::kF32, {static_cast<int64_t>(rows.size()), llama_.config().hidden_size});
  const OwnedTensor rows_d = upload(device_, std::span<const int32_t>(rows));
  gather_rows(device_, {.x = acts_.dx, .rows = rows_d, .y = out});
  return out;
}

}  // namespace gantrain
