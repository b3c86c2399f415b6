#include "bench/support/devices.h"
#include "bench/support/harness.h"
#include "model/batch.h"

namespace gantrain::bench {
namespace {

// `batch` texts of `length` rows behind one soft prompt of `prompt` rows, which all of them see: a training
// step's.
AttentionPlan training_plan(const Point& p, int64_t* rows) {
  PackedBatch batch;
  const int32_t prompt = batch.add_prompt(0, p.at("prompt"));
  const std::vector<int32_t> text(static_cast<size_t>(p.at("length")), 1);
  for (int64_t b = 0; b < p.at("batch"); ++b) batch.add(prompt, text);
  *rows = batch.rows();
  return batch.plan();
}

// As many texts without a prompt: the causal batch that libraries take.
AttentionPlan plain_plan(const Point& p, int64_t* rows) {
  PackedBatch batch;
  const std::vector<int32_t> text(static_cast<size_t>(p.at("length")), 1);
  for (int64_t b = 0; b < p.at("batch"); ++b) batch.add(-1, text);
  *rows = batch.rows();
  return batch.plan();
}

// cuDNN's time for a case, beside which the same case by our own kernels stands: a device of its own.
Suite::TimedFactory by_cudnn(std::function<Call(const Point&, Memory&)> prepare) {
  return [prepare = std::move(prepare)](const Point& p, Device& device) -> Timed {
    if (device.kind() != DeviceKind::kCuda) throw Skipped("cuDNN is a baseline of CUDA devices");
    if (p.dtype != DType::kBF16) throw Skipped("cuDNN's attention is compared in bf16");
    struct State {
      std::unique_ptr<Device> device;
      std::unique_ptr<CudaTimer> timer;
      std::optional<Memory> memory;
      Call call;
    };
    const auto state = std::make_shared<State>();
    std::string why;
    state->device = make_cudnn_device(&why);
    if (!state->device) throw Skipped(why);
    state->timer = make_cuda_timer(*state->device);
    state->memory.emplace(*state->device);
    state->call = prepare(p, *state->memory);
    state->call.run();  // chooses its kernel on first use
    state->device->synchronize();
    return [state] {
      constexpr int kTimes = 20;
      double seconds = 0;
      for (int i = 0; i < kTimes; ++i) seconds += state->timer->seconds(state->call.run) / kTimes;
      return Measured{seconds,
                      {{"bytes", static_cast<double>(state->call.bytes)},
                       {"flops", static_cast<double>(state->call.flops)},
                       {"bytes/s", static_cast<double>(state->call.bytes) / seconds},
                       {"flops/s", static_cast<double>(state->call.flops) / seconds}}};
    };
  };
}

// `batch` answers that each see `context` cached rows of their own and the row just appended: one step of
// decoding.
AttentionPlan decoding_plan(const Point& p) {
  AttentionPlan plan;
  const int32_t context = static_cast<int32_t>(p.at("context"));
  for (int32_t b = 0; b < static_cast<int32_t>(p.at("batch")); ++b) {
    plan.spans.push_back({b * (context + 1), context});
    plan.segments.push_back({.q_begin = b,
                             .q_count = 1,
                             .span_begin = b,
                             .span_count = 1,
                             .kv_begin = b * (context + 1) + context});
  }
  return plan;
}

float scale_of(const LlamaConfig& l) { return 1.0f / std::sqrt(static_cast<float>(l.head_dim)); }

void define(Suite& suite) {
  const Suite::Axes training{{"batch", {8}}, {"length", {128, 512}}, {"prompt", {20}}};
  const auto forward = [](const Point& p, Memory& m, AttentionPlan made, int64_t n, int64_t keys) {
    const LlamaConfig& l = p.config;
    const int64_t h = l.num_heads, k = l.num_kv_heads, d = l.head_dim;
    const DType kept = m.device().kept_dtype(p.dtype);
    AttentionForward a{.q = m.normal({n, h, d}, kept),
                       .k = m.normal({keys, k, d}, kept),
                       .v = m.normal({keys, k, d}, kept),
                       .plan = m.plan(std::move(made)),
                       .scale = scale_of(l),
                       .o = m.normal({n, h, d}, kept),
                       .lse = m.normal({n, h}),
                       .scratch = {}};
    a.scratch = m.scratch(attention_forward_scratch(m.device(), a));
    return a;
  };
  using Plan = AttentionPlan (*)(const Point&, int64_t*);
  const auto forward_call = [forward](Plan plan) {
    return [forward, plan](const Point& p, Memory& m) {
      int64_t rows = 0;
      AttentionPlan made = plan(p, &rows);
      const AttentionForward a = forward(p, m, std::move(made), rows, rows);
      return Call{[a, &m] { attention_forward(m.device(), a); }, attention_forward_bytes(a),
                  attention_forward_flops(a)};
    };
  };
  const auto backward_call = [forward](Plan plan) {
    return [forward, plan](const Point& p, Memory& m) {
      int64_t rows = 0;
      AttentionPlan made = plan(p, &rows);
      const AttentionForward f = forward(p, m, std::move(made), rows, rows);
      attention_forward(m.device(), f);  // o and lse that belong to q, k and v
      const LlamaConfig& l = p.config;
      const int64_t h = l.num_heads, k = l.num_kv_heads, d = l.head_dim;
      AttentionBackward a{.q = f.q,
                          .k = f.k,
                          .v = f.v,
                          .o = f.o,
                          .lse = f.lse,
                          .d_o = m.normal({rows, h, d}, p.dtype),
                          .plan = f.plan,
                          .scale = f.scale,
                          .dq = {},
                          .dk = {},
                          .dv = {},
                          .scratch = {},
                          .dy = m.normal({rows, (h + 2 * k) * d}, p.dtype),
                          .rotary = m.normal({rows, d})};
      if (m.device().fuses_norms(p.dtype)) a.dot = m.normal({rows, h + k});
      a.scratch = m.scratch(attention_backward_scratch(m.device(), a));
      return Call{[a, &m] { attention_backward(m.device(), a); }, attention_backward_bytes(a),
                  attention_backward_flops(a)};
    };
  };
  suite.op("attention_forward", training, true, forward_call(training_plan));
  suite.op("attention_backward", training, true, backward_call(training_plan));
  const Suite::Axes plain{{"batch", {8}}, {"length", {128, 512}}};
  suite.op("attention_forward_plain", plain, true, forward_call(plain_plan));
  suite.timed("attention_forward_plain_cudnn", plain, by_cudnn(forward_call(plain_plan)));
  suite.op("attention_backward_plain", plain, true, backward_call(plain_plan));
  suite.timed("attention_backward_plain_cudnn", plain, by_cudnn(backward_call(plain_plan)));
  suite.op("attention_decode", {{"batch", {1, 8, 64}}, {"context", {128, 1024}}}, true,
           [forward](const Point& p, Memory& m) {
             const AttentionForward a =
                 forward(p, m, decoding_plan(p), p.at("batch"), p.at("batch") * (p.at("context") + 1));
             return Call{[a, &m] { attention_forward(m.device(), a); }, attention_forward_bytes(a),
                         attention_forward_flops(a)};
           });
  suite.op("kv_append", {{"batch", {1, 64}}, {"context", {1024}}}, true, [](const Point& p, Memory& m) {
    const int64_t n = p.at("batch"), rows = n * p.at("context"), k = p.config.num_kv_heads,
                  d = p.config.head_dim;
    const DType kept = m.device().kept_dtype(p.dtype);
    std::vector<int32_t> slots;
    for (int64_t i = 0; i < n; ++i) slots.push_back(static_cast<int32_t>((i + 1) * p.at("context") - 1));
    const KvAppend a{.k = m.normal({n, k, d}, kept),
                     .v = m.normal({n, k, d}, kept),
                     .slots = m.ints(slots),
                     .k_cache = m.normal({rows, k, d}, kept),
                     .v_cache = m.normal({rows, k, d}, kept)};
    return Call{[a, &m] { kv_append(m.device(), a); }, kv_append_bytes(a)};
  });
  // One layer's keys and values of a prefix of all layers, and their gradient.
  suite.op("prefix_forward", {{"prompt", {20, 100}}}, true, [](const Point& p, Memory& m) {
    const int64_t rows = p.at("prompt"), k = p.config.num_kv_heads, d = p.config.head_dim;
    const DType kept = m.device().kept_dtype(p.dtype);
    const PrefixForward a{.table = m.normal({rows, 2 * p.config.num_layers, k * d}, DType::kF32),
                          .layer = p.config.num_layers / 2,
                          .k = m.normal({rows, k, d}, kept),
                          .v = m.normal({rows, k, d}, kept)};
    return Call{[a, &m] { prefix_forward(m.device(), a); }, prefix_forward_bytes(a)};
  });
  suite.op("prefix_backward", {{"prompt", {20, 100}}}, true, [](const Point& p, Memory& m) {
    const int64_t rows = p.at("prompt"), k = p.config.num_kv_heads, d = p.config.head_dim;
    const PrefixBackward a{.dk = m.normal({rows, k, d}, p.dtype),
                           .dv = m.normal({rows, k, d}, p.dtype),
                           .layer = p.config.num_layers / 2,
                           .dtable = m.normal({rows, 2 * p.config.num_layers, k * d}, DType::kF32)};
    return Call{[a, &m] { prefix_backward(m.device(), a); }, prefix_backward_bytes(a)};
  });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Attention", gantrain::bench::define);
}
