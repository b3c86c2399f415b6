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

DeviceBatch::DeviceBatch(Device& device, const PackedBatch& batch, BatchEnds of)
    : host(&batch),
      ends(std::move(of)),
      tokens(upload(device, batch.tokens())),
      positions(upload(device, batch.positions())) {
  if (!ends.read.empty()) {
    std::vector<int32_t> place(static_cast<size_t>(batch.rows()), static_cast<int32_t>(ends.read.size()));
    for (size_t i = 0; i < ends.read.size(); ++i)
      place[static_cast<size_t>(ends.read[i])] = static_cast<int32_t>(i);
    read = upload(device, std::span<const int32_t>(ends.read));
    places = upload(device, std::span<const int32_t>(place));
  }
  if (!ends.wanted.empty()) {
    std::vector<int32_t> own;
    for (const int32_t row : ends.wanted) own.push_back(batch.tokens()[static_cast<size_t>(row)]);
    wanted = upload(device, std::span<const int32_t>(ends.wanted));
    wanted_tokens = upload(device, std::span<const int32_t>(own));
  }
}

PackedBatch batch_behind(const Adapters& adapters) {
  return PackedBatch(adapters.prefix_rows(),
                     adapters.contexts.rows > 0 ? PackedBatch::Sees::kNamed : PackedBatch::Sees::kAll);
}

namespace {

// The first n rows; of an empty view, nothing.
Tensor front(const Tensor& t, int64_t n) { return t.empty() ? t : t.rows(0, n); }
// Rows as one long row each.
Tensor flat(const Tensor& t) { return t.view({t.dim(0), t.count() / t.dim(0)}); }

// What stands behind attention (part 0) or the MLP (1) of layer l, or null.
const BottleneckAdapter::Part* bottleneck_of(const Adapters& adapters, size_t l, size_t part) {
  const BottleneckAdapter* b = adapters.bottleneck;
  if (!b || !b->shape.has(part)) return nullptr;
  return &b->layers.at(l)[part];
}

// y = out - x, what attention or the MLP added;  out += up act(down y), and the statistic of the new out.
// With `up` and its bias at zero out keeps its bits. x may lie in acts.wide.
void bottleneck_forward(Device& dev, const BottleneckAdapter::Part& p, Activation activation,
                        const LayerActivations& a, size_t part, ConstTensor x, Tensor out, Tensor rstd,
                        float eps, const LlamaLayer* reader, bool reader_mlp, const Activations& acts) {
  const Tensor y = a.narrow_x[part], z = a.narrow_z[part];
  const int64_t n = z.dim(0);
  const Tensor active = front(acts.active, n), wide = front(acts.wide, n);
  dev.copy(y, out);
  axpy(dev, {.x = x, .a = -1.0f, .y = y});
  linear_forward(dev, {.x = y, .w = p.down, .b = p.down_bias, .y = z});
  activation_forward(dev, {.x = z, .kind = activation, .y = active});
  linear_forward(dev, {.x = active, .w = p.up, .b = p.up_bias, .y = wide});
  axpy(dev, {.x = wide, .a = 1.0f, .y = out});
  const ConstTensor gain = !reader      ? ConstTensor{}
                           : reader_mlp ? ConstTensor(reader->mlp_gain)
                                        : ConstTensor(reader->attention_gain);
  row_rstd(dev, {.x = out,
                 .rstd = rstd,
                 .eps = eps,
                 .x_bf16 = reader ? front(acts.x_bf16, n) : Tensor{},
                 .gain = gain});
}

// From dx, the gradient of forward's `out`, to that of what attention or the MLP added, in dout.
void bottleneck_backward(Device& dev, const BottleneckAdapter::Part& p, Activation activation,
                         const LayerActivations& a, size_t part, ConstTensor dx, Tensor dout,
                         const Activations& acts) {
  const Tensor z = a.narrow_z[part];
  const int64_t n = z.dim(0), r = z.dim(1);
  const Tensor narrow = acts.dnarrow.view({acts.dnarrow.count() / r, r}), dactive = narrow.rows(0, n),
               dz = narrow.rows(n, n), active = front(acts.active, n);
  dev.fill_zero(acts.dnarrow);
  activation_forward(dev, {.x = z, .kind = activation, .y = active});
  linear_backward(dev, {.x = active, .w = p.up, .dy = dx, .dx = dactive, .dw = p.dup, .db = p.dup_bias});
  activation_backward(dev, {.x = z, .kind = activation, .dy = dactive, .dx = dz});
  dev.copy(dout, dx);
  linear_backward(
      dev, {.x = a.narrow_x[part], .w = p.down, .dy = dz, .dx = dout, .dw = p.ddown, .db = p.ddown_bias});
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
  const Tensor normed = front(acts.normed, x.dim(0)), dnormed = front(acts.dnormed, x.dim(0)),
               rstd = front(acts.rstd_again, x.dim(0));
  rmsnorm_forward(dev, {.x = x, .w = gain, .y = normed, .rstd = rstd, .eps = eps});
  weight_gradients(dev, normed, dy, dw, dbias);
  rmsnorm_backward(dev, {.x = x, .w = gain, .rstd = rstd, .dy = dnormed, .dx = {}, .dw = dgain});
}

// One layer's forward:
//   x -> norm -> q, k, v (+RoPE) -> attention -> o -> +x = h -> norm -> gate, up -> SwiGLU -> down -> +h =
//   out
struct LayerPass {
  Device& dev;
  const Llama& llama;
  const Adapters& adapters;
  const Activations& acts;
  size_t l;
  const AttentionPlan& plan;
  ConstTensor read;  // the rows that the last layer goes on with behind attention; empty: all

  const LlamaLayer& w = llama.layers()[l];
  const LayerActivations& a = acts.layers[l];
  const float eps = llama.config().rms_norm_eps;
  // Of shared tensors, the rows behind attention.
  const Tensor x_bf16 = front(acts.x_bf16, a.h.dim(0)), active = front(acts.a, a.h.dim(0));

  LoraParts lora(std::initializer_list<LoraTarget> targets) const {
    return LoraParts(adapters, llama.config(), l, targets, a.z);
  }
  void qkv() const {
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
                      .lora = lora({LoraTarget::kQ, LoraTarget::kK, LoraTarget::kV})});
  }
  // The rows of keys and values in front: a prefix's, or those of cached contexts.
  void prefix() const {
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
  void attention(ConstTensor k, ConstTensor v) const {
    attention_forward(dev, {.q = a.q,
                            .k = k,
                            .v = v,
                            .plan = &plan,
                            .scale = llama.attention_scale(),
                            .o = a.o,
                            .lse = a.lse,
                            .scratch = acts.scratch});
  }
  // From o to h.
  void project() const {
    Tensor o = flat(a.o), residual = a.x;
    if (!read.empty()) {
      o = flat(acts.o_read), residual = a.h;
      gather_rows(dev, {.x = flat(a.o), .rows = read, .y = o});
      gather_rows(dev, {.x = a.x, .rows = read, .y = residual});
    }
    project_forward(dev, {.a = o,
                          .w = w.o.get(),
                          .bias = w.o_bias,
                          .residual = residual,
                          .out = a.h,
                          .rstd = a.rstd2,
                          .eps = eps,
                          .scratch = acts.scratch,
                          .out_bf16 = x_bf16,
                          .out_gain = w.mlp_gain,
                          .lora = lora({LoraTarget::kO})});
    if (const auto* b = bottleneck_of(adapters, l, 0)) {
      Tensor before = a.x;
      if (!read.empty()) {
        before = front(acts.wide, a.h.dim(0));
        gather_rows(dev, {.x = a.x, .rows = read, .y = before});
      }
      bottleneck_forward(dev, *b, adapters.bottleneck->shape.activation, a, 0, before, a.h, a.rstd2, eps, &w,
                         true, acts);
    }
  }
  // From h to g, u and what SwiGLU makes of them.
  void gate_up() const {
    gate_up_forward(dev, {.x = a.h,
                          .rstd = a.rstd2,
                          .gain = w.mlp_gain,
                          .w = w.gate_up.get(),
                          .bias = w.gate_up_bias,
                          .g = a.g,
                          .u = a.u,
                          .a = active,
                          .scratch = acts.scratch,
                          .x_bf16 = x_bf16,
                          .lora = lora({LoraTarget::kGate, LoraTarget::kUp})});
  }
  // From there to out, which layer `next` reads, or nobody here.
  void down(Tensor out, Tensor rstd_out, const LlamaLayer* next) const {
    project_forward(dev, {.a = active,
                          .w = w.down.get(),
                          .bias = w.down_bias,
                          .residual = a.h,
                          .out = out,
                          .rstd = rstd_out,
                          .eps = eps,
                          .scratch = acts.scratch,
                          .out_bf16 = next ? acts.x_bf16 : Tensor{},
                          .out_gain = next ? ConstTensor(next->attention_gain) : ConstTensor{},
                          .lora = lora({LoraTarget::kDown})});
    if (const auto* b = bottleneck_of(adapters, l, 1))
      bottleneck_forward(dev, *b, adapters.bottleneck->shape.activation, a, 1, a.h, out, rstd_out, eps, next,
                         false, acts);
  }
  // Everything behind q, k and v; they may lie in a cache.
  void finish(ConstTensor k, ConstTensor v) const {
    attention(k, v);
    project();
    gate_up();
    const bool last = l + 1 == acts.layers.size();
    down(last ? acts.x_out : acts.layers[l + 1].x, last ? acts.rstd_out : acts.layers[l + 1].rstd1,
         last ? nullptr : &llama.layers()[l + 1]);
  }
  // What backward needs and forward did not keep (Saving). What comes behind SwiGLU is not needed, but for a
  // bottleneck there. rstd1 and rstd2 are as forward left them; x_bf16 holds another layer's stream by now.
  void again() const {
    const auto round = [&](Tensor x, Tensor x_bf16_of, ConstTensor gain) {
      if (!x_bf16_of.empty())
        row_rstd(dev, {.x = x, .rstd = front(acts.dot, x.dim(0)), .x_bf16 = x_bf16_of, .gain = gain});
    };
    if (acts.saving == Saving::kLayerInput) {
      round(a.x, acts.x_bf16, w.attention_gain);
      qkv();
      prefix();
      attention(a.keys, a.values);
    }
    if (acts.saving >= Saving::kButMlp)
      project();
    else
      round(a.h, x_bf16, w.mlp_gain);
    gate_up();
    if (acts.saving == Saving::kLayerInput && bottleneck_of(adapters, l, 1))
      down(front(acts.dout, a.h.dim(0)), front(acts.rstd_again, a.h.dim(0)), nullptr);
  }
};

}  // namespace

void llama_forward(Device& dev, const ForwardArgs& args) {
  const Range range(dev, "forward");
  const Llama& llama = args.adapters.on(*args.llama);
  GT_CHECK(args.batch->host->prefix() == args.adapters.prefix_rows(),
           "a batch behind {} keys, a prefix of {}", args.batch->host->prefix(), args.adapters.prefix_rows());
  Activations& acts = *args.acts;
  const BatchEnds& ends = args.batch->ends;
  const size_t layers = acts.layers.size();
  GT_CHECK(acts.x_out.dim(0) == (layers ? ends.read_rows(acts.rows) : acts.rows),
           "activations of {} rows behind the layers, a batch of which {} are read", acts.x_out.dim(0),
           ends.read_rows(acts.rows));
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
    const bool some = l + 1 == layers && !ends.read.empty();
    const LayerPass pass{dev,
                         llama,
                         args.adapters,
                         acts,
                         l,
                         some ? ends.read_plan : args.batch->host->plan(),
                         some ? args.batch->read.view() : ConstTensor{}};
    pass.qkv();
    pass.prefix();
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
    pass.finish(a.keys, a.values);
  }
}

void llama_backward(Device& dev, const ForwardArgs& args) {
  const Range range(dev, "backward");
  const Adapters& adapters = args.adapters;
  const Llama& llama = adapters.on(*args.llama);
  const float eps = llama.config().rms_norm_eps;
  Activations& acts = *args.acts;
  GT_CHECK(acts.saving != Saving::kNothing, "backward after a forward that saved nothing");
  const BatchEnds& ends = args.batch->ends;
  const float scale = llama.attention_scale();
  ConstTensor dx_bf16;  // acts.dx_bf16, once an op has written it
  for (size_t l = acts.layers.size(); l-- > 0;) {
    const Range layer(dev, "layer");
    const LlamaLayer& w = llama.layers()[l];
    const LayerActivations& a = acts.layers[l];
    const bool some = l + 1 == acts.layers.size() && !ends.read.empty();
    const AttentionPlan& plan = some ? ends.read_plan : args.batch->host->plan();
    const LayerPass pass{dev, llama, adapters, acts, l, plan, some ? args.batch->read.view() : ConstTensor{}};
    if (acts.saving != Saving::kAll) pass.again();
    const auto parts = [&](std::initializer_list<LoraTarget> t) { return pass.lora(t); };
    const TrainedWeights::Layer none{}, &trained = adapters.weights ? adapters.weights->layers.at(l) : none;
    const bool trains = !trained.qkv.empty();
    // Rows behind attention, of shared tensors too; and where their gradient is.
    const int64_t n = a.h.dim(0);
    const Tensor dh = l + 1 == acts.layers.size() ? acts.dx_out : acts.dx, dh_bf16 = front(acts.dx_bf16, n),
                 dgate_up = acts.dy.rows(0, n), o = some ? flat(acts.o_read) : flat(a.o);
    // out = h + down(SwiGLU(gate_up(norm(h))))
    const LoraParts down = parts({LoraTarget::kDown});
    if ((down.count > 0 || trains) && acts.saving == Saving::kAll)
      swiglu(dev, {.g = a.g, .u = a.u, .a = pass.active});
    // Of products without bias only.
    const Tensor dot = w.gate_up_bias.view().empty() ? front(acts.dot, n) : Tensor{};
    Tensor dout = dh;
    if (const auto* b = bottleneck_of(adapters, l, 1)) {
      dout = front(acts.dout, n);
      bottleneck_backward(dev, *b, adapters.bottleneck->shape.activation, a, 1, dh, dout, acts);
      dx_bf16 = {};  // of another gradient
    }
    weight_gradients(dev, pass.active, dout, trained.down, trained.down_bias);
    down_backward(dev, {.dout = dout,
                        .w = w.down.get(),
                        .g = a.g,
                        .u = a.u,
                        .dy = dgate_up,
                        .scratch = acts.scratch,
                        .dout_bf16 = dx_bf16,
                        .dot = dot,
                        .lora = down,
                        .a = pass.active});
    dx_bf16 = dh_bf16;
    gate_up_backward(dev, {.x = a.h,
                           .rstd = a.rstd2,
                           .gain = w.mlp_gain,
                           .w = w.gate_up.get(),
                           .dy = dgate_up,
                           .dx = dh,
                           .scratch = acts.scratch,
                           .dot = dot,
                           .dx_bf16 = dh_bf16,
                           .lora = parts({LoraTarget::kGate, LoraTarget::kUp}),
                           .dnormed = trains ? front(acts.dnormed, n) : Tensor{}});
    normed_gradients(dev, acts, a.h, w.mlp_gain, eps, dgate_up, trained.gate_up, trained.gate_up_bias,
                     trained.mlp_gain);
    // h = x + o(attention(qkv(norm(x))))
    dout = dh;
    if (const auto* b = bottleneck_of(adapters, l, 0)) {
      dout = front(acts.dout, n);
      bottleneck_backward(dev, *b, adapters.bottleneck->shape.activation, a, 0, dh, dout, acts);
      dx_bf16 = {};
    }
    weight_gradients(dev, o, dout, trained.o, trained.o_bias);
    const Tensor d_o = some ? acts.do_read.rows(0, n) : acts.d_o;
    project_backward(dev, {.dout = dout,
                           .w = w.o.get(),
                           .da = flat(d_o),
                           .scratch = acts.scratch,
                           .dout_bf16 = dx_bf16,
                           .lora = parts({LoraTarget::kO}),
                           .a = o});
    if (some) {
      // To all rows: those that were not read have no gradient here.
      dev.fill_zero(acts.do_read.rows(n, 1));
      dev.fill_zero(acts.dx_read.rows(n, 1));
      gather_rows(dev, {.x = flat(acts.do_read), .rows = args.batch->places, .y = flat(acts.d_o)});
      gather_rows(dev, {.x = acts.dx_read, .rows = args.batch->places, .y = acts.dx});
    }
    const Tensor dot_qkv = w.qkv_bias.view().empty() ? acts.dot_qkv : Tensor{};
    const bool wanted = l == 0 && !ends.wanted.empty();
    attention_backward(dev, {.q = a.q,
                             .k = a.keys,
                             .v = a.values,
                             .o = a.o,
                             .lse = a.lse,
                             .d_o = acts.d_o,
                             .plan = wanted ? &ends.wanted_plan : &plan,
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
    if (wanted) {
      // Nothing in front of these rows is asked for, and no row's product needs another row.
      const ConstTensor rows = args.batch->wanted;
      gather_rows(dev, {.x = a.x, .rows = rows, .y = acts.x_wanted});
      gather_rows(dev, {.x = acts.dx, .rows = rows, .y = acts.dx_wanted});
      gather_rows(dev, {.x = flat(a.rstd1), .rows = rows, .y = flat(acts.rstd_wanted)});
      gather_rows(dev, {.x = acts.dqkv, .rows = rows, .y = acts.dqkv_wanted});
      if (!dot_qkv.empty()) gather_rows(dev, {.x = dot_qkv, .rows = rows, .y = acts.dot_wanted});
      qkv_backward(dev, {.x = acts.x_wanted,
                         .rstd = acts.rstd_wanted,
                         .gain = w.attention_gain,
                         .w = w.qkv.get(),
                         .dy = acts.dqkv_wanted,
                         .dx = acts.dx_wanted,
                         .scratch = acts.scratch,
                         .dot = dot_qkv.empty() ? Tensor{} : acts.dot_wanted,
                         .dx_bf16 = front(acts.dx_bf16, std::ssize(ends.wanted))});
      continue;
    }
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
    const LayerPass pass{dev, llama, adapters, acts, l, plan, {}};
    pass.qkv();
    kv_append(dev, {.k = a.k, .v = a.v, .slots = slots, .k_cache = cache.k[l], .v_cache = cache.v[l]});
    pass.finish(cache.k[l], cache.v[l]);
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
    if (acts.saving >= Saving::kLayerInput) continue;  // tensors that layers share are overwritten by now
    require(a.q, fmt::format("layer {}, q (qkv_forward)", l));
    require(a.k, fmt::format("layer {}, k (qkv_forward)", l));
    require(a.v, fmt::format("layer {}, v (qkv_forward)", l));
    require(a.o, fmt::format("layer {}, attention output (attention_forward)", l));
    if (acts.saving >= Saving::kButMlp) continue;
    require(a.h, fmt::format("layer {}, residual stream after attention (project_forward)", l));
    if (acts.saving >= Saving::kButGateUp) continue;
    require(a.g, fmt::format("layer {}, gate (gate_up_forward)", l));
    require(a.u, fmt::format("layer {}, up (gate_up_forward)", l));
  }
  require(acts.x_out, "the residual stream after the last layer");
}

}  // namespace gantrain
