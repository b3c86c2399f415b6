#include "model/adapters/trained_weights.h"

#include "model/weights.h"

namespace gantrain {
namespace {

// Where a layer keeps each of its tensors, and which files' tensors it is made of.
struct LayerTensor {
  const char* name;
  std::vector<const char*> parts;
  ConstTensor Llama::Values::Layer::*value;
  Tensor TrainedWeights::Layer::*gradient;
};
const std::vector<LayerTensor>& layer_tensors() {
  using V = Llama::Values::Layer;
  using G = TrainedWeights::Layer;
  static const std::vector<LayerTensor> all{
      {"input_layernorm.weight", {"input_layernorm.weight"}, &V::attention_gain, &G::attention_gain},
      {"self_attn.qkv.weight",
       {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"},
       &V::qkv,
       &G::qkv},
      {"self_attn.qkv.bias",
       {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"},
       &V::qkv_bias,
       &G::qkv_bias},
      {"self_attn.o_proj.weight", {"self_attn.o_proj.weight"}, &V::o, &G::o},
      {"self_attn.o_proj.bias", {"self_attn.o_proj.bias"}, &V::o_bias, &G::o_bias},
      {"post_attention_layernorm.weight", {"post_attention_layernorm.weight"}, &V::mlp_gain, &G::mlp_gain},
      {"mlp.gate_up.weight", {"mlp.gate_proj.weight", "mlp.up_proj.weight"}, &V::gate_up, &G::gate_up},
      {"mlp.gate_up.bias", {"mlp.gate_proj.bias", "mlp.up_proj.bias"}, &V::gate_up_bias, &G::gate_up_bias},
      {"mlp.down_proj.weight", {"mlp.down_proj.weight"}, &V::down, &G::down},
      {"mlp.down_proj.bias", {"mlp.down_proj.bias"}, &V::down_bias, &G::down_bias}};
  return all;
}

// No parts: the model has no such tensor.
TrainedTensor describe(const Llama& base, const std::string& prefix, const char* name,
                       const std::vector<const char*>& parts) {
  TrainedTensor t;
  t.name = prefix + name;
  const Weights& weights = base.weights();
  int64_t rows = 0, cols = 0;
  for (const char* part : parts) {
    const std::string full = prefix + part;
    if (!weights.has(full)) return {};
    for (const TensorEntry& e : weights.tensors())
      if (e.name == full) t.parts.push_back({full, e.shape});
    GT_CHECK(!t.parts.empty() && t.parts.back().name == full, "{}: no tensor {}", weights.path(), full);
    const Shape& s = t.parts.back().shape;
    rows += s[0];
    cols = s.rank == 2 ? s[1] : 0;
  }
  t.shape = cols > 0 ? Shape{rows, cols} : Shape{rows};
  t.read = [&weights, pieces = t.parts](float* to) {
    for (const TrainedTensor::Part& p : pieces) {
      weights.read_rows(p.name, 0, p.shape.rank == 2 ? p.shape[0] : 1, to);
      to += p.shape.count();
    }
  };
  return t;
}

std::string layer_prefix(int64_t l) { return fmt::format("model.layers.{}.", l); }

}  // namespace

void trained_tensors(const Llama& base, Llama::Values& values, TrainedWeights& to,
                     const std::function<std::pair<ConstTensor, Tensor>(const TrainedTensor&)>& make) {
  const auto one = [&](const char* name, ConstTensor& value, Tensor& gradient) {
    const TrainedTensor t = describe(base, "", name, {name});
    GT_CHECK(!t.parts.empty(), "{}: no tensor {}", base.weights().path(), name);
    std::tie(value, gradient) = make(t);
  };
  one("model.embed_tokens.weight", values.embedding, to.embedding);
  const int64_t layers = base.config().num_layers;
  values.layers.resize(static_cast<size_t>(layers));
  to.layers.resize(static_cast<size_t>(layers));
  for (int64_t l = 0; l < layers; ++l)
    for (const LayerTensor& t : layer_tensors()) {
      const TrainedTensor described = describe(base, layer_prefix(l), t.name, t.parts);
      if (described.parts.empty()) continue;
      const auto i = static_cast<size_t>(l);
      std::tie(values.layers[i].*t.value, to.layers[i].*t.gradient) = make(described);
    }
  one("model.norm.weight", values.final_gain, to.final_gain);
  if (!base.config().tie_word_embeddings) one("lm_head.weight", values.head, to.head);
}

std::vector<TrainedTensor> trained_tensors(const Llama& base) {
  std::vector<TrainedTensor> all;
  Llama::Values values;
  TrainedWeights weights;
  trained_tensors(base, values, weights, [&](const TrainedTensor& t) {
    all.push_back(t);
    return std::pair<ConstTensor, Tensor>();
  });
  return all;
}

OwnedWeights::OwnedWeights(Device& device, const Llama& base) {
  Llama::Values values;
  trained_tensors(base, values, weights_, [&](const TrainedTensor& t) {
    std::vector<float> host(static_cast<size_t>(t.shape.count()));
    t.read(host.data());
    tensors_.emplace_back(device, DType::kF32, t.shape);
    const ConstTensor value = tensors_.back().view();
    device.copy_in(tensors_.back(), host.data());
    tensors_.emplace_back(device, DType::kF32, t.shape);
    device.fill_zero(tensors_.back());
    described_.push_back(t);
    return std::pair<ConstTensor, Tensor>(value, tensors_.back().view());
  });
  llama_ = Llama::over(device, base, values);
  weights_.llama = llama_.get();
}

std::vector<OwnedWeights::Gradient> OwnedWeights::gradients(Device& device) const {
  std::vector<Gradient> all;
  for (size_t i = 0; i < described_.size(); ++i) {
    std::vector<float> host(static_cast<size_t>(described_[i].shape.count()));
    device.copy_out(host.data(), tensors_[2 * i + 1].view());
    const float* from = host.data();
    for (const TrainedTensor::Part& p : described_[i].parts) {
      all.push_back({p.name, p.shape, std::vector<float>(from, from + p.shape.count())});
      from += p.shape.count();
    }
  }
  return all;
}

}  // namespace gantrain
