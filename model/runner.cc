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
          .adapters = adapters_};
}

void Runner::take(const PackedBatch& batch, ConstTensor prompt, Saving saving, int layers,
                  const Adapters& adapters, const BatchRows& rows) {
  const int n = layers < 0 ? static_cast<int>(llama_.layers().size()) : layers;
  GT_CHECK(batch.rows() > 0, "an empty batch");
  const Llama& llama = adapters.on(llama_);
  BatchEnds ends = ends_of(batch, rows, n, saving != Saving::kNothing, adapters);
  Arena counting;
  take_activations(counting, device_, llama, batch.rows(), saving, n, batch.plan(), adapters, ends);
  {
    const Range range(device_, "activations");
    Arena& arena = workspace_.reserve(counting.peak());
    acts_ = take_activations(arena, device_, llama, batch.rows(), saving, n, batch.plan(), adapters, ends);
  }
  batch_.emplace(device_, batch, std::move(ends));
  prompt_ = prompt;
  ++batches_;
  adapters_ = adapters;
}

void Runner::forward(const PackedBatch& batch, ConstTensor prompt, Saving saving, int layers,
                     const Adapters& adapters, const BatchRows& rows) {
  take(batch, prompt, saving, layers, adapters, rows);
  llama_forward(device_, args());
}

void Runner::fill(const PackedBatch& batch, KvCache& cache, const std::vector<int32_t>& slots) {
  take(batch, {}, Saving::kNothing, -1, {}, {.read = {0}, .gradient = {}});
  const OwnedTensor slots_d = upload(device_, std::span<const int32_t>(slots));
  ForwardArgs filling = args();
  filling.cache = &cache;
  filling.slots = slots_d;
  llama_forward(device_, filling);
}

OwnedTensor Runner::upload_read(const std::vector<int32_t>& rows) {
  return upload(device_, std::span<const int32_t>(batch_->ends.places_read(rows)));
}

OwnedTensor Runner::output_rows(const std::vector<int32_t>& rows) {
  OwnedTensor out(device_, DType::kF32, {static_cast<int64_t>(rows.size()), llama_.config().hidden_size});
  const OwnedTensor rows_d = upload_read(rows);
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
    const auto first = rows.begin() + static_cast<std::ptrdiff_t>(at);
    const OwnedTensor rows_d = upload_read({first, first + static_cast<std::ptrdiff_t>(n)});
    OwnedTensor chunk(device_, DType::kF32, {static_cast<int64_t>(n), vocab});
    HeadLogits op{.x = acts_.x_out,
                  .rows = rows_d,
                  .gain = answering().final_gain(),
                  .w = &answering().head(),
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
  device_.fill_zero(acts_.dx_out);
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
  const OwnedTensor rows = upload_read(request.rows), labels = maybe(request.labels),
                    ce = maybe(request.ce_weight);
  const OwnedTensor kl_weight = maybe(request.kl_weight), keys = maybe(request.keys),
                    counters = maybe(request.counters);
  OwnedTensor nll(device_, DType::kF32, {r}), kl, argmax;
  if (!request.reference.empty()) kl = OwnedTensor(device_, DType::kF32, {r});
  if (request.argmax) argmax = OwnedTensor(device_, DType::kI32, {r});
  HeadLoss op{.x = acts_.x_out,
              .rows = rows,
              .gain = answering().final_gain(),
              .w = &answering().head(),
              .eps = llama_.config().rms_norm_eps,
              .labels = labels,
              .ce_weight = ce,
              .reference = request.reference,
              .kl_weight = kl_weight,
              .reference_gain = request.policy ? request.policy->final_gain() : ConstTensor(),
              .reference_w = request.policy ? &request.policy->head() : nullptr,
              .embedding = request.embedding_grad.empty() ? nullptr : &llama_.embedding(),
              .embedding_grad = request.embedding_grad,
              .key = keys,
              .counter = counters,
              .tau = request.tau,
              .top_k = request.top_k,
              .nll = nll,
              .kl = kl,
              .argmax = argmax,
              .dx = backward ? acts_.dx_out : Tensor(),
              .scratch = {}};
  if (const TrainedWeights* trained = adapters_.weights; trained && backward) {
    op.dw = trained->head.empty() ? trained->embedding : trained->head;
    op.dgain = trained->final_gain;
  }
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
  const OwnedTensor rows_d = upload_read(rows);
  scatter_add_rows(device_, {.dy = dy, .rows = rows_d, .dx = acts_.dx_out});
}

void Runner::backward() { llama_backward(device_, args()); }

void Runner::add_prompt_gradient(Tensor dprompt) {
  const bool all = batch_->ends.wanted.empty();
  embed_backward(device_, {.dx = all ? acts_.dx : acts_.dx_wanted,
                           .tokens = all ? batch_->tokens.view() : batch_->wanted_tokens.view(),
                           .dprompt = dprompt});
}

OwnedTensor Runner::input_gradient_rows(const std::vector<int32_t>& rows) {
  OwnedTensor out(device_, DType::kF32, {static_cast<int64_t>(rows.size()), llama_.config().hidden_size});
  std::vector<int32_t> places;
  for (const int32_t row : rows) places.push_back(batch_->ends.place_wanted(row));
  const OwnedTensor rows_d = upload(device_, std::span<const int32_t>(places));
  gather_rows(device_,
              {.x = batch_->ends.wanted.empty() ? acts_.dx : acts_.dx_wanted, .rows = rows_d, .y = out});
  return out;
}

}  // namespace gantrain
