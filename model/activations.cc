#include "model/activations.h"

#include <algorithm>

#include "core/ops.h"

namespace gantrain {
namespace {

// Rows [begin, begin + n); of an arena that only counts, an empty view.
Tensor slice(const Tensor& t, int64_t begin, int64_t n) { return t.empty() ? Tensor{} : t.rows(begin, n); }

struct Dims {
  int64_t n, c, h, k, d, f, prefix;
  DType t, s;  // of the weights, and of what is kept for backward
};

void take_layer(Arena& arena, const Dims& m, const Adapters& adapters, LayerActivations& a) {
  a.q = arena.take(m.s, {m.n, m.h, m.d});
  a.keys = arena.take(m.s, {m.prefix + m.n, m.k, m.d});
  a.values = arena.take(m.s, {m.prefix + m.n, m.k, m.d});
  a.k = slice(a.keys, m.prefix, m.n);
  a.v = slice(a.values, m.prefix, m.n);
  a.o = arena.take(m.s, {m.n, m.h, m.d});
  a.lse = arena.take(DType::kF32, {m.n, m.h});
  a.h = arena.take(DType::kF32, {m.n, m.c});
  a.rstd2 = arena.take(DType::kF32, {m.n});
  a.g = arena.take(m.s, {m.n, m.f});
  a.u = arena.take(m.s, {m.n, m.f});
  if (const LoraAdapter* lora = adapters.lora)
    for (size_t t = 0; t < kLoraTargets; ++t)
      if (lora->shape.targets[t]) a.z[t] = arena.take(DType::kF32, {m.n, lora->shape.rank});
  if (const BottleneckAdapter* b = adapters.bottleneck)
    for (size_t i = 0; i < 2; ++i) {
      if (!b->shape.has(i)) continue;
      a.narrow_x[i] = arena.take(DType::kF32, {m.n, m.c});
      a.narrow_z[i] = arena.take(DType::kF32, {m.n, b->shape.width});
    }
}

// Scratch for the largest op of one layer. Ops size their scratch by shapes alone, so views without memory
// will do; an address stands for "present", aligned as every tensor is: a product may be fused by that.
int64_t layer_scratch(Device& device, const Llama& llama, const Dims& m, bool backward,
                      const AttentionPlan& plan, const Adapters& adapters) {
  alignas(64) static std::byte present;
  auto view = [&](DType t, Shape s) { return Tensor(&present, t, s, device.kind()); };
  const LlamaLayer& w = llama.layers().front();
  const Tensor x = view(DType::kF32, {m.n, m.c}), rstd = view(DType::kF32, {m.n});
  const Tensor q = view(m.s, {m.n, m.h, m.d}), kv = view(m.s, {m.n, m.k, m.d}), g = view(m.s, {m.n, m.f});
  const Tensor keys = view(m.s, {m.prefix + m.n, m.k, m.d}),
               front = m.prefix > 0 ? view(m.t, {m.prefix, m.k, m.d}) : Tensor{};
  const Tensor d_o = view(m.t, {m.n, m.h, m.d}), dqkv = view(m.t, {m.n, (m.h + 2 * m.k) * m.d}),
               f = view(m.t, {m.n, m.f}), dy = view(m.t, {m.n, 2 * m.f});
  const Tensor rotary = view(DType::kF32, {m.n, m.d});
  const Tensor lse = view(DType::kF32, {m.n, m.h});
  // As in llama_backward: what is handed over where the device fuses norms and the product has no bias.
  const bool fuses = device.fuses_norms(m.t);
  const Tensor dot = fuses && w.gate_up_bias.view().empty() ? rstd : Tensor{},
               dx_bf16 = fuses ? view(DType::kBF16, {m.n, m.c}) : Tensor{};
  const Tensor dot_qkv = fuses && w.qkv_bias.view().empty() ? view(DType::kF32, {m.n, m.h + m.k}) : Tensor{};
  const float scale = llama.attention_scale();
  std::array<Tensor, kLoraTargets> z;
  if (adapters.lora) z.fill(view(DType::kF32, {m.n, adapters.lora->shape.rank}));
  using enum LoraTarget;
  const auto parts = [&](std::initializer_list<LoraTarget> t) {
    return LoraParts(adapters, llama.config(), 0, t, z);
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
      device,
      {.q = q, .k = keys, .v = keys, .plan = &plan, .scale = scale, .o = q, .lse = lse, .scratch = {}}));
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
                                           .da = d_o.view({m.n, m.h * m.d}),
                                           .scratch = {},
                                           .lora = o,
                                           .a = q.view({m.n, m.h * m.d})}));
    grow(attention_backward_scratch(device, {.q = q,
                                             .k = keys,
                                             .v = keys,
                                             .o = q,
                                             .lse = lse,
                                             .d_o = d_o,
                                             .plan = &plan,
                                             .scale = scale,
                                             .dq = {},
                                             .dk = front,
                                             .dv = front,
                                             .scratch = {},
                                             .dy = dqkv,
                                             .rotary = rotary,
                                             .dot = dot_qkv}));
    grow(qkv_backward_scratch(device, {.x = x,
                                       .rstd = rstd,
                                       .gain = w.attention_gain,
                                       .w = w.qkv.get(),
                                       .dy = dqkv,
                                       .dx = x,
                                       .scratch = {},
                                       .dot = dot_qkv,
                                       .dx_bf16 = dx_bf16,
                                       .lora = qkv}));
  }
  return bytes;
}

}  // namespace

LoraParts::LoraParts(const Adapters& adapters, const LlamaConfig& config, size_t layer,
                     std::initializer_list<LoraTarget> targets, const std::array<Tensor, kLoraTargets>& z) {
  const LoraAdapter* lora = adapters.lora;
  if (!lora) return;
  for (const LoraTarget target : targets) {
    const auto t = static_cast<size_t>(target);
    const LoraAdapter::Part& p = lora->layers.at(layer)[t];
    if (!lora->shape.targets[t]) continue;
    const float scale = lora->shape.scale();
    const int64_t first = lora_dims(config, t).first;
    const uint64_t key = derive_key(adapters.dropout_key, layer, t);
    forward[count] = {.a = p.a,
                      .b = p.b,
                      .scale = scale,
                      .first = first,
                      .z = z[t],
                      .dropout = adapters.dropout,
                      .key = key};
    backward[count] = {.a = p.a,
                       .b = p.b,
                       .scale = scale,
                       .first = first,
                       .z = z[t],
                       .da = p.da,
                       .db = p.db,
                       .dropout = adapters.dropout,
                       .key = key};
    ++count;
  }
}

Activations take_activations(Arena& arena, Device& device, const Llama& llama, int64_t rows, Saving saving,
                             int layers, const AttentionPlan& plan, const Adapters& adapters) {
  const LlamaConfig& config = llama.config();
  const Dims m{rows,
               config.hidden_size,
               config.num_heads,
               config.num_kv_heads,
               config.head_dim,
               config.intermediate_size,
               adapters.prefix_rows(),
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
    take_layer(arena, m, adapters, shared);
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
    if (saving == Saving::kLayerInput) take_layer(arena, m, adapters, shared);
    for (LayerActivations& layer : a.layers) {
      if (saving == Saving::kLayerInput) {
        layer = shared;
      } else {
        take_layer(arena, m, adapters, layer);
      }
      layer.x = arena.take(DType::kF32, {rows, m.c});
      layer.rstd1 = arena.take(DType::kF32, {rows});
    }
    a.x_out = arena.take(DType::kF32, {rows, m.c});
    a.rstd_out = arena.take(DType::kF32, {rows});
    a.dx = arena.take(DType::kF32, {rows, m.c});
    a.d_o = arena.take(m.t, {rows, m.h, m.d});
    a.dqkv = arena.take(m.t, {rows, (m.h + 2 * m.k) * m.d});
    if (m.prefix > 0) {
      a.dk_prefix = arena.take(m.t, {m.prefix, m.k, m.d});
      a.dv_prefix = arena.take(m.t, {m.prefix, m.k, m.d});
    }
    a.dy = arena.take(m.t, {rows, 2 * m.f});
    if (device.fuses_norms(m.t)) {
      a.dx_bf16 = arena.take(DType::kBF16, {rows, m.c});
      a.dot = arena.take(DType::kF32, {rows});
      a.dot_qkv = arena.take(DType::kF32, {rows, m.h + m.k});
    }
    if (adapters.bottleneck) {
      a.dout = arena.take(DType::kF32, {rows, m.c});
      a.dnarrow = arena.take(DType::kF32, {2, rows, adapters.bottleneck->shape.width});
    }
    if (adapters.weights) {
      a.normed = arena.take(DType::kF32, {rows, m.c});
      a.dnormed = arena.take(DType::kF32, {rows, m.c});
      a.rstd_again = arena.take(DType::kF32, {rows});
    }
  }
  if (adapters.bottleneck) {
    a.active = arena.take(DType::kF32, {rows, adapters.bottleneck->shape.width});
    a.wide = arena.take(DType::kF32, {rows, m.c});
  }
  a.a = arena.take(m.t, {rows, m.f});
  a.rotary = arena.take(DType::kF32, {rows, m.d});
  if (device.fuses_norms(m.t)) a.x_bf16 = arena.take(DType::kBF16, {rows, m.c});
  a.scratch =
      arena.take(DType::kU8, {layer_scratch(device, llama, m, saving != Saving::kNothing, plan, adapters)});
  return a;
}

}  // namespace gantrain
