#include "model/activations.h"

#include <algorithm>

#include "core/ops.h"

namespace gantrain {
namespace {

// Rows [begin, begin + n); of an arena that only counts, an empty view.
Tensor slice(const Tensor& t, int64_t begin, int64_t n) { return t.empty() ? Tensor{} : t.rows(begin, n); }

constexpr auto kDown = static_cast<size_t>(LoraTarget::kDown);
// Whether an adapter's target is in front of attention.
bool in_front(size_t target) {
  using enum LoraTarget;
  const auto t = static_cast<LoraTarget>(target);
  return t == kQ || t == kK || t == kV;
}

struct Dims {
  int64_t n, c, h, k, d, f, prefix;
  int64_t read;  // rows behind attention
  DType t, s;    // of the weights, and of what is kept for backward
};

// A layer's tensors, by what gives them up first.
void take_gate_up(Arena& arena, const Dims& m, LayerActivations& a) {
  a.g = arena.take(m.s, {m.read, m.f});
  a.u = arena.take(m.s, {m.read, m.f});
}
void take_stream(Arena& arena, const Dims& m, LayerActivations& a) {
  a.h = arena.take(DType::kF32, {m.read, m.c});
  a.rstd2 = arena.take(DType::kF32, {m.read});
}
void take_rest(Arena& arena, const Dims& m, const Adapters& adapters, LayerActivations& a) {
  a.q = arena.take(m.s, {m.n, m.h, m.d});
  a.keys = arena.take(m.s, {m.prefix + m.n, m.k, m.d});
  a.values = arena.take(m.s, {m.prefix + m.n, m.k, m.d});
  a.k = slice(a.keys, m.prefix, m.n);
  a.v = slice(a.values, m.prefix, m.n);
  a.o = arena.take(m.s, {m.n, m.h, m.d});
  a.lse = arena.take(DType::kF32, {m.n, m.h});
  if (const LoraAdapter* lora = adapters.lora)
    for (size_t t = 0; t < kDown; ++t)
      if (lora->shape.targets[t])
        a.z[t] = arena.take(DType::kF32, {in_front(t) ? m.n : m.read, lora->shape.rank});
  if (const BottleneckAdapter* b = adapters.bottleneck)
    for (size_t i = 0; i < 2; ++i) {
      if (!b->shape.has(i)) continue;
      a.narrow_x[i] = arena.take(DType::kF32, {m.read, m.c});
      a.narrow_z[i] = arena.take(DType::kF32, {m.read, b->shape.width});
    }
}
// What an adapter of the last product keeps: nothing else of that product is needed in backward.
void take_down(Arena& arena, const Dims& m, const Adapters& adapters, LayerActivations& a) {
  if (const LoraAdapter* lora = adapters.lora; lora && lora->shape.targets[kDown])
    a.z[kDown] = arena.take(DType::kF32, {m.read, lora->shape.rank});
}
// A layer's tensors that another one's memory holds.
LayerActivations shared_layer(LayerActivations a, const Dims& m) {
  for (Tensor* t :
       {&a.h, &a.rstd2, &a.g, &a.u, &a.narrow_x[0], &a.narrow_x[1], &a.narrow_z[0], &a.narrow_z[1]})
    *t = slice(*t, 0, m.read);
  for (size_t t = 0; t < kLoraTargets; ++t)
    if (!in_front(t)) a.z[t] = slice(a.z[t], 0, m.read);
  return a;
}

// Scratch for the largest op of one layer. Ops size their scratch by shapes alone, so views without memory
// will do; an address stands for "present", aligned as every tensor is: a product may be fused by that.
int64_t layer_scratch(Device& device, const Llama& llama, const Dims& m, bool backward,
                      const AttentionPlan& plan, const Adapters& adapters) {
  alignas(64) static std::byte present;
  auto view = [&](DType t, Shape s) { return Tensor(&present, t, s, device.kind()); };
  const LlamaLayer& w = llama.layers().front();
  const Tensor x = view(DType::kF32, {m.n, m.c}), rstd = view(DType::kF32, {m.n});
  const Tensor h = view(DType::kF32, {m.read, m.c}), rstd2 = view(DType::kF32, {m.read});
  const Tensor q = view(m.s, {m.n, m.h, m.d}), kv = view(m.s, {m.n, m.k, m.d}),
               o = view(m.s, {m.read, m.h * m.d}), g = view(m.s, {m.read, m.f});
  const Tensor keys = view(m.s, {m.prefix + m.n, m.k, m.d}),
               front = m.prefix > 0 ? view(m.t, {m.prefix, m.k, m.d}) : Tensor{};
  const Tensor d_o = view(m.t, {m.n, m.h, m.d}), dqkv = view(m.t, {m.n, (m.h + 2 * m.k) * m.d}),
               da = view(m.t, {m.read, m.h * m.d}), f = view(m.t, {m.read, m.f}),
               dy = view(m.t, {m.read, 2 * m.f});
  const Tensor rotary = view(DType::kF32, {m.n, m.d});
  const Tensor lse = view(DType::kF32, {m.n, m.h});
  // As in llama_backward: what is handed over where the device fuses norms and the product has no bias.
  const bool fuses = device.fuses_norms(m.t);
  const Tensor dot = fuses && w.gate_up_bias.view().empty() ? rstd2 : Tensor{},
               dh_bf16 = fuses ? view(DType::kBF16, {m.read, m.c}) : Tensor{},
               dx_bf16 = fuses ? view(DType::kBF16, {m.n, m.c}) : Tensor{};
  const Tensor dot_qkv = fuses && w.qkv_bias.view().empty() ? view(DType::kF32, {m.n, m.h + m.k}) : Tensor{};
  const float scale = llama.attention_scale();
  std::array<Tensor, kLoraTargets> z;
  if (adapters.lora)
    for (size_t t = 0; t < kLoraTargets; ++t)
      z[t] = view(DType::kF32, {in_front(t) ? m.n : m.read, adapters.lora->shape.rank});
  using enum LoraTarget;
  const auto parts = [&](std::initializer_list<LoraTarget> t) {
    return LoraParts(adapters, llama.config(), 0, t, z);
  };
  const LoraParts qkv = parts({kQ, kK, kV}), lora_o = parts({kO}), gate_up = parts({kGate, kUp}),
                  down = parts({LoraTarget::kDown});
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
  grow(project_forward_scratch(device, {.a = o,
                                        .w = w.o.get(),
                                        .bias = w.o_bias,
                                        .residual = h,
                                        .out = h,
                                        .rstd = rstd2,
                                        .scratch = {},
                                        .lora = lora_o}));
  grow(gate_up_forward_scratch(device, {.x = h,
                                        .rstd = rstd2,
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
                                        .residual = h,
                                        .out = h,
                                        .rstd = rstd2,
                                        .scratch = {},
                                        .lora = down}));
  if (backward) {
    grow(down_backward_scratch(device, {.dout = h,
                                        .w = w.down.get(),
                                        .g = g,
                                        .u = g,
                                        .dy = dy,
                                        .scratch = {},
                                        .dot = dot,
                                        .lora = down,
                                        .a = f}));
    grow(gate_up_backward_scratch(device, {.x = h,
                                           .rstd = rstd2,
                                           .gain = w.mlp_gain,
                                           .w = w.gate_up.get(),
                                           .dy = dy,
                                           .dx = h,
                                           .scratch = {},
                                           .dot = dot,
                                           .dx_bf16 = dh_bf16,
                                           .lora = gate_up}));
    grow(project_backward_scratch(
        device, {.dout = h, .w = w.o.get(), .da = da, .scratch = {}, .lora = lora_o, .a = o}));
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
                             int layers, const AttentionPlan& plan, const Adapters& adapters,
                             const BatchEnds& ends) {
  const LlamaConfig& config = llama.config();
  const Dims m{rows,
               config.hidden_size,
               config.num_heads,
               config.num_kv_heads,
               config.head_dim,
               config.intermediate_size,
               adapters.prefix_rows(),
               rows,
               llama.dtype(),
               device.kept_dtype(llama.dtype())};
  GT_CHECK(layers >= 0 && layers <= config.num_layers, "{} layers of {}", layers, config.num_layers);
  Dims last = m;
  last.read = ends.read_rows(rows);
  const auto dims_of = [&](int l) -> const Dims& { return l + 1 == layers ? last : m; };
  Activations a;
  a.saving = saving;
  a.rows = rows;
  a.layers.resize(static_cast<size_t>(layers));

  if (saving == Saving::kNothing) {
    // Two residual streams take turns: layer l reads one and writes the other.
    LayerActivations shared;
    take_gate_up(arena, m, shared);
    take_stream(arena, m, shared);
    take_rest(arena, m, adapters, shared);
    take_down(arena, m, adapters, shared);
    const Tensor x0 = arena.take(DType::kF32, {rows, m.c}), x1 = arena.take(DType::kF32, {rows, m.c});
    const Tensor r0 = arena.take(DType::kF32, {rows}), r1 = arena.take(DType::kF32, {rows});
    for (int l = 0; l < layers; ++l) {
      LayerActivations& layer = a.layers[static_cast<size_t>(l)];
      layer = shared_layer(shared, dims_of(l));
      layer.x = l % 2 ? x1 : x0;
      layer.rstd1 = l % 2 ? r1 : r0;
    }
    a.x_out = slice(layers % 2 ? x1 : x0, 0, last.read);
    a.rstd_out = slice(layers % 2 ? r1 : r0, 0, last.read);
  } else {
    LayerActivations shared;
    if (saving >= Saving::kButGateUp) take_gate_up(arena, m, shared);
    if (saving >= Saving::kButMlp) take_stream(arena, m, shared);
    if (saving >= Saving::kLayerInput) take_rest(arena, m, adapters, shared);
    for (int l = 0; l < layers; ++l) {
      LayerActivations& layer = a.layers[static_cast<size_t>(l)];
      const Dims& dims = dims_of(l);
      layer = shared_layer(shared, dims);
      if (saving < Saving::kButGateUp) take_gate_up(arena, dims, layer);
      if (saving < Saving::kButMlp) take_stream(arena, dims, layer);
      if (saving < Saving::kLayerInput) take_rest(arena, dims, adapters, layer);
      take_down(arena, dims, adapters, layer);
      layer.x = arena.take(DType::kF32, {rows, m.c});
      layer.rstd1 = arena.take(DType::kF32, {rows});
    }
    a.x_out = arena.take(DType::kF32, {last.read, m.c});
    a.rstd_out = arena.take(DType::kF32, {last.read});
    a.dx = arena.take(DType::kF32, {rows, m.c});
    a.dx_out = a.dx;
    if (!ends.read.empty()) {
      a.dx_read = arena.take(DType::kF32, {last.read + 1, m.c});
      a.do_read = arena.take(m.t, {last.read + 1, m.h, m.d});
      a.dx_out = slice(a.dx_read, 0, last.read);
    }
    if (const int64_t wanted = std::ssize(ends.wanted); wanted > 0) {
      a.x_wanted = arena.take(DType::kF32, {wanted, m.c});
      a.dx_wanted = arena.take(DType::kF32, {wanted, m.c});
      a.rstd_wanted = arena.take(DType::kF32, {wanted});
      a.dqkv_wanted = arena.take(m.t, {wanted, (m.h + 2 * m.k) * m.d});
      if (device.fuses_norms(m.t)) a.dot_wanted = arena.take(DType::kF32, {wanted, m.h + m.k});
    }
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
    if (adapters.weights || adapters.bottleneck) a.rstd_again = arena.take(DType::kF32, {rows});
    if (adapters.weights) {
      a.normed = arena.take(DType::kF32, {rows, m.c});
      a.dnormed = arena.take(DType::kF32, {rows, m.c});
    }
  }
  if (adapters.bottleneck) {
    a.active = arena.take(DType::kF32, {rows, adapters.bottleneck->shape.width});
    a.wide = arena.take(DType::kF32, {rows, m.c});
  }
  if (!ends.read.empty()) a.o_read = arena.take(m.s, {last.read, m.h, m.d});
  a.a = arena.take(m.t, {rows, m.f});
  a.rotary = arena.take(DType::kF32, {rows, m.d});
  if (device.fuses_norms(m.t)) a.x_bf16 = arena.take(DType::kBF16, {rows, m.c});
  const auto scratch = [&](const Dims& dims, const AttentionPlan& of) {
    return layer_scratch(device, llama, dims, saving != Saving::kNothing, of, adapters);
  };
  int64_t bytes = scratch(m, plan);
  if (!ends.read.empty()) bytes = std::max(bytes, scratch(last, ends.read_plan));
  if (!ends.wanted.empty()) bytes = std::max(bytes, scratch(m, ends.wanted_plan));
  a.scratch = arena.take(DType::kU8, {bytes});
  return a;
}

}  // namespace gantrain
