#include "model/llama_forward.h"

#include "core/ops.h"

namespace gantrain {

KvCache::KvCache(Device& device, const Llama& llama, int64_t slots) {
  const LlamaConfig& c = llama.config();
  for (int l = 0; l < c.num_layers; ++l) {
    k.emplace_back(device, device.kept_dtype(llama.dtype()), Shape{slots, c.num_kv_heads, c.head_dim});
    v.emplace_back(device, device.kept_dtype(llama.dtype()), Shape{slots, c.num_kv_heads, c.head_dim});
  }
}

DeviceBatch::DeviceBatch(Device& device, const PackedBatch& batch)
    : host(&batch), tokens(upload(device, batch.tokens())), positions(upload(device, batch.positions())) {}

namespace {

// Layer l, from x to the next layer's x:
//   x -> norm -> q, k, v (+RoPE) -> attention -> o -> +x = h -> norm -> gate, up -> SwiGLU -> down -> +h =
//   out
void layer_forward(Device& dev, const Llama& llama, const LlamaLayer& w, const LayerActivations& a,
                   const AttentionPlan& plan, ConstTensor k, ConstTensor v, const Activations& acts,
                   Tensor out, Tensor rstd_out, const LlamaLayer* next, const LoraAdapter* lora, size_t l) {
  const float eps = llama.config().rms_norm_eps;
  const auto parts = [&](std::initializer_list<LoraTarget> t) {
    return LoraParts(lora, llama.config(), l, t, a.z);
  };
  const int64_t n = a.x.dim(0), hd = a.q.dim(1) * a.q.dim(2);
  const Tensor scratch = acts.scratch;
  attention_forward(dev, {.q = a.q,
                          .k = k,
                          .v = v,
                          .plan = &plan,
                          .scale = llama.attention_scale(),
                          .o = a.o,
                          .lse = a.lse,
                          .scratch = scratch});
  project_forward(dev, {.a = a.o.view({n, hd}),
                        .w = w.o.get(),
                        .bias = w.o_bias,
                        .residual = a.x,
                        .out = a.h,
                        .rstd = a.rstd2,
                        .eps = eps,
                        .scratch = scratch,
                        .out_bf16 = acts.x_bf16,
                        .out_gain = w.mlp_gain,
                        .lora = parts({LoraTarget::kO})});
  gate_up_forward(dev, {.x = a.h,
                        .rstd = a.rstd2,
                        .gain = w.mlp_gain,
                        .w = w.gate_up.get(),
                        .bias = w.gate_up_bias,
                        .g = a.g,
                        .u = a.u,
                        .a = acts.a,
                        .scratch = scratch,
                        .x_bf16 = acts.x_bf16,
                        .lora = parts({LoraTarget::kGate, LoraTarget::kUp})});
  project_forward(dev, {.a = acts.a,
                        .w = w.down.get(),
                        .bias = w.down_bias,
                        .residual = a.h,
                        .out = out,
                        .rstd = rstd_out,
                        .eps = eps,
                        .scratch = scratch,
                        .out_bf16 = next ? acts.x_bf16 : Tensor{},
                        .out_gain = next ? ConstTensor(next->attention_gain) : ConstTensor{},
                        .lora = parts({LoraTarget::kDown})});
}

void layer_qkv(Device& dev, const Llama& llama, const LlamaLayer& w, const LayerActivations& a,
               const Activations& acts, const LoraAdapter* lora, size_t l) {
  qkv_forward(dev, {.x = a.x,
                    .rstd = a.rstd1,
                    .gain = w.attention_gain,
                    .w = w.qkv.get(),
                    .bias = w.qkv_bias,
                    .rotary = acts.rotary,
                    .q = a.q,
                    .k = a.k,
                    .v = a.v,
                    .scratch = acts.scratch,
                    .x_bf16 = acts.x_bf16,
                    .lora = LoraParts(lora, llama.config(), l,
                                      {LoraTarget::kQ, LoraTarget::kK, LoraTarget::kV}, a.z)});
}

}  // namespace

void llama_forward(Device& dev, const ForwardArgs& args) {
  const Range range(dev, "forward");
  const Llama& llama = *args.llama;
  Activations& acts = *args.acts;
  const AttentionPlan& plan = args.batch->host->plan();
  const size_t layers = acts.layers.size();
  const Tensor x0 = layers ? acts.layers[0].x : acts.x_out,
               rstd0 = layers ? acts.layers[0].rstd1 : acts.rstd_out;
  embed_forward(dev,
                {.table = &llama.embedding(), .tokens = args.batch->tokens, .prompt = args.prompt, .x = x0});
  row_rstd(dev, {.x = x0,
                 .rstd = rstd0,
                 .eps = llama.config().rms_norm_eps,
                 .x_bf16 = layers ? acts.x_bf16 : Tensor{},
                 .gain = layers ? ConstTensor(llama.layers()[0].attention_gain) : ConstTensor{}});
  if (layers)
    rotary_table(dev,
                 {.positions = args.batch->positions, .inv_freq = llama.inv_freq(), .table = acts.rotary});
  for (size_t l = 0; l < layers; ++l) {
    const Range layer(dev, "layer");
    const LayerActivations& a = acts.layers[l];
    const bool last = l + 1 == layers;
    layer_qkv(dev, llama, llama.layers()[l], a, acts, args.lora, l);
    if (args.cache)
      kv_append(dev, {.k = a.k,
                      .v = a.v,
                      .slots = args.slots,
                      .k_cache = args.cache->k[l],
                      .v_cache = args.cache->v[l]});
    layer_forward(dev, llama, llama.layers()[l], a, plan, a.k, a.v, acts,
                  last ? acts.x_out : acts.layers[l + 1].x, last ? acts.rstd_out : acts.layers[l + 1].rstd1,
                  last ? nullptr : &llama.layers()[l + 1], args.lora, l);
  }
}

void llama_backward(Device& dev, const ForwardArgs& args) {
  const Range range(dev, "backward");
  const Llama& llama = *args.llama;
  Activations& acts = *args.acts;
  GT_CHECK(acts.saving != Saving::kNothing, "backward after a forward that saved nothing");
  const AttentionPlan& plan = args.batch->host->plan();
  const float scale = llama.attention_scale();
  const int64_t n = acts.rows;
  ConstTensor dx_bf16;  // acts.dx_bf16, once an op has written it
  for (size_t l = acts.layers.size(); l-- > 0;) {
    const Range layer(dev, "layer");
    const LlamaLayer& w = llama.layers()[l];
    const LayerActivations& a = acts.layers[l];
    if (acts.saving == Saving::kLayerInput) {
      // The same ops on the same inputs give the same bits. The layer's output is not wanted again: it goes
      // to x_out, whose content backward no longer needs.
      if (!acts.x_bf16.empty())  // it holds another layer's stream by now; rstd1 is as forward left it
        row_rstd(dev, {.x = a.x, .rstd = acts.rstd_out, .x_bf16 = acts.x_bf16, .gain = w.attention_gain});
      layer_qkv(dev, llama, w, a, acts, args.lora, l);
      layer_forward(dev, llama, w, a, plan, a.k, a.v, acts, acts.x_out, acts.rstd_out, nullptr, args.lora, l);
    }
    const int64_t hd = a.q.dim(1) * a.q.dim(2);
    const auto parts = [&](std::initializer_list<LoraTarget> t) {
      return LoraParts(args.lora, llama.config(), l, t, a.z);
    };
    // out = h + down(SwiGLU(gate_up(norm(h))))
    const LoraParts down = parts({LoraTarget::kDown});
    if (down.count > 0 && acts.saving == Saving::kAll) swiglu(dev, {.g = a.g, .u = a.u, .a = acts.a});
    const Tensor dot = w.gate_up_bias.view().empty() ? acts.dot : Tensor{};  // of products without bias only
    down_backward(dev, {.dout = acts.dx,
                        .w = w.down.get(),
                        .g = a.g,
                        .u = a.u,
                        .dy = acts.dy,
                        .scratch = acts.scratch,
                        .dout_bf16 = dx_bf16,
                        .dot = dot,
                        .lora = down,
                        .a = acts.a});
    dx_bf16 = acts.dx_bf16;
    gate_up_backward(dev, {.x = a.h,
                           .rstd = a.rstd2,
                           .gain = w.mlp_gain,
                           .w = w.gate_up.get(),
                           .dy = acts.dy,
                           .dx = acts.dx,
                           .scratch = acts.scratch,
                           .dot = dot,
                           .dx_bf16 = acts.dx_bf16,
                           .lora = parts({LoraTarget::kGate, LoraTarget::kUp})});
    // h = x + o(attention(qkv(norm(x))))
    project_backward(dev, {.dout = acts.dx,
                           .w = w.o.get(),
                           .da = acts.d_o.view({n, hd}),
                           .scratch = acts.scratch,
                           .dout_bf16 = dx_bf16,
                           .lora = parts({LoraTarget::kO}),
                           .a = a.o.view({n, hd})});
    const bool biased = !w.qkv_bias.view().empty();
    attention_backward(dev, {.q = a.q,
                             .k = a.k,
                             .v = a.v,
                             .o = a.o,
                             .lse = a.lse,
                             .d_o = acts.d_o,
                             .plan = &plan,
                             .scale = scale,
                             .dq = acts.dq,
                             .dk = acts.dk,
                             .dv = acts.dv,
                             .scratch = acts.scratch});
    qkv_backward(dev, {.x = a.x,
                       .rstd = a.rstd1,
                       .gain = w.attention_gain,
                       .w = w.qkv.get(),
                       .rotary = acts.rotary,
                       .dq = acts.dq,
                       .dk = acts.dk,
                       .dv = acts.dv,
                       .dx = acts.dx,
                       .scratch = acts.scratch,
                       .q = biased ? ConstTensor{} : a.q,
                       .k = biased ? ConstTensor{} : a.k,
                       .v = biased ? ConstTensor{} : a.v,
                       .dx_bf16 = acts.dx_bf16,
                       .lora = parts({LoraTarget::kQ, LoraTarget::kK, LoraTarget::kV})});
  }
}

void llama_decode(Device& dev, const Llama& llama, ConstTensor tokens, ConstTensor positions,
                  ConstTensor slots, const AttentionPlan& plan, ConstTensor prompt, KvCache& cache,
                  Activations& acts, const LoraAdapter* lora) {
  const Range range(dev, "decode");
  const size_t layers = acts.layers.size();
  GT_CHECK(layers == llama.layers().size() && layers > 0, "decoding runs all {} layers, got {}",
           llama.layers().size(), layers);
  embed_forward(dev,
                {.table = &llama.embedding(), .tokens = tokens, .prompt = prompt, .x = acts.layers[0].x});
  row_rstd(dev, {.x = acts.layers[0].x,
                 .rstd = acts.layers[0].rstd1,
                 .eps = llama.config().rms_norm_eps,
                 .x_bf16 = acts.x_bf16,
                 .gain = llama.layers()[0].attention_gain});
  rotary_table(dev, {.positions = positions, .inv_freq = llama.inv_freq(), .table = acts.rotary});
  for (size_t l = 0; l < layers; ++l) {
    const LayerActivations& a = acts.layers[l];
    const bool last = l + 1 == layers;
    layer_qkv(dev, llama, llama.layers()[l], a, acts, lora, l);
    kv_append(dev, {.k = a.k, .v = a.v, .slots = slots, .k_cache = cache.k[l], .v_cache = cache.v[l]});
    layer_forward(dev, llama, llama.layers()[l], a, plan, cache.k[l], cache.v[l], acts,
                  last ? acts.x_out : acts.layers[l + 1].x, last ? acts.rstd_out : acts.layers[l + 1].rstd1,
                  last ? nullptr : &llama.layers()[l + 1], lora, l);
  }
}

void find_non_finite(Device& dev, const ForwardArgs& args) {
  auto require = [&](ConstTensor t, const std::string& what) {
    if (!t.empty() && !all_finite(dev, t))
      fail(
          "first value that is not finite: {}; the weights may be damaged; where it worked before, a smaller "
          "optimizer.lr or dtype=f32 may help",
          what);
  };
  if (!args.prompt.empty()) require(args.prompt, "the soft prompt (the generator's output)");
  const Activations& acts = *args.acts;
  for (size_t l = 0; l < acts.layers.size(); ++l) {
    const LayerActivations& a = acts.layers[l];
    require(a.x, fmt::format("layer {}, {}", l, l == 0 ? "embedding" : "residual stream at its input"));
    if (acts.saving != Saving::kAll)
      continue;  // the other tensors are shared between layers and already overwritten
    require(a.q, fmt::format("layer {}, q (qkv_forward)", l));
    require(a.k, fmt::format("layer {}, k (qkv_forward)", l));
    require(a.v, fmt::format("layer {}, v (qkv_forward)", l));
    require(a.o, fmt::format("layer {}, attention output (attention_forward)", l));
    require(a.h, fmt::format("layer {}, residual stream after attention (project_forward)", l));
    require(a.g, fmt::format("layer {}, gate (gate_up_forward)", l));
    require(a.u, fmt::format("layer {}, up (gate_up_forward)", l));
  }
  require(acts.x_out, "the residual stream after the last layer");
}

}  // namespace gantrain
