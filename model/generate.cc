#include "model/generate.h"

#include <algorithm>
#include <map>

#include "core/ops.h"

namespace gantrain {
namespace {

// One answer being decoded.
struct Running {
  int64_t index;  // in the results
  uint64_t key;
  std::vector<KvSpan> context;  // cached rows of prompt and context
  int32_t position;             // of the next token
  int32_t slot;                 // first cache row of its own tokens
  int32_t length = 0;           // tokens drawn
};

// Draws one token for each row of logits.
class Sampler {
 public:
  Sampler(Device& device, const Llama& llama, const SamplingParams& params, int64_t rows)
      : device_(device),
        llama_(llama),
        params_(params),
        logits_(device, DType::kF32, {rows, llama.config().vocab_size}),
        token_(device, DType::kI32, {rows}),
        logp_(device, DType::kF32, {rows}) {}

  // x: residual stream; row r of the draw reads x[rows[r]] and uses (keys[r], counters[r]).
  void draw(ConstTensor x, const std::vector<int32_t>& rows, const std::vector<int64_t>& keys,
            const std::vector<int64_t>& counters, std::vector<int32_t>& tokens, std::vector<float>& logps) {
    const int64_t n = static_cast<int64_t>(rows.size());
    const std::vector<float> temperature(rows.size(), params_.temperature), top_p(rows.size(), params_.top_p);
    const std::vector<int32_t> top_k(rows.size(), params_.top_k);
    const OwnedTensor rows_d = upload(device_, std::span<const int32_t>(rows));
    const OwnedTensor temperature_d = upload(device_, std::span<const float>(temperature));
    const OwnedTensor top_p_d = upload(device_, std::span<const float>(top_p));
    const OwnedTensor top_k_d = upload(device_, std::span<const int32_t>(top_k));
    const OwnedTensor keys_d = upload(device_, std::span<const int64_t>(keys));
    const OwnedTensor counters_d = upload(device_, std::span<const int64_t>(counters));
    HeadLogits head{.x = x,
                    .rows = rows_d,
                    .gain = llama_.final_gain(),
                    .w = &llama_.head(),
                    .eps = llama_.config().rms_norm_eps,
                    .logits = logits_.view().rows(0, n),
                    .scratch = {}};
    Sample draw{.logits = logits_.view().rows(0, n),
                .temperature = temperature_d,
                .top_k = top_k_d,
                .top_p = top_p_d,
                .key = keys_d,
                .counter = counters_d,
                .gumbel = params_.gumbel,
                .token = token_.view().rows(0, n),
                .logp = logp_.view().rows(0, n),
                .scratch = {}};
    const int64_t bytes = std::max(head_logits_scratch(device_, head), sample_scratch(device_, draw));
    if (scratch_.empty() || scratch_.view().bytes() < bytes)
      scratch_ = OwnedTensor(device_, DType::kU8, {bytes});
    head.scratch = draw.scratch = scratch_.view();
    head_logits(device_, head);
    sample(device_, draw);
    tokens.resize(rows.size());
    logps.resize(rows.size());
    device_.copy_out(tokens.data(), draw.token);
    device_.copy_out(logps.data(), draw.logp);
  }

 private:
  Device& device_;
  const Llama& llama_;
  const SamplingParams& params_;
  OwnedTensor logits_, token_, logp_, scratch_;
};

// All answers of these requests, decoded together.
void generate_together(Device& device, const Llama& llama, ConstTensor prompt,
                       std::span<const GenerationRequest> requests, int64_t first_index,
                       const SamplingParams& params, const std::function<void(int64_t, int32_t)>& on_token,
                       const LoraAdapter* lora, std::vector<GeneratedSequence>& results) {
  // Prefill: prompts once each, contexts once each.
  PackedBatch batch;
  std::map<std::pair<int64_t, int64_t>, int32_t> prompts;
  std::vector<int32_t> context_segment;
  int64_t answers = 0;
  for (const GenerationRequest& r : requests) {
    int32_t parent = -1;
    if (r.prompt_count > 0) {
      const auto [it, inserted] = prompts.try_emplace({r.prompt_first, r.prompt_count}, -1);
      if (inserted) it->second = batch.add_prompt(r.prompt_first, r.prompt_count);
      parent = it->second;
    }
    GT_CHECK(parent >= 0 || !r.context.empty(), "a request needs a context or a prompt to start from");
    context_segment.push_back(batch.add(parent, r.context));
    answers += static_cast<int64_t>(r.keys.size());
  }
  const int64_t prefill_rows = batch.rows(), slots = prefill_rows + answers * params.max_new;
  KvCache cache(device, llama, slots);

  std::vector<Running> running;
  std::vector<int32_t> rows, tokens;
  std::vector<int64_t> keys, counters;
  std::vector<float> logps;
  Sampler sampler(device, llama, params, answers);
  const int layers = static_cast<int>(llama.layers().size());
  Workspace workspace(device);
  {
    Arena plan;
    take_activations(plan, device, llama, prefill_rows, Saving::kNothing, layers, batch.plan(), lora);
    Arena arena(device, plan.peak());
    Activations acts =
        take_activations(arena, device, llama, prefill_rows, Saving::kNothing, layers, batch.plan(), lora);
    const DeviceBatch on_device(device, batch);
    std::vector<int32_t> prefill_slots(static_cast<size_t>(prefill_rows));
    for (int32_t i = 0; i < prefill_rows; ++i) prefill_slots[static_cast<size_t>(i)] = i;
    const OwnedTensor slots_d = upload(device, std::span<const int32_t>(prefill_slots));
    llama_forward(device, {.llama = &llama,
                           .batch = &on_device,
                           .prompt = prompt,
                           .acts = &acts,
                           .cache = &cache,
                           .slots = slots_d,
                           .lora = lora});
    int64_t index = first_index;
    for (size_t i = 0; i < requests.size(); ++i)
      for (uint64_t key : requests[i].keys) {
        Running s;
        s.index = index++;
        s.key = key;
        s.context = batch.visible_rows(context_segment[i]);
        s.position = batch.end_position(context_segment[i]);
        s.slot = static_cast<int32_t>(prefill_rows + static_cast<int64_t>(running.size()) * params.max_new);
        rows.push_back(batch.last_row(context_segment[i]));
        keys.push_back(static_cast<int64_t>(key));
        counters.push_back(0);
        running.push_back(std::move(s));
      }
    if (params.max_new > 0) sampler.draw(acts.x_out, rows, keys, counters, tokens, logps);
  }
  if (params.max_new <= 0) return;

  while (true) {
    // Book the tokens just drawn; drop the sequences that ended.
    std::vector<Running> still;
    std::vector<int32_t> next_tokens;
    for (size_t i = 0; i < running.size(); ++i) {
      Running& s = running[i];
      GeneratedSequence& out = results[static_cast<size_t>(s.index)];
      out.tokens.push_back(tokens[i]);
      out.logp.push_back(logps[i]);
      if (on_token) on_token(s.index, tokens[i]);
      ++s.length;
      if (std::find(params.stop.begin(), params.stop.end(), tokens[i]) != params.stop.end()) {
        out.finish = FinishReason::kStop;
      } else if (s.length >= params.max_new) {
        out.finish = FinishReason::kLength;
      } else {
        still.push_back(std::move(s));
        next_tokens.push_back(tokens[i]);
      }
    }
    running = std::move(still);
    if (running.empty()) return;

    // One step: each sequence sees its context, its own cached tokens, and the token just drawn.
    const int64_t n = static_cast<int64_t>(running.size());
    AttentionPlan plan;
    std::vector<int32_t> positions, slots_now;
    rows.clear();
    keys.clear();
    counters.clear();
    for (int64_t i = 0; i < n; ++i) {
      const Running& s = running[static_cast<size_t>(i)];
      const int32_t own = s.length - 1;  // tokens already in the cache
      AttentionSegment a;
      a.q_begin = static_cast<int32_t>(i);
      a.q_count = 1;
      a.span_begin = static_cast<int32_t>(plan.spans.size());
      plan.spans.insert(plan.spans.end(), s.context.begin(), s.context.end());
      if (own > 0) plan.spans.push_back({s.slot, own});
      a.span_count = static_cast<int32_t>(plan.spans.size()) - a.span_begin;
      a.kv_begin = s.slot + own;
      plan.segments.push_back(a);
      positions.push_back(s.position + own);
      slots_now.push_back(s.slot + own);
      rows.push_back(static_cast<int32_t>(i));
      keys.push_back(static_cast<int64_t>(s.key));
      counters.push_back(s.length);
    }
    Arena counting;
    take_activations(counting, device, llama, n, Saving::kNothing, layers, plan, lora);
    Arena& arena = workspace.reserve(counting.peak());
    Activations acts = take_activations(arena, device, llama, n, Saving::kNothing, layers, plan, lora);
    const OwnedTensor tokens_d = upload(device, std::span<const int32_t>(next_tokens));
    const OwnedTensor positions_d = upload(device, std::span<const int32_t>(positions));
    const OwnedTensor slots_d = upload(device, std::span<const int32_t>(slots_now));
    llama_decode(device, llama, tokens_d, positions_d, slots_d, plan, prompt, cache, acts, lora);
    sampler.draw(acts.x_out, rows, keys, counters, tokens, logps);
  }
}

}  // namespace

std::vector<GeneratedSequence> generate(Device& device, const Llama& llama, ConstTensor prompt,
                                        std::span<const GenerationRequest> requests,
                                        const SamplingParams& params, int64_t max_parallel,
                                        const std::function<void(int64_t, int32_t)>& on_token,
                                        const LoraAdapter* lora) {
  const Range range(device, "generate");
  GT_CHECK(max_parallel > 0, "max_parallel must be positive, got {}", max_parallel);
  GT_CHECK(params.temperature >= 0.0f, "temperature must not be negative, got {}", params.temperature);
  size_t answers = 0;
  for (const GenerationRequest& r : requests) answers += r.keys.size();
  std::vector<GeneratedSequence> results(answers);
  // Whole requests go together until max_parallel answers are reached; a request with more answers is split.
  std::vector<GenerationRequest> group;
  int64_t first = 0, in_group = 0;
  auto flush = [&] {
    if (in_group > 0) generate_together(device, llama, prompt, group, first, params, on_token, lora, results);
    first += in_group;
    in_group = 0;
    group.clear();
  };
  for (const GenerationRequest& r : requests) {
    for (size_t at = 0; at < r.keys.size();) {
      if (in_group == max_parallel) flush();
      const size_t n = std::min(r.keys.size() - at, static_cast<size_t>(max_parallel - in_group));
      GenerationRequest part = r;
      part.keys.assign(r.keys.begin() + static_cast<std::ptrdiff_t>(at),
                       r.keys.begin() + static_cast<std::ptrdiff_t>(at + n));
      group.push_back(std::move(part));
      in_group += static_cast<int64_t>(n);
      at += n;
    }
  }
  flush();
  return results;
}

}  // namespace gantrain
