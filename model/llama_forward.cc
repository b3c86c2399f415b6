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

PackedBatch batch_behind(const Adapters& adapters) {
  return PackedBatch(adapters.prefix_rows(),
                     adapters.contexts.rows > 0 ? PackedBatch::Sees::kNamed : PackedBatch::Sees::kAll);
}

namespace {

// What stands behind attention (part 0) or the MLP (1) of layer l, or null.
const BottleneckAdapter::Part* bottleneck_of(const Adapters& adapters, size_t l, size_t part) {
  const BottleneckAdapter* b = adapters.bottleneck;
  if (!b || !b->shape.has(part)) return nullptr;
  return &b->layers.at(l)[part];
}

// y = out - x, what attention or the MLP added;  out += up act(down y), and the statistic of the new out.
// With `up` and its bias at zero out keeps its bits.
void bottleneck_forward(Device& dev, const BottleneckAdapter::Part& p, Activation activation,
                        const LayerActivations& a, size_t part, ConstTensor x, Tensor out, Tensor rstd,
                        float eps, const LlamaLayer* reader, bool reader_mlp, const Activations& acts) {
  const Tensor y = a.narrow_x[part], z = a.narrow_z[part];
  dev.copy(y, out);
  axpy(dev, {.x = x, .a = -1.0f, .y = y});
  linear_forward(dev, {.x = y, .w = p.down, .b = p.down_bias, .y = z});
  activation_forward(dev, {.x = z, .kind = activation, .y = acts.active});
  linear_forward(dev, {.x = acts.active, .w = p.up, .b = p.up_bias, .y = acts.wide});
  axpy(dev, {.x = acts.wide, .a = 1.0f, .y = out});
  const ConstTensor gain = !reader      ? ConstTensor{}
                           : reader_mlp ? ConstTensor(reader->mlp_gain)
                                        : ConstTensor(reader->attention_gain);
  row_rstd(dev,
           {.x = out, .rstd = rstd, .eps = eps, .x_bf16 = reader ? acts.x_bf16 : Tensor{}, .gain = gain});
}

// From acts.dx, the gradient of forward's `out`, to that of what attention or the MLP added, in acts.dout.
void bottleneck_backward(Device& dev, const BottleneckAdapter::Part& p, Activation activation,
                         const LayerActivations& a, size_t part, const Activations& acts) {
  const Tensor z = a.narrow_z[part];
  const int64_t n = z.dim(0), r = z.dim(1);
  const Tensor dactive = acts.dnarrow.rows(0, 1).view({n, r}), dz = acts.dnarrow.rows(1, 1).view({n, r});
  dev.fill_zero(acts.dnarrow);
  activation_forward(dev, {.x = z, .kind = activation, .y = acts.active});
  linear_backward(dev,
                  {.x = acts.active, .w = p.up, .dy = acts.dx, .dx = dactive, .dw = p.dup, .db = p.dup_bias});
  activation_backward(dev, {.x = z, .kind = activation, .dy = dactive, .dx = dz});
  dev.copy(acts.dout, acts.dx);
  linear_backward(
      dev,
      {.x = a.narrow_x[part], .w = p.down, .dy = dz, .dx = acts.dout, .dw = p.ddown, .db = p.ddown_bias});
}

// Gradients of a product with w (O, I) in front of the residual stream: x what it read, dy the stream's.
void weight_gradients(Device& dev, ConstTensor x, ConstTensor dy, Tensor dw, Tensor dbias) {
  if (dw.empty()) return;  // values without gradients
  linear_backward(dev, {.x = x, .w = dw, .dy = dy, .dx = {}, .dw = dw, .db = dbias});
}
// The same behind a norm of x, and the norm's gain: acts.dnormed is dy w.
void normed_gradients(Device& dev, const Activations& acts, ConstTensor x, ConstTensor gain, float eps,
                      ConstTensor dy, Tensor dw, Tensor dbias, Tensor dgain) {
  if (dw.empty()) return;
  rmsnorm_forward(dev, {.x = x, .w = gain, .y = acts.normed, .rstd = acts.rstd_again, .eps = eps});
  weight_gradients(dev, acts.normed, dy, dw, dbias);
  rmsnorm_backward(dev,
                   {.x = x, .w = gain, .rstd = acts.rstd_again, .dy = acts.dnormed, .dx = {}, .dw = dgain});
}

// Layer l, from x to the next layer's x:
//   x -> norm -> q, k, v (+RoPE) -> attention -> o -> +x = h -> norm -> gate, up -> SwiGLU -> down -> +h =
//   out
void layer_forward(Device& dev, const Llama& llama, const LlamaLayer& w, const LayerActivations& a,
                   const AttentionPlan& plan, ConstTensor k, ConstTensor v, const Activations& acts,
                   Tensor out, Tensor rstd_out, const LlamaLayer* next, const Adapters& adapters, size_t l) {
  const float eps = llama.config().rms_norm_eps;
  const auto parts = [&](std::initializer_list<LoraTarget> t) {
    return LoraParts(adapters, llama.config(), l, t, a.z);
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
  if (const auto* b = bottleneck_of(adapters, l, 0))
    bottleneck_forward(dev, *b, adapters.bottleneck->shape.activation, a, 0, a.x, a.h, a.rstd2, eps, &w, true,
                       acts);
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
  if (const auto* b = bottleneck_of(adapters, l, 1))
    bottleneck_forward(dev, *b, adapters.bottleneck->shape.activation, a, 1, a.h, out, rstd_out, eps, next,
                       false, acts);
}

void layer_qkv(Device& dev, const Llama& llama, const LlamaLayer& w, const LayerActivations& a,
               const Activations& acts, const Adapters& adapters, size_t l) {
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
                    .lora = LoraParts(adapters, llama.config(), l,
                                      {LoraTarget::kQ, LoraTarget::kK, LoraTarget::kV}, a.z)});
}
// The rows of keys and values in front: a prefix's, or those of cached contexts.
void layer_prefix(Device& dev, const LayerActivations& a, const Adapters& adapters, size_t l) {
  const int64_t p = adapters.prefix_rows();
  if (const CachedContexts& c = adapters.contexts; c.rows > 0)
    kv_append(dev, {.k = c.cache->k[l],
                    .v = c.cache->v[l],
                    .slots = c.slots,
                    .k_cache = a.keys.rows(0, p),
                    .v_cache = a.values.rows(0, p)});
  else if (p > 0)
    prefix_forward(dev, {.table = adapters.prefix->table,
                         .layer = static_cast<int64_t>(l),
                         .k = a.keys.rows(0, p),
                         .v = a.values.rows(0, p)});
}

}  // namespace

void llama_forward(Device& dev, const ForwardArgs& args) {
  const Range range(dev, "forward");
  const Llama& llama = args.adapters.on(*args.llama);
  GT_CHECK(args.batch->host->prefix() == args.adapters.prefix_rows(),
           "a batch behind {} keys, a prefix of {}", args.batch->host->prefix(), args.adapters.prefix_rows());
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
    layer_qkv(dev, llama, llama.layers()[l], a, acts, args.adapters, l);
    layer_prefix(dev, a, args.adapters, l);
    if (args.cache) {
      if (const int64_t p = args.adapters.prefix_rows(); p > 0) {
        dev.copy(args.cache->k[l].view().rows(0, p), a.keys.rows(0, p));
        dev.copy(args.cache->v[l].view().rows(0, p), a.values.rows(0, p));
      }
      kv_append(dev, {.k = a.k,
                      .v = a.v,
                      .slots = args.slots,
                      .k_cache = args.cache->k[l],
                      .v_cache = args.cache->v[l]});
    }
    layer_forward(dev, llama, llama.layers()[l], a, plan, a.keys, a.values, acts,
                  last ? acts.x_out : acts.layers[l + 1].x, last ? acts.rstd_out : acts.layers[l + 1].rstd1,
                  last ? nullptr : &llama.layers()[l + 1], args.adapters, l);
  }
}

void llama_backward(Device& dev, const ForwardArgs& args) {
  const Range range(dev, "backward");
  const Adapters& adapters = args.adapters;
  const Llama& llama = adapters.on(*args.llama);
  const float eps = llama.config().rms_norm_eps;
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
      layer_qkv(dev, llama, w, a, acts, adapters, l);
      layer_prefix(dev, a, adapters, l);
      layer_forward(dev, llama, w, a, plan, a.keys, a.values, acts, acts.x_out, acts.rstd_out, nullptr,
                    adapters, l);
    }
    const int64_t hd = a.q.dim(1) * a.q.dim(2);
    const auto parts = [&](std::initializer_list<LoraTarget> t) {
      return LoraParts(adapters, llama.config(), l, t, a.z);
    };
    const TrainedWeights::Layer none{}, &trained = adapters.weights ? adapters.weights->layers.at(l) : none;
    const bool trains = !trained.qkv.empty();
    // out = h + down(SwiGLU(gate_up(norm(h))))
    const LoraParts down = parts({LoraTarget::kDown});
    if ((down.count > 0 || trains) && acts.saving == Saving::kAll)
      swiglu(dev, {.g = a.g, .u = a.u, .a = acts.a});
    const Tensor dot = w.gate_up_bias.view().empty() ? acts.dot : Tensor{};  // of products without bias only
    Tensor dout = acts.dx;
    if (const auto* b = bottleneck_of(adapters, l, 1)) {
      bottleneck_backward(dev, *b, adapters.bottleneck->shape.activation, a, 1, acts);
      dout = acts.dout;
      dx_bf16 = {};  // of another gradient
    }
    weight_gradients(dev, acts.a, dout, trained.down, trained.down_bias);
    down_backward(dev, {.dout = dout,
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
                           .lora = parts({LoraTarget::kGate, LoraTarget::kUp}),
                           .dnormed = trains ? acts.dnormed : Tensor{}});
    normed_gradients(dev, acts, a.h, w.mlp_gain, eps, acts.dy, trained.gate_up, trained.gate_up_bias,
                     trained.mlp_gain);
    // h = x + o(attention(qkv(norm(x))))
    dout = acts.dx;
    if (const auto* b = bottleneck_of(adapters, l, 0)) {
      bottleneck_backward(dev, *b, adapters.bottleneck->shape.activation, a, 0, acts);
      dout = acts.dout;
      dx_bf16 = {};
    }
    weight_gradients(dev, a.o.view({n, hd}), dout, trained.o, trained.o_bias);
    project_backward(dev, {.dout = dout,
                           .w = w.o.get(),
                           .da = acts.d_o.view({n, hd}),
                           .scratch = acts.scratch,
                           .dout_bf16 = dx_bf16,
                           .lora = parts({LoraTarget::kO}),
                           .a = a.o.view({n, hd})});
    const Tensor dot_qkv = w.qkv_bias.view().empty() ? acts.dot_qkv : Tensor{};
    attention_backward(dev, {.q = a.q,
                             .k = a.keys,
                             .v = a.values,
                             .o = a.o,
                             .lse = a.lse,
                             .d_o = acts.d_o,
                             .plan = &plan,
                             .scale = scale,
                             .dq = {},
                             .dk = acts.dk_prefix,
                             .dv = acts.dv_prefix,
                             .scratch = acts.scratch,
                             .dy = acts.dqkv,
                             .rotary = acts.rotary,
                             .dot = dot_qkv});
    if (adapters.prefix && !adapters.prefix->dtable.empty())
      prefix_backward(dev, {.dk = acts.dk_prefix,
                            .dv = acts.dv_prefix,
                            .layer = static_cast<int64_t>(l),
                            .dtable = adapters.prefix->dtable});
    qkv_backward(dev, {.x = a.x,
                       .rstd = a.rstd1,
                       .gain = w.attention_gain,
                       .w = w.qkv.get(),
                       .dy = acts.dqkv,
                       .dx = acts.dx,
                       .scratch = acts.scratch,
                       .dot = dot_qkv,
                       .dx_bf16 = acts.dx_bf16,
                       .lora = parts({LoraTarget::kQ, LoraTarget::kK, LoraTarget::kV}),
                       .dnormed = trains ? acts.dnormed : Tensor{}});
    normed_gradients(dev, acts, a.x, w.attention_gain, eps, acts.dqkv, trained.qkv, trained.qkv_bias,
                     trained.attention_gain);
    dx_bf16 = acts.dx_bf16;
  }
  if (adapters.weights && !adapters.weights->embedding.empty())
    scatter_add_rows(dev, {.dy = acts.dx, .rows = args.batch->tokens, .dx = adapters.weights->embedding});
}

void llama_decode(Device& dev, const Llama& base, ConstTensor tokens, ConstTensor positions,
                  ConstTensor slots, const AttentionPlan& plan, ConstTensor prompt, KvCache& cache,
                  Activations& acts, const Adapters& adapters) {
  const Range range(dev, "decode");
  const Llama& llama = adapters.on(base);
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
    layer_qkv(dev, llama, llama.layers()[l], a, acts, adapters, l);
    kv_append(dev, {.k = a.k, .v = a.v, .slots = slots, .k_cache = cache.k[l], .v_cache = cache.v[l]});
    layer_forward(dev, llama, llama.layers()[l], a, plan, cache.k[l], cache.v[l], acts,
                  last ? acts.x_out : acts.layers[l + 1].x, last ? acts.rstd_out : acts.layers[l + 1].rstd1,
                  last ? nullptr : &llama.layers()[l + 1], adapters, l);
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
