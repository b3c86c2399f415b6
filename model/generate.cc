#include "model/generate.h"

#include <algorithm>
#include <bit>
#include <initializer_list>
#include <map>

#include "core/ops.h"

namespace gantrain {
namespace {

// Steps that are queued before their tokens are read, on a device that queues: what ended in between was
// decoded in vain, and nobody waited.
constexpr int32_t kReadEvery = 8;

// One answer being decoded.
struct Running {
  int64_t index;  // in the results
  uint64_t key;
  std::vector<KvSpan> context;  // cached rows of prompt and context
  int32_t position;             // of the next token
  int32_t slot;                 // first cache row of its own tokens
};

// Draws one token for each row of logits. What it reads and writes stays where it is from draw to draw.
class Sampler {
 public:
  Sampler(Device& device, const Llama& llama, const SamplingParams& params, int64_t rows)
      : device_(device),
        llama_(llama),
        params_(params),
        logits_(device, DType::kF32, {rows, llama.config().vocab_size}),
        token_(device, DType::kI32, {rows}),
        logp_(device, DType::kF32, {rows}),
        rows_(device, DType::kI32, {rows}),
        keys_(device, DType::kI64, {rows}),
        counters_(device, DType::kI64, {rows}),
        temperature_(
            upload(device, std::span<const float>(std::vector<float>(size_t(rows), params.temperature)))),
        top_p_(upload(device, std::span<const float>(std::vector<float>(size_t(rows), params.top_p)))),
        top_k_(upload(device, std::span<const int32_t>(std::vector<int32_t>(size_t(rows), params.top_k)))) {}

  // Row r of the draws to come reads x[rows[r]] and uses keys[r].
  void set(const std::vector<int32_t>& rows, const std::vector<int64_t>& keys) {
    n_ = static_cast<int64_t>(rows.size());
    device_.copy_in(rows_.view().rows(0, n_), rows.data());
    device_.copy_in(keys_.view().rows(0, n_), keys.data());
    const int64_t bytes =
        std::max(head_logits_scratch(device_, head({})), sample_scratch(device_, sampling()));
    if (scratch_.empty() || scratch_.view().bytes() < bytes)
      scratch_ = OwnedTensor(device_, DType::kU8, {bytes});
  }
  // The next draw is number `count` of every answer.
  void set_counter(int64_t count) {
    const std::vector<int64_t> counters(static_cast<size_t>(n_), count);
    device_.copy_in(counters_.view().rows(0, n_), counters.data());
  }
  void draw(ConstTensor x) {
    head_logits(device_, head(x));
    sample(device_, sampling());
  }
  Tensor tokens() { return token_.view().rows(0, n_); }  // of the last draw
  ConstTensor logps() { return logp_.view().rows(0, n_); }

 private:
  HeadLogits head(ConstTensor x) {
    return {.x = x,
            .rows = rows_.view().rows(0, n_),
            .gain = llama_.final_gain(),
            .w = &llama_.head(),
            .eps = llama_.config().rms_norm_eps,
            .logits = logits_.view().rows(0, n_),
            .scratch = scratch_.view()};
  }
  Sample sampling() {
    return {.logits = logits_.view().rows(0, n_),
            .temperature = temperature_.view().rows(0, n_),
            .top_k = top_k_.view().rows(0, n_),
            .top_p = top_p_.view().rows(0, n_),
            .key = keys_.view().rows(0, n_),
            .counter = counters_.view().rows(0, n_),
            .gumbel = params_.gumbel,
            .token = token_.view().rows(0, n_),
            .logp = logp_.view().rows(0, n_),
            .scratch = scratch_.view()};
  }

  Device& device_;
  const Llama& llama_;
  const SamplingParams& params_;
  int64_t n_ = 0;
  OwnedTensor logits_, token_, logp_, rows_, keys_, counters_, temperature_, top_p_, top_k_, scratch_;
};

// A plan that is changed in place from step to step.
class OpenPlan {
 public:
  explicit OpenPlan(Device& device) : device_(device), id_(device.ops().open_plan()) {}
  ~OpenPlan() { device_.ops().close_plan(id_); }
  OpenPlan(const OpenPlan&) = delete;
  OpenPlan& operator=(const OpenPlan&) = delete;
  uint64_t id() const { return id_; }

 private:
  Device& device_;
  uint64_t id_;
};

// Not 0, and different for different words.
uint64_t stamp_of(std::initializer_list<uint64_t> words) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const uint64_t w : words) h = (h ^ w) * 0x9e3779b97f4a7c15ull, h ^= h >> 29;
  return h | 1;
}
uint64_t address(ConstTensor t) { return static_cast<uint64_t>(reinterpret_cast<uintptr_t>(t.raw())); }

// All answers of these requests, decoded together.
void generate_together(Device& device, const Llama& base, ConstTensor prompt,
                       std::span<const GenerationRequest> requests, int64_t first_index,
                       const SamplingParams& params, const std::function<void(int64_t, int32_t)>& on_token,
                       const Adapters& adapters, std::vector<GeneratedSequence>& results) {
  // Prefill: prompts once each, contexts once each. In the cache a prefix's rows come first.
  const int32_t prefix = adapters.prefix_rows();
  const Llama& llama = adapters.on(base);
  PackedBatch batch = batch_behind(adapters);
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
    if (r.cached.count > 0) {
      GT_CHECK(parent < 0 && !r.context.empty(), "a cached context stands first and has something behind it");
      parent = batch.add_cached(r.cached);
    }
    GT_CHECK(parent >= 0 || !r.context.empty(), "a request needs a context or a prompt to start from");
    context_segment.push_back(batch.add(parent, r.context));
    answers += static_cast<int64_t>(r.keys.size());
  }
  const int64_t prefill_rows = batch.rows(), slots = prefix + prefill_rows + answers * params.max_new;
  KvCache cache(device, llama, slots);

  if (params.max_new <= 0) return;
  std::vector<Running> running;
  std::vector<int32_t> rows;
  std::vector<int64_t> keys;
  int64_t index = first_index;
  for (size_t i = 0; i < requests.size(); ++i)
    for (uint64_t key : requests[i].keys) {
      Running s;
      s.index = index++;
      s.key = key;
      s.context = batch.visible_rows(context_segment[i]);
      s.position = batch.end_position(context_segment[i]);
      s.slot =
          static_cast<int32_t>(prefix + prefill_rows + static_cast<int64_t>(running.size()) * params.max_new);
      rows.push_back(batch.last_row(context_segment[i]));
      keys.push_back(static_cast<int64_t>(key));
      running.push_back(std::move(s));
    }
  const int layers = static_cast<int>(llama.layers().size());
  // Nobody reads more of the prefill than each answer's last row.
  const BatchEnds ends = ends_of(batch, {.read = rows, .gradient = {}}, layers, false, adapters);
  Sampler sampler(device, llama, params, answers);
  sampler.set(ends.places_read(rows), keys);
  // What was drawn and not looked at yet.
  struct Draw {
    Reading<int32_t> tokens;
    Reading<float> logps;
  };
  std::vector<Draw> drawn;
  const auto read_later = [&] {
    drawn.push_back({Reading<int32_t>(device, sampler.tokens()), Reading<float>(device, sampler.logps())});
  };
  device.region("prefill", static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(prefill_rows))), 0, [&] {
    Arena plan;
    take_activations(plan, device, llama, prefill_rows, Saving::kNothing, layers, batch.plan(), adapters,
                     ends);
    Arena arena(device, plan.peak());
    Activations acts = take_activations(arena, device, llama, prefill_rows, Saving::kNothing, layers,
                                        batch.plan(), adapters, ends);
    const DeviceBatch on_device(device, batch, ends);
    std::vector<int32_t> prefill_slots(static_cast<size_t>(prefill_rows));
    for (int32_t i = 0; i < prefill_rows; ++i) prefill_slots[static_cast<size_t>(i)] = prefix + i;
    const OwnedTensor slots_d = upload(device, std::span<const int32_t>(prefill_slots));
    llama_forward(device, {.llama = &llama,
                           .batch = &on_device,
                           .prompt = prompt,
                           .acts = &acts,
                           .cache = &cache,
                           .slots = slots_d,
                           .adapters = adapters});
    sampler.set_counter(0);
    sampler.draw(acts.x_out);
    read_later();
  });

  Workspace workspace(device);
  const OpenPlan open(device);
  Adapters decoding = adapters;  // cached contexts are in the cache by now
  decoding.contexts = {};
  OwnedTensor places(device, DType::kI32, {2, answers});  // positions, then cache rows
  int32_t length = 1;                                     // tokens drawn of every answer that goes on
  const bool ahead = device.queues_work() && !on_token;   // steps are queued before their tokens are read
  while (true) {
    // Book the tokens drawn; drop the sequences that ended. What the prefill drew is read with the first
    // steps'.
    const bool book = !ahead || length > 1 || params.max_new == 1;
    std::vector<bool> ended(running.size(), false);
    std::vector<int32_t> last(running.size());
    for (const Draw& draw : drawn) {
      if (!book) break;
      const std::vector<int32_t> tokens = draw.tokens.get();
      const std::vector<float> logps = draw.logps.get();
      for (size_t i = 0; i < running.size(); ++i) {
        if (ended[i]) continue;
        GeneratedSequence& out = results[static_cast<size_t>(running[i].index)];
        out.tokens.push_back(tokens[i]);
        out.logp.push_back(logps[i]);
        if (on_token) on_token(running[i].index, tokens[i]);
        last[i] = tokens[i];
        if (std::find(params.stop.begin(), params.stop.end(), tokens[i]) != params.stop.end()) {
          out.finish = FinishReason::kStop;
          ended[i] = true;
        } else if (static_cast<int32_t>(out.tokens.size()) >= params.max_new) {
          out.finish = FinishReason::kLength;
          ended[i] = true;
        }
      }
    }
    if (book) drawn.clear();
    std::vector<Running> still;
    std::vector<int32_t> next_tokens;
    for (size_t i = 0; i < running.size(); ++i)
      if (!ended[i]) {
        still.push_back(std::move(running[i]));
        next_tokens.push_back(last[i]);
      }
    const bool fewer = still.size() < running.size() || length == 1;
    running = std::move(still);
    if (running.empty()) return;
    const int64_t n = static_cast<int64_t>(running.size());
    if (fewer) {
      rows.clear();
      keys.clear();
      for (int64_t i = 0; i < n; ++i) {
        rows.push_back(static_cast<int32_t>(i));
        keys.push_back(static_cast<int64_t>(running[static_cast<size_t>(i)].key));
      }
      sampler.set(rows, keys);
      if (book) device.copy_in(sampler.tokens(), next_tokens.data());
    }

    const int32_t steps = std::min(ahead ? kReadEvery : 1, params.max_new - length);
    for (int32_t t = 0; t < steps; ++t, ++length) {
      // One step: each sequence sees its context, its own cached tokens, and the token just drawn.
      const int32_t own = length - 1;  // tokens already in the cache
      AttentionPlan plan;
      plan.id = open.id();
      std::vector<int32_t> positions, slots_now;
      for (int64_t i = 0; i < n; ++i) {
        const Running& s = running[static_cast<size_t>(i)];
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
      }
      Arena counting;
      take_activations(counting, device, llama, n, Saving::kNothing, layers, plan, decoding);
      Arena& arena = workspace.reserve(counting.peak());
      Activations acts = take_activations(arena, device, llama, n, Saving::kNothing, layers, plan, decoding);
      const Tensor positions_d = places.view().view({2 * answers}).rows(0, n),
                   slots_d = places.view().view({2 * answers}).rows(answers, n);
      device.copy_in(positions_d, positions.data());
      device.copy_in(slots_d, slots_now.data());
      sampler.set_counter(length);
      const uint64_t revision = device.ops().update_plan(plan);
      device.region("decode", n,
                    stamp_of({open.id(), static_cast<uint64_t>(n), revision, address(acts.x_out),
                              address(acts.scratch), static_cast<uint64_t>(acts.scratch.count())}),
                    [&] {
                      llama_decode(device, llama, sampler.tokens(), positions_d, slots_d, plan, prompt, cache,
                                   acts, decoding);
                      sampler.draw(acts.x_out);
                    });
      read_later();
    }
  }
}

}  // namespace

std::vector<GeneratedSequence> generate(Device& device, const Llama& llama, ConstTensor prompt,
                                        std::span<const GenerationRequest> requests,
                                        const SamplingParams& params, int64_t max_parallel,
                                        const std::function<void(int64_t, int32_t)>& on_token,
                                        const Adapters& adapters) {
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
    if (in_group > 0)
      generate_together(device, llama, prompt, group, first, params, on_token, adapters, results);
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
