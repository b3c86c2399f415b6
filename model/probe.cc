#include "model/probe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/ops.h"
#include "model/formats/json_text.h"
#include "model/formats/mapped_file.h"
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

std::vector<float> read_peft_prompt(const std::string& folder, int64_t width) {
  const std::filesystem::path dir(folder);
  const std::string config_path = (dir / "adapter_config.json").string();
  if (!std::filesystem::is_regular_file(config_path))
    fail("{}: cannot open; expected a PEFT adapter folder", config_path);
  const MappedFile config_file(config_path);
  constexpr int64_t kLargestConfig = 1 << 20;
  if (config_file.size() > kLargestConfig)
    fail("{}: {} bytes; expected at most {}", config_path, config_file.size(), kLargestConfig);
  const std::string text(config_file.bytes().begin(), config_file.bytes().end());
  check_json(text, config_path);
  const nlohmann::json config = nlohmann::json::parse(text);
  const std::string type =
      config.is_object() && config.contains("peft_type") && config["peft_type"].is_string()
          ? config["peft_type"].get<std::string>()
          : "(none)";
  if (type != "PROMPT_TUNING" && type != "P_TUNING")
    fail("{}: peft_type {} is not supported; supported: PROMPT_TUNING, P_TUNING", config_path, type);
  const SafetensorsFile file((dir / "adapter_model.safetensors").string());
  const ConstTensor t = file.tensor("prompt_embeddings");
  if (t.dtype() != DType::kF32 || t.rank() != 2 || t.dim(1) != width || t.dim(0) < 1)
    fail("{}: tensor 'prompt_embeddings': expected f32 (P, {}), got {} {}", file.path(), width,
         dtype_name(t.dtype()), to_string(t.shape()));
  std::vector<float> v(static_cast<size_t>(t.count()));
  std::memcpy(v.data(), t.raw(), v.size() * sizeof(float));
  return v;
}

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
  if (!files.adapter.empty()) {
    if (in.find("soft_prompt"))
      fail("{}: holds a soft_prompt, and --adapter gives another one; give one of them", in.path());
    prompt_values = read_peft_prompt(files.adapter, c);
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

  PackedBatch batch;
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
  const bool backward = has_prompt && !request.rows.empty();
  runner.forward(batch, prompt, backward ? Saving::kAll : Saving::kNothing);

  // Logits in chunks, straight to the host.
  std::vector<float> logits(text_rows.size() * static_cast<size_t>(vocab));
  constexpr size_t kChunk = 256;
  for (size_t at = 0; at < text_rows.size(); at += kChunk) {
    const size_t n = std::min(kChunk, text_rows.size() - at);
    const OwnedTensor rows = upload(device, std::span<const int32_t>(text_rows.data() + at, n));
    OwnedTensor chunk(device, DType::kF32, {static_cast<int64_t>(n), vocab});
    HeadLogits op{.x = runner.output(),
                  .rows = rows,
                  .gain = llama.final_gain(),
                  .w = &llama.head(),
                  .eps = config.rms_norm_eps,
                  .logits = chunk,
                  .scratch = {}};
    OwnedTensor scratch(device, DType::kU8, {std::max<int64_t>(1, head_logits_scratch(device, op))});
    op.scratch = scratch;
    head_logits(device, op);
    device.copy_out(logits.data() + at * static_cast<size_t>(vocab), chunk);
  }
  std::vector<NamedTensor> out{
      {"logits", ConstTensor(logits.data(), DType::kF32, {static_cast<int64_t>(text_rows.size()), vocab})}};

  float loss = 0.0f;
  std::vector<float> gradient(prompt_values.size(), 0.0f);
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
      OwnedTensor dprompt(device, DType::kF32, {groups * p, c});
      device.fill_zero(dprompt);
      runner.add_prompt_gradient(dprompt);
      device.copy_out(gradient.data(), dprompt);
      out.push_back({files.adapter.empty() ? "soft_prompt_grad" : "grad.prompt_embeddings",
                     ConstTensor(gradient.data(), DType::kF32, prompt_shape)});
    }
  }
  write_safetensors(files.output, out);
}

}  // namespace gantrain
