#include "model/adapters/owned.h"

#include "core/check.h"

namespace gantrain {
namespace {

std::vector<float> host(Device& device, const ConstTensor& t) {
  std::vector<float> v(static_cast<size_t>(t.count()));
  device.copy_out(v.data(), t);
  return v;
}

}  // namespace

OwnedAdapter::OwnedAdapter(Device& device, const LlamaConfig& config, const PeftAdapter& adapter,
                           bool gradients) {
  if (adapter.is_lora()) {
    lora_ = lora_on_device(device, config, adapter, gradients);
  } else if (adapter.is_bottleneck()) {
    bottleneck_ =
        std::make_unique<OwnedBottleneck>(device, config, adapter.bottleneck, adapter.bottlenecks, gradients);
  } else {
    GT_CHECK(adapter.is_prefix(), "an adapter of type {} is not on the model", adapter.type);
    const int64_t width = config.num_kv_heads * config.head_dim, row = 2 * config.num_layers * width;
    const Shape shape{static_cast<int64_t>(adapter.prefix.size()) / row, 2 * config.num_layers, width};
    table_ = OwnedTensor(device, DType::kF32, shape);
    device.copy_in(table_, adapter.prefix.data());
    prefix_.table = table_.view();
    if (!gradients) return;
    dtable_ = OwnedTensor(device, DType::kF32, shape);
    device.fill_zero(dtable_);
    prefix_.dtable = dtable_;
  }
}

Adapters OwnedAdapter::adapters() const {
  if (lora_) return &lora_->adapter();
  if (bottleneck_) return &bottleneck_->adapter();
  return &prefix_;
}

std::vector<OwnedAdapter::Gradient> OwnedAdapter::gradients(Device& device) const {
  std::vector<Gradient> all;
  const auto add = [&](const std::string& name, const Tensor& g, const Shape& shape) {
    all.push_back({name, shape, host(device, g)});
  };
  if (lora_) {
    const LoraAdapter& a = lora_->adapter();
    for (size_t l = 0; l < a.layers.size(); ++l)
      for (size_t t = 0; t < kLoraTargets; ++t)
        for (const bool b : {false, true}) {
          const Tensor& g = b ? a.layers[l][t].db : a.layers[l][t].da;
          if (!g.empty()) add(peft_key(l, t, b), g, g.shape());
        }
  } else if (bottleneck_) {
    const BottleneckAdapter& a = bottleneck_->adapter();
    for (size_t l = 0; l < a.layers.size(); ++l)
      for (size_t place = 0; place < 2; ++place) {
        if (!a.shape.has(place)) continue;
        const BottleneckAdapter::Part& p = a.layers[l][place];
        const std::string name = bottleneck_name(l, place);
        add(name + ".down.weight", p.ddown, p.ddown.shape());
        add(name + ".down.bias", p.ddown_bias, p.ddown_bias.shape());
        add(name + ".up.weight", p.dup, p.dup.shape());
        add(name + ".up.bias", p.dup_bias, p.dup_bias.shape());
      }
  } else {
    const Shape& s = prefix_.dtable.shape();
    add(kPeftPromptKey, prefix_.dtable, {s[0], s[1] * s[2]});
  }
  return all;
}

PeftAdapter adapter_from_device(Device& device, const Adapters& adapters) {
  if (adapters.lora) return lora_from_device(device, *adapters.lora);
  PeftAdapter out;
  if (adapters.prefix) {
    out.type = kPrefixType;
    out.prefix = host(device, adapters.prefix->table);
  } else {
    GT_CHECK(adapters.bottleneck, "no adapter that a folder can hold");
    out.type = kBottleneckType;
    out.bottleneck = adapters.bottleneck->shape;
    out.bottlenecks = values_of(device, *adapters.bottleneck);
  }
  return out;
}

}  // namespace gantrain
