#include "model/adapters/peft.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "model/formats/json_text.h"
#include "model/formats/mapped_file.h"
#include "model/formats/safetensors.h"

namespace gantrain {
namespace {

using nlohmann::json;

json read_config(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) fail("{}: cannot open; expected a PEFT adapter folder", path);
  const MappedFile file(path);
  constexpr int64_t kLargest = 1 << 20;
  if (file.size() > kLargest) fail("{}: {} bytes; expected at most {}", path, file.size(), kLargest);
  return parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path);
}

// A value of the file for a message, cut short.
std::string shown(const json& value) {
  std::string s = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (s.size() > 60) s = s.substr(0, 57) + "...";
  return s;
}

class Config {
 public:
  Config(const std::string& path, const json& values) : path_(path), values_(values) {}

  const json* find(const char* key) const {
    const auto it = values_.find(key);
    return it == values_.end() || it->is_null() ? nullptr : &*it;
  }
  bool flag(const char* key) const {
    const json* v = find(key);
    if (v && !v->is_boolean()) fail("{}: {}: expected true or false, got {}", path_, key, shown(*v));
    return v && v->get<bool>();
  }
  // Refuses a key that is set to anything that says something.
  void must_be_unset(const char* key) const {
    const json* v = find(key);
    if (!v || (v->is_boolean() && !v->get<bool>()) || ((v->is_object() || v->is_array()) && v->empty()))
      return;
    fail("{}: {} {} is not supported", path_, key, shown(*v));
  }

 private:
  const std::string& path_;
  const json& values_;
};

std::vector<float> as_f32(const SafetensorsFile& file, const SafetensorsFile::Entry& e,
                          const Shape& expected) {
  const bool real = e.dtype == DType::kF32 || e.dtype == DType::kBF16 || e.dtype == DType::kF16;
  if (!real || !(e.shape == expected))
    fail("{}: tensor '{}': expected f32, bf16 or f16 {}, got {} {}", file.path(), e.name, to_string(expected),
         dtype_name(e.dtype), to_string(e.shape));
  const ConstTensor t = file.tensor(e);
  std::vector<float> v(static_cast<size_t>(expected.count()));
  const auto widen = [&]<typename T>(const T*) {
    for (size_t i = 0; i < v.size(); ++i) {
      T x;  // the file promises no alignment
      std::memcpy(&x, static_cast<const std::byte*>(t.raw()) + i * sizeof(T), sizeof(T));
      v[i] = static_cast<float>(x);
    }
  };
  if (e.dtype == DType::kF32)
    widen(static_cast<const float*>(nullptr));
  else if (e.dtype == DType::kBF16)
    widen(static_cast<const bf16*>(nullptr));
  else
    widen(static_cast<const f16*>(nullptr));
  for (size_t i = 0; i < v.size(); ++i)
    if (!std::isfinite(v[i])) fail("{}: tensor '{}': value {} is not finite", file.path(), e.name, i);
  return v;
}

void read_prompt(const SafetensorsFile& file, const LlamaConfig& config, PeftAdapter& out) {
  const SafetensorsFile::Entry* e = file.find(kPeftPromptKey);
  if (!e) fail("{}: no tensor '{}'", file.path(), kPeftPromptKey);
  if (e->shape.rank != 2 || e->shape[1] != config.hidden_size || e->shape[0] < 1)
    fail("{}: tensor '{}': expected (P, {}), got {} {}", file.path(), e->name, config.hidden_size,
         dtype_name(e->dtype), to_string(e->shape));
  out.prompt = as_f32(file, *e, e->shape);
}

void read_prefix(const SafetensorsFile& file, const LlamaConfig& config, PeftAdapter& out) {
  // Whether the folder's own training had a projection or not: what it saves is the output.
  const SafetensorsFile::Entry* e = file.find(kPeftPromptKey);
  if (!e) fail("{}: no tensor '{}'", file.path(), kPeftPromptKey);
  const int64_t row = 2 * config.num_layers * config.num_kv_heads * config.head_dim;
  if (e->shape.rank != 2 || e->shape[1] != row || e->shape[0] < 1)
    fail("{}: tensor '{}': expected (P, {}), keys and values of {} layers, got {} {}", file.path(), e->name,
         row, config.num_layers, dtype_name(e->dtype), to_string(e->shape));
  out.prefix = as_f32(file, *e, e->shape);
}

constexpr std::array<const char*, 3> kActivationNames{"silu", "gelu", "tanh"};

void read_bottleneck(const std::string& path, const Config& c, const SafetensorsFile& file,
                     const LlamaConfig& config, PeftAdapter& out) {
  const json *width = c.find("width"), *activation = c.find("activation");
  if (!width || !width->is_number_unsigned() || width->get<uint64_t>() > (uint64_t{1} << 30))
    fail("{}: width: expected an integer, got {}", path, width ? shown(*width) : "nothing");
  out.bottleneck.width = width->get<int64_t>();
  const auto named = std::find_if(kActivationNames.begin(), kActivationNames.end(),
                                  [&](const char* name) { return activation && *activation == name; });
  if (named == kActivationNames.end())
    fail("{}: activation: expected silu, gelu or tanh, got {}", path,
         activation ? shown(*activation) : "nothing");
  out.bottleneck.activation = static_cast<Activation>(named - kActivationNames.begin());
  out.bottleneck.attention = file.find(bottleneck_name(0, 0) + ".down.weight") != nullptr;
  out.bottleneck.mlp = file.find(bottleneck_name(0, 1) + ".down.weight") != nullptr;
  check_bottleneck(out.bottleneck, path);
  const int64_t r = out.bottleneck.width, h = config.hidden_size;
  std::set<std::string> known;
  const auto read = [&](const std::string& name, const Shape& shape) {
    const SafetensorsFile::Entry* e = file.find(name);
    if (!e) fail("{}: no tensor '{}'", file.path(), name);
    known.insert(name);
    return as_f32(file, *e, shape);
  };
  out.bottlenecks.resize(static_cast<size_t>(config.num_layers));
  for (size_t l = 0; l < out.bottlenecks.size(); ++l)
    for (size_t place = 0; place < 2; ++place) {
      if (!out.bottleneck.has(place)) continue;
      const std::string name = bottleneck_name(l, place);
      out.bottlenecks[l][place] = {read(name + ".down.weight", {r, h}), read(name + ".down.bias", {r}),
                                   read(name + ".up.weight", {h, r}), read(name + ".up.bias", {h})};
    }
  for (const auto& e : file.entries())
    if (!known.contains(e.name)) fail("{}: unexpected tensor '{}'", file.path(), e.name);
}

void read_lora(const std::string& path, const Config& c, const SafetensorsFile& file,
               const LlamaConfig& config, PeftAdapter& out) {
  // Each of these is another function of the input than W x + scale B A x, or another base.
  for (const char* key :
       {"use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern",
        "layers_to_transform", "layer_replication", "use_qalora", "trainable_token_indices",
        "target_parameters", "arrow_config", "alora_invocation_tokens"})
    c.must_be_unset(key);
  if (const json* bias = c.find("bias"); bias && *bias != "none")
    fail("{}: bias {} is not supported; supported: \"none\"", path, shown(*bias));
  if (const json* init = c.find("init_lora_weights");
      init && !init->is_boolean() && *init != "gaussian" && *init != "orthogonal" && *init != "eva")
    fail("{}: init_lora_weights {}: such an adapter belongs to changed base weights", path, shown(*init));
  const json *r = c.find("r"), *alpha = c.find("lora_alpha");
  if (!r || !r->is_number_integer())
    fail("{}: r: expected an integer, got {}", path, r ? shown(*r) : "nothing");
  if (!alpha || !alpha->is_number())
    fail("{}: lora_alpha: expected a number, got {}", path, alpha ? shown(*alpha) : "nothing");
  out.shape.rank =
      r->is_number_unsigned() && r->get<uint64_t>() > (uint64_t{1} << 62) ? -1 : r->get<int64_t>();
  out.shape.alpha = alpha->get<double>();
  out.shape.rslora = c.flag("use_rslora");
  for (size_t t = 0; t < kLoraTargets; ++t)
    out.shape.targets[t] = file.find(peft_key(0, t, false)) != nullptr;
  check_lora(out.shape, path);
  const auto layers = static_cast<size_t>(config.num_layers);
  std::set<std::string> known;
  out.layers.resize(layers);
  for (size_t l = 0; l < layers; ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      if (!out.shape.targets[t]) continue;
      const LoraDims d = lora_dims(config, t);
      for (const bool b : {false, true}) {
        const std::string key = peft_key(l, t, b);
        const SafetensorsFile::Entry* e = file.find(key);
        if (!e)
          fail("{}: no tensor '{}'; an adapter sits on the same linear layers of all {} layers", file.path(),
               key, layers);
        (b ? out.layers[l][t].b : out.layers[l][t].a) =
            as_f32(file, *e, b ? Shape{d.out, out.shape.rank} : Shape{out.shape.rank, d.in});
        known.insert(key);
      }
    }
  for (const auto& e : file.entries())
    if (!known.contains(e.name))
      fail("{}: unexpected tensor '{}'; expected '{}' and its like", file.path(), e.name, *known.begin());
}

}  // namespace

std::string peft_key(size_t layer, size_t target, bool b) {
  return fmt::format("base_model.model.{}.lora_{}.weight", lora_module(layer, target), b ? 'B' : 'A');
}

PeftAdapter read_peft(const std::string& folder, const LlamaConfig& config) {
  const std::filesystem::path dir(folder);
  const std::string path = (dir / "adapter_config.json").string();
  const json values = read_config(path);
  PeftAdapter out;
  out.type = values.is_object() && values.contains("peft_type") && values["peft_type"].is_string()
                 ? values["peft_type"].get<std::string>()
                 : "(none)";
  if (out.type != "PROMPT_TUNING" && out.type != "P_TUNING" && !out.on_model())
    fail(
        "{}: peft_type {} is not supported; supported: PROMPT_TUNING, P_TUNING, PREFIX_TUNING, LORA, "
        "BOTTLENECK",
        path, out.type);
  const Config c(path, values);
  const SafetensorsFile file((dir / "adapter_model.safetensors").string());
  if (out.is_lora())
    read_lora(path, c, file, config, out);
  else if (out.is_prefix())
    read_prefix(file, config, out);
  else if (out.is_bottleneck())
    read_bottleneck(path, c, file, config, out);
  else
    read_prompt(file, config, out);
  return out;
}

void write_peft(const std::string& folder, const PeftAdapter& adapter, const LlamaConfig& config,
                const std::string& base) {
  namespace fs = std::filesystem;
  const fs::path dir(folder);
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) fail("{}: cannot create the folder: {}", folder, error.message());
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"})
    if (fs::exists(dir / name))
      fail("{}: is there already; give another folder, or delete it", (dir / name).string());
  // Keys in order, as PEFT writes them.
  json j{{"auto_mapping", nullptr},    {"base_model_name_or_path", base}, {"inference_mode", true},
         {"modules_to_save", nullptr}, {"peft_type", adapter.type},       {"revision", nullptr},
         {"task_type", "CAUSAL_LM"}};
  std::vector<NamedTensor> tensors;
  if (adapter.is_lora()) {
    const LoraShape& s = adapter.shape;
    json modules = json::array();
    for (size_t t = 0; t < kLoraTargets; ++t)
      if (s.targets[t])
        modules.push_back(std::string(kLoraModules[t]).substr(std::string(kLoraModules[t]).find('.') + 1));
    j["r"] = s.rank;
    if (s.alpha == std::floor(s.alpha) && std::abs(s.alpha) < 1e9)
      j["lora_alpha"] = static_cast<int64_t>(s.alpha);
    else
      j["lora_alpha"] = s.alpha;
    j["target_modules"] = modules;
    j["use_rslora"] = s.rslora;
    j["lora_dropout"] = 0.0;
    j["bias"] = "none";
    j["fan_in_fan_out"] = false;
    j["use_dora"] = false;
    j["init_lora_weights"] = true;
    for (size_t l = 0; l < adapter.layers.size(); ++l)
      for (size_t t = 0; t < kLoraTargets; ++t) {
        if (!s.targets[t]) continue;
        const LoraDims d = lora_dims(config, t);
        const PeftAdapter::Pair& p = adapter.layers[l][t];
        tensors.push_back({peft_key(l, t, false), ConstTensor(p.a.data(), DType::kF32, {s.rank, d.in})});
        tensors.push_back({peft_key(l, t, true), ConstTensor(p.b.data(), DType::kF32, {d.out, s.rank})});
      }
  } else if (adapter.is_prefix()) {
    const int64_t width = config.num_kv_heads * config.head_dim, row = 2 * config.num_layers * width;
    const int64_t rows = static_cast<int64_t>(adapter.prefix.size()) / row;
    j["num_virtual_tokens"] = rows;
    j["token_dim"] = width;  // of keys and values, and their heads: as PEFT rewrites them
    j["num_transformer_submodules"] = 1;
    j["num_attention_heads"] = config.num_kv_heads;
    j["num_layers"] = config.num_layers;
    j["encoder_hidden_size"] = width;
    j["prefix_projection"] = false;
    tensors.push_back({kPeftPromptKey, ConstTensor(adapter.prefix.data(), DType::kF32, {rows, row})});
  } else if (adapter.is_bottleneck()) {
    const BottleneckShape& b = adapter.bottleneck;
    const int64_t r = b.width, c = config.hidden_size;
    j["width"] = r;
    j["activation"] = kActivationNames.at(static_cast<size_t>(b.activation));
    for (size_t l = 0; l < adapter.bottlenecks.size(); ++l)
      for (size_t place = 0; place < 2; ++place) {
        if (!b.has(place)) continue;
        const std::string name = bottleneck_name(l, place);
        const BottleneckValues& v = adapter.bottlenecks[l][place];
        tensors.push_back({name + ".down.weight", ConstTensor(v.down.data(), DType::kF32, {r, c})});
        tensors.push_back({name + ".down.bias", ConstTensor(v.down_bias.data(), DType::kF32, {r})});
        tensors.push_back({name + ".up.weight", ConstTensor(v.up.data(), DType::kF32, {c, r})});
        tensors.push_back({name + ".up.bias", ConstTensor(v.up_bias.data(), DType::kF32, {c})});
      }
  } else {
    const int64_t rows = static_cast<int64_t>(adapter.prompt.size()) / config.hidden_size;
    j["num_virtual_tokens"] = rows;
    j["token_dim"] = config.hidden_size;
    j["num_transformer_submodules"] = 1;
    j["num_attention_heads"] = config.num_heads;
    j["num_layers"] = config.num_layers;
    if (adapter.type == "P_TUNING") {
      j["encoder_reparameterization_type"] = "MLP";
      j["encoder_hidden_size"] = adapter.encoder_hidden;
      j["encoder_num_layers"] = 2;
      j["encoder_dropout"] = 0.0;
    } else {
      j["prompt_tuning_init"] = "RANDOM";
      j["prompt_tuning_init_text"] = nullptr;
      j["tokenizer_name_or_path"] = nullptr;
      j["tokenizer_kwargs"] = nullptr;
    }
    tensors.push_back(
        {kPeftPromptKey, ConstTensor(adapter.prompt.data(), DType::kF32, {rows, config.hidden_size})});
  }
  write_safetensors((dir / "adapter_model.safetensors").string(), tensors);
  const std::string text = j.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
  write_file_atomically((dir / "adapter_config.json").string(), {{text.data(), text.size()}});
}

std::unique_ptr<OwnedLora> lora_on_device(Device& device, const LlamaConfig& config,
                                          const PeftAdapter& adapter, bool gradients) {
  auto out = std::make_unique<OwnedLora>(device, config, adapter.shape, gradients);
  for (size_t l = 0; l < adapter.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      if (!adapter.shape.targets[t]) continue;
      device.copy_in(out->a(l, t), adapter.layers[l][t].a.data());
      device.copy_in(out->b(l, t), adapter.layers[l][t].b.data());
    }
  return out;
}

PeftAdapter lora_from_device(Device& device, const LoraAdapter& adapter) {
  PeftAdapter out;
  out.type = "LORA";
  out.shape = adapter.shape;
  out.layers.resize(adapter.layers.size());
  const auto values = [&](const ConstTensor& t) {
    std::vector<float> v(static_cast<size_t>(t.count()));
    device.copy_out(v.data(), t);
    return v;
  };
  for (size_t l = 0; l < adapter.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t)
      if (adapter.shape.targets[t])
        out.layers[l][t] = {values(adapter.layers[l][t].a), values(adapter.layers[l][t].b)};
  return out;
}

}  // namespace gantrain
