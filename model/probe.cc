#include "model/probe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "core/ops.h"
#include "model/adapters/owned.h"
#include "model/adapters/trained_weights.h"
#include "model/formats/safetensors.h"
#include "model/runner.h"

namespace gantrain {
namespace {

std::vector<int64_t> read_ids(const SafetensorsFile& file, const SafetensorsFile::Entry& e, Shape expected) {
  if (e.dtype != DType::kI64 || !(e.shape == expected))
    fail("{}: tensor '{}': expected i64 {}, got {} {}", file.path(), e.name, to_string(expected),
         dtype_name(e.dtype), to_string(e.shape));
  std::vector<int64_t> v(static_cast<size_t>(expected.count()));
  if (!v.empty()) std::memcpy(v.data(), file.tensor(e).raw(), v.size() * sizeof(int64_t));
  return v;
}

}  // namespace

void probe(Device& device, const Llama& llama, const ProbeFiles& files) {
  const LlamaConfig& config = llama.config();
  const int64_t c = config.hidden_size, vocab = config.vocab_size;
  const SafetensorsFile in(files.input);
  for (const auto& e : in.entries())
    if (e.name != "tokens" && e.name != "lengths" && e.name != "labels" && e.name != "soft_prompt")
      fail("{}: unexpected tensor '{}'; expected tokens, lengths, labels, soft_prompt", in.path(), e.name);
  const auto* tokens_entry = in.find("tokens");
  if (!tokens_entry) fail("{}: no tensor 'tokens'", in.path());
  if (tokens_entry->shape.rank != 2 || tokens_entry->shape[0] < 1 || tokens_entry->shape[1] < 1)
    fail("{}: tensor 'tokens': expected i64 (B, T), got {}", in.path(), to_string(tokens_entry->shape));
  const int64_t b = tokens_entry->shape[0], t = tokens_entry->shape[1];
  const std::vector<int64_t> tokens = read_ids(in, *tokens_entry, {b, t});
  std::vector<int64_t> lengths(static_cast<size_t>(b), t), labels;
  if (const auto* e = in.find("lengths")) lengths = read_ids(in, *e, {b});
  for (int64_t i = 0; i < b; ++i)
    if (lengths[static_cast<size_t>(i)] < 1 || lengths[static_cast<size_t>(i)] > t)
      fail("{}: lengths[{}]: expected 1 to {}, got {}", in.path(), i, t, lengths[static_cast<size_t>(i)]);
  if (const auto* e = in.find("labels")) labels = read_ids(in, *e, {b, t});

  // The soft prompt: one for all, or one a sequence.
  int64_t p = 0, groups = 1;
  std::vector<float> prompt_values;
  Shape prompt_shape;
  PeftAdapter adapter;
  std::unique_ptr<OwnedAdapter> owned;
  std::unique_ptr<OwnedWeights> weights;
  Adapters adapters;
  if (!files.adapter.empty()) {
    if (files.weights) fail_usage("probe: --adapter and --weights: give one of them");
    adapter = read_peft(files.adapter, config);
    if (adapter.on_model()) {
      owned = std::make_unique<OwnedAdapter>(device, config, adapter, true);
      adapters = owned->adapters();
    }
  } else if (files.weights) {
    weights = std::make_unique<OwnedWeights>(device, llama);
    adapters = &weights->weights();
  }
  if (!adapter.prompt.empty()) {
    if (in.find("soft_prompt"))
      fail("{}: holds a soft_prompt, and --adapter gives another one; give one of them", in.path());
    prompt_values = adapter.prompt;
    p = static_cast<int64_t>(prompt_values.size()) / c;
    prompt_shape = {p, c};
  } else if (const auto* e = in.find("soft_prompt")) {
    const Shape& s = e->shape;
    if (e->dtype != DType::kF32 || (s.rank != 2 && s.rank != 3) || s[s.rank - 1] != c ||
        (s.rank == 3 && s[0] != b))
      fail("{}: tensor 'soft_prompt': expected f32 (P, {}) or ({}, P, {}), got {} {}", in.path(), c, b, c,
           dtype_name(e->dtype), to_string(s));
    prompt_shape = s;
    groups = s.rank == 3 ? b : 1;
    p = s[s.rank - 2];
    prompt_values.resize(static_cast<size_t>(s.count()));
    if (!prompt_values.empty())
      std::memcpy(prompt_values.data(), in.tensor(*e).raw(), prompt_values.size() * sizeof(float));
  }
  const bool has_prompt = !prompt_values.empty();
  OwnedTensor prompt;
  if (has_prompt) {
    prompt = OwnedTensor(device, DType::kF32, {groups * p, c});
    device.copy_in(prompt, prompt_values.data());
  }

  if (weights && has_prompt) fail("{}: a soft_prompt beside --weights is not supported", in.path());
  PackedBatch batch = batch_behind(adapters);
  std::vector<int32_t> text_rows;
  HeadRequest request;
  int32_t shared = -1;
  if (has_prompt && groups == 1) shared = batch.add_prompt(0, p);
  for (int64_t i = 0; i < b; ++i) {
    std::vector<int32_t> ids;
    for (int64_t j = 0; j < lengths[static_cast<size_t>(i)]; ++j) {
      const int64_t id = tokens[static_cast<size_t>(i * t + j)];
      if (id < 0 || id >= vocab)
        fail("{}: tokens[{}, {}]: expected 0 to {}, got {}", in.path(), i, j, vocab - 1, id);
      ids.push_back(static_cast<int32_t>(id));
    }
    const int32_t parent = has_prompt && groups > 1 ? batch.add_prompt(i * p, p) : shared;
    const int32_t s = batch.add(parent, ids);
    for (size_t j = 0; j < ids.size(); ++j) {
      const int32_t row = batch.segment(s).row_begin + static_cast<int32_t>(j);
      text_rows.push_back(row);
      if (labels.empty() || j + 1 >= ids.size()) continue;
      const int64_t label = labels[static_cast<size_t>(i * t) + j + 1];
      if (label == -100) continue;
      if (label < 0 || label >= vocab)
        fail("{}: labels[{}, {}]: expected -100 or 0 to {}, got {}", in.path(), i, j + 1, vocab - 1, label);
      request.rows.push_back(row);
      request.labels.push_back(static_cast<int32_t>(label));
    }
    if (static_cast<int64_t>(batch.end_position(s)) > config.max_position_embeddings)
      fail("{}: sequence {} with its prompt has {} positions; the model has {}", in.path(), i,
           batch.end_position(s), config.max_position_embeddings);
  }

  Runner runner(device, llama);
  const bool backward = (has_prompt || adapters) && !request.rows.empty();
  runner.forward(batch, prompt, backward ? Saving::kAll : Saving::kNothing, -1, adapters,
                 {.read = text_rows, .gradient = {}});

  const std::vector<float> logits = runner.logits(text_rows);
  std::vector<NamedTensor> out{
      {"logits", ConstTensor(logits.data(), DType::kF32, {static_cast<int64_t>(text_rows.size()), vocab})}};

  float loss = 0.0f;
  std::vector<float> gradient(prompt_values.size(), 0.0f);
  std::vector<OwnedAdapter::Gradient> gradients;
  std::vector<OwnedWeights::Gradient> of_weights;
  if (!request.rows.empty()) {
    request.ce_weight.assign(request.rows.size(), 1.0f / static_cast<float>(request.rows.size()));
    if (backward) runner.begin_backward();
    const HeadResult result = runner.head(request, backward);
    double sum = 0.0;
    for (float nll : result.nll) sum += nll;
    loss = static_cast<float>(sum / static_cast<double>(result.nll.size()));
    out.push_back({"loss", ConstTensor(&loss, DType::kF32, {})});
    if (backward) {
      runner.backward();
      if (has_prompt) {
        OwnedTensor dprompt(device, DType::kF32, {groups * p, c});
        device.fill_zero(dprompt);
        runner.add_prompt_gradient(dprompt);
        device.copy_out(gradient.data(), dprompt);
        out.push_back({adapter.prompt.empty() ? std::string("soft_prompt_grad")
                                              : fmt::format("grad.{}", kPeftPromptKey),
                       ConstTensor(gradient.data(), DType::kF32, prompt_shape)});
      }
      if (owned) gradients = owned->gradients(device);
      if (weights) of_weights = weights->gradients(device);
      for (const auto& g : gradients)
        out.push_back({"grad." + g.name, ConstTensor(g.values.data(), DType::kF32, g.shape)});
      for (const auto& g : of_weights)
        out.push_back({"grad." + g.name, ConstTensor(g.values.data(), DType::kF32, g.shape)});
    }
  }
  write_safetensors(files.output, out);
}

}  // namespace gantrain
