#include "model/runner.h"

#include <cmath>

#include "core/ops.h"

namespace gantrain {

ForwardArgs Runner::args() {
  return {
      .llama = &llama_, .batch = &*batch_, .prompt = prompt_, .acts = &acts_, .cache = nullptr, .slots = {}};
}

void Runner::forward(const PackedBatch& batch, ConstTensor prompt, Saving saving, int layers) {
  const int n = layers < 0 ? static_cast<int>(llama_.layers().size()) : layers;
  GT_CHECK(batch.rows() > 0, "an empty batch");
  Arena counting;
  take_activations(counting, device_, llama_, batch.rows(), saving, n, batch.plan());
  Arena& arena = workspace_.reserve(counting.peak());
  acts_ = take_activations(arena, device_, llama_, batch.rows(), saving, n, batch.plan());
  batch_.emplace(device_, batch);
  prompt_ = prompt;
  ++batches_;
  llama_forward(device_, args());
}

OwnedTensor Runner::output_rows(const std::vector<int32_t>& rows) {
  OwnedTensor out(device_, DType::kF32, {static_cast<int64_t>(rows.size()), llama_.config().hidden_size});
  const OwnedTensor rows_d = upload(device_, std::span<const int32_t>(rows));
  gather_rows(device_, {.x = acts_.x_out, .rows = rows_d, .y = out});
  return out;
}

void Runner::begin_backward() {
  GT_CHECK(acts_.saving != Saving::kNothing,
           "this batch was run for inference: nothing was saved for a backward");
  device_.fill_zero(acts_.dx);
}

HeadReading Runner::head_later(const HeadRequest& request, bool backward) {
  const Range range(device_, "head");
  const size_t n = request.rows.size();
  GT_CHECK(request.labels.size() == n, "{} rows, {} labels", n, request.labels.size());
  GT_CHECK(request.ce_weight.empty() || request.ce_weight.size() == n, "{} rows, {} weights", n,
           request.ce_weight.size());
  HeadReading result;
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
  result.runner_ = this;
  result.batch_ = batches_;
  result.nll_ = Reading<float>(device_, nll);
  if (!kl.empty()) result.kl_ = Reading<float>(device_, kl);
  if (request.argmax) result.argmax_ = Reading<int32_t>(device_, argmax);
  if (result.nll_.ready()) (void)result.get();
  return result;
}

HeadResult HeadReading::get() const {
  HeadResult result{.nll = nll_.get(), .kl = kl_.get(), .argmax = argmax_.get()};
  for (size_t i = 0; i < result.nll.size(); ++i)
    if (!std::isfinite(result.nll[i]) || (!result.kl.empty() && !std::isfinite(result.kl[i]))) {
      const bool here = runner_->batches_ == batch_;
      if (here) find_non_finite(runner_->device_, runner_->args());
      fail("the loss of scored row {} is not finite ({}){}; a smaller optimizer.lr or dtype=f32 may help", i,
           result.nll[i], here ? ", though every activation before the head is" : "");
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

int64_t Runner::plan_bytes(const PackedBatch& batch, int64_t scored, Saving saving, bool backward) const {
  Arena counting;
  const Activations acts = take_activations(counting, device_, llama_, batch.rows(), saving,
                                            static_cast<int>(llama_.layers().size()), batch.plan());
  static std::byte present;
  auto view = [&](DType t, Shape s) { return Tensor(&present, t, s, device_.kind()); };
  const Tensor x = view(DType::kF32, {batch.rows(), llama_.config().hidden_size}),
               r = view(DType::kF32, {scored});
  const HeadLoss op{.x = x,
                    .rows = view(DType::kI32, {scored}),
                    .gain = llama_.final_gain(),
                    .w = &llama_.head(),
                    .eps = 1e-5f,
                    .labels = view(DType::kI32, {scored}),
                    .ce_weight = r,
                    .reference = {},
                    .kl_weight = {},
                    .embedding_grad = {},
                    .key = {},
                    .counter = {},
                    .nll = r,
                    .kl = {},
                    .argmax = {},
                    .dx = backward ? x : Tensor(),
                    .scratch = {}};
  return counting.peak() + (scored > 0 ? head_loss_scratch(device_, op) : 0);
}

}  // namespace gantrain
