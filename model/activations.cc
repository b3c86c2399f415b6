#include "model/activations.h"

#include <algorithm>

#include "core/ops.h"

namespace gantrain {
namespace {

struct Dims {
  int64_t n, c, h, k, d, f;
  DType t, s;  // of the weights, and of what is kept for backward
};

void take_layer(Arena& arena, const Dims& m, const LoraAdapter* lora, LayerActivations& a) {
  a.q = arena.take(m.s, {m.n, m.h, m.d});
  a.k = arena.take(m.s, {m.n, m.k, m.d});
  a.v = arena.take(m.s, {m.n, m.k, m.d});
  a.o = arena.take(m.s, {m.n, m.h, m.d});
  a.lse = arena.take(DType::kF32, {m.n, m.h});
  a.h = arena.take(DType::kF32, {m.n, m.c});
  a.rstd2 = arena.take(DType::kF32, {m.n});
  a.g = arena.take(m.s, {m.n, m.f});
  a.u = arena.take(m.s, {m.n, m.f});
  if (!lora) return;
  for (size_t t = 0; t < kLoraTargets; ++t)
    if (lora->shape.targets[t]) a.z[t] = arena.take(DType::kF32, {m.n, lora->shape.rank});
}

// Scratch for the largest op of one layer. Ops size their scratch by shapes alone, so views without memory
// will do; a one-byte address stands for "present".
int64_t layer_scratch(Device& device, const Llama& llama, const Dims& m, bool backward,
                      const AttentionPlan& plan, const LoraAdapter* lora) {
  static std::byte present;
  auto view = [&](DType t, Shape s) { return Tensor(&present, t, s, device.kind()); };
  const LlamaLayer& w = llama.layers().front();
  const Tensor x = view(DType::kF32, {m.n, m.c}), rstd = view(DType::kF32, {m.n});
  const Tensor q = view(m.s, {m.n, m.h, m.d}), kv = view(m.s, {m.n, m.k, m.d}), g = view(m.s, {m.n, m.f});
  const Tensor dq = view(m.t, {m.n, m.h, m.d}), dkv = view(m.t, {m.n, m.k, m.d}), f = view(m.t, {m.n, m.f}),
               dy = view(m.t, {m.n, 2 * m.f});
  const Tensor rotary = view(DType::kF32, {m.n, m.d});
  const Tensor lse = view(DType::kF32, {m.n, m.h});
  // As in llama_backward: what is handed over where the device fuses norms and the product has no bias.
  const bool fuses = device.fuses_norms(m.t);
  const Tensor dot = fuses && w.gate_up_bias.view().empty() ? rstd : Tensor{},
               dx_bf16 = fuses ? view(DType::kBF16, {m.n, m.c}) : Tensor{};
  const bool biased = !w.qkv_bias.view().empty();
  const float scale = llama.attention_scale();
  std::array<Tensor, kLoraTargets> z;
  if (lora) z.fill(view(DType::kF32, {m.n, lora->shape.rank}));
  using enum LoraTarget;
  const auto parts = [&](std::initializer_list<LoraTarget> t) {
    return LoraParts(lora, llama.config(), 0, t, z);
  };
  const LoraParts qkv = parts({kQ, kK, kV}), o = parts({kO}), gate_up = parts({kGate, kUp}),
                  down = parts({kDown});
  int64_t bytes = 0;
  auto grow = [&](int64_t b) { bytes = std::max(bytes, b); };
  grow(qkv_forward_scratch(device, {.x = x,
                                    .rstd = rstd,
                                    .gain = w.attention_gain,
                                    .w = w.qkv.get(),
                                    .bias = w.qkv_bias,
                                    .rotary = rotary,
                                    .q = q,
                                    .k = kv,
                                    .v = kv,
                                    .scratch = {},
                                    .lora = qkv}));
  grow(attention_forward_scratch(
      device, {.q = q, .k = kv, .v = kv, .plan = &plan, .scale = scale, .o = q, .lse = lse, .scratch = {}}));
  grow(project_forward_scratch(device, {.a = q.view({m.n, m.h * m.d}),
                                        .w = w.o.get(),
                                        .bias = w.o_bias,
                                        .residual = x,
                                        .out = x,
                                        .rstd = rstd,
                                        .scratch = {},
                                        .lora = o}));
  grow(gate_up_forward_scratch(device, {.x = x,
                                        .rstd = rstd,
                                        .gain = w.mlp_gain,
                                        .w = w.gate_up.get(),
                                        .bias = w.gate_up_bias,
                                        .g = g,
                                        .u = g,
                                        .a = f,
                                        .scratch = {},
                                        .lora = gate_up}));
  grow(project_forward_scratch(device, {.a = f,
                                        .w = w.down.get(),
                                        .bias = w.down_bias,
                                        .residual = x,
                                        .out = x,
                                        .rstd = rstd,
                                        .scratch = {},
                                        .lora = down}));
  if (backward) {
    grow(down_backward_scratch(device, {.dout = x,
                                        .w = w.down.get(),
                                        .g = g,
                                        .u = g,
                                        .dy = dy,
                                        .scratch = {},
                                        .dot = dot,
                                        .lora = down,
                                        .a = f}));
    grow(gate_up_backward_scratch(device, {.x = x,
                                           .rstd = rstd,
                                           .gain = w.mlp_gain,
                                           .w = w.gate_up.get(),
                                           .dy = dy,
                                           .dx = x,
                                           .scratch = {},
                                           .dot = dot,
                                           .dx_bf16 = dx_bf16,
                                           .lora = gate_up}));
    grow(project_backward_scratch(device, {.dout = x,
                                           .w = w.o.get(),
                                           .da = dq.view({m.n, m.h * m.d}),
                                           .scratch = {},
                                           .lora = o,
                                           .a = q.view({m.n, m.h * m.d})}));
    grow(attention_backward_scratch(device, {.q = q,
                                             .k = kv,
                                             .v = kv,
                                             .o = q,
                                             .lse = lse,
                                             .d_o = dq,
                                             .plan = &plan,
                                             .scale = scale,
                                             .dq = dq,
                                             .dk = dkv,
                                             .dv = dkv,
                                             .scratch = {}}));
    grow(qkv_backward_scratch(device, {.x = x,
                                       .rstd = rstd,
                                       .gain = w.attention_gain,
                                       .w = w.qkv.get(),
                                       .rotary = rotary,
                                       .dq = dq,
                                       .dk = dkv,
                                       .dv = dkv,
                                       .dx = x,
                                       .scratch = {},
                                       .q = biased ? Tensor{} : q,
                                       .k = biased ? Tensor{} : kv,
                                       .v = biased ? Tensor{} : kv,
                                       .dx_bf16 = dx_bf16,
                                       .lora = qkv}));
  }
  return bytes;
}

}  // namespace

LoraParts::LoraParts(const LoraAdapter* lora, const LlamaConfig& config, size_t layer,
                     std::initializer_list<LoraTarget> targets, const std::array<Tensor, kLoraTargets>& z) {
  if (!lora) return;
  for (const LoraTarget target : targets) {
    const auto t = static_cast<size_t>(target);
    const LoraAdapter::Part& p = lora->layers.at(layer)[t];
    if (!lora->shape.targets[t]) continue;
    const float scale = lora->shape.scale();
    const int64_t first = lora_dims(config, t).first;
    forward[count] = {.a = p.a, .b = p.b, .scale = scale, .first = first, .z = z[t]};
    backward[count] = {.a = p.a, .b = p.b, .scale = scale, .first = first, .z = z[t], .da = p.da, .db = p.db};
    ++count;
  }
}

Activations take_activations(Arena& arena, Device& device, const Llama& llama, int64_t rows, Saving saving,
                             int layers, const AttentionPlan& plan, const LoraAdapter* lora) {
  const LlamaConfig& config = llama.config();
  const Dims m{rows,
               config.hidden_size,
               config.num_heads,
               config.num_kv_heads,
               config.head_dim,
               config.intermediate_size,
               llama.dtype(),
               device.kept_dtype(llama.dtype())};
  GT_CHECK(layers >= 0 && layers <= config.num_layers, "{} layers of {}", layers, config.num_layers);
  Activations a;
  a.saving = saving;
  a.rows = rows;
  a.layers.resize(static_cast<size_t>(layers));

  if (saving == Saving::kNothing) {
    // Two residual streams take turns: layer l reads one and writes the other.
    LayerActivations shared;
    take_layer(arena, m, lora, shared);
    const Tensor x0 = arena.take(DType::kF32, {rows, m.c}), x1 = arena.take(DType::kF32, {rows, m.c});
    const Tensor r0 = arena.take(DType::kF32, {rows}), r1 = arena.take(DType::kF32, {rows});
    for (int l = 0; l < layers; ++l) {
      LayerActivations& layer = a.layers[static_cast<size_t>(l)];
      layer = shared;
      layer.x = l % 2 ? x1 : x0;
      layer.rstd1 = l % 2 ? r1 : r0;
    }
    a.x_out = layers % 2 ? x1 : x0;
    a.rstd_out = layers % 2 ? r1 : r0;
  } else {
    LayerActivations shared;
    if (saving == Saving::kLayerInput) take_layer(arena, m, lora, shared);
    for (LayerActivations& layer : a.layers) {
      if (saving == Saving::kLayerInput) {
        layer = shared;
      } else {
        take_layer(arena, m, lora, layer);
      }
      layer.x = arena.take(DType::kF32, {rows, m.c});
      layer.rstd1 = arena.take(DType::kF32, {rows});
    }
    a.x_out = arena.take(DType::kF32, {rows, m.c});
    a.rstd_out = arena.take(DType::kF32, {rows});
    a.dx = arena.take(DType::kF32, {rows, m.c});
    a.d_o = arena.take(m.t, {rows, m.h, m.d});
    a.dq = arena.take(m.t, {rows, m.h, m.d});
    a.dk = arena.take(m.t, {rows, m.k, m.d});
    a.dv = arena.take(m.t, {rows, m.k, m.d});
    a.dy = arena.take(m.t, {rows, 2 * m.f});
    if (device.fuses_norms(m.t)) {
      a.dx_bf16 = arena.take(DType::kBF16, {rows, m.c});
      a.dot = arena.take(DType::kF32, {rows});
    }
  }
  a.a = arena.take(m.t, {rows, m.f});
  a.rotary = arena.take(DType::kF32, {rows, m.d});
  if (device.fuses_norms(m.t)) a.x_bf16 = arena.take(DType::kBF16, {rows, m.c});
  a.scratch =
      arena.take(DType::kU8, {layer_scratch(device, llama, m, saving != Saving::kNothing, plan, lora)});
  return a;
}

}  // namespace gantrain
