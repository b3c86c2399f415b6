#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/tokenizer/tokenizer.h"
#include "model/weights.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/run_folder.h"
#include "train/cli/parse.h"
#include "train/data/reader.h"

namespace gantrain::cli {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

std::string bytes_text(int64_t bytes) {
  if (bytes >= int64_t{1} << 30) return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / 1073741824.0);
  if (bytes >= 1 << 20) return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576.0);
  return fmt::format("{} bytes", bytes);
}

// The tokenizer's facts, or why there are none: weights without a tokenizer are still worth a look.
json inspect_tokenizer(const std::string& path) {
  std::unique_ptr<Tokenizer> tokenizer;
  try {
    tokenizer = open_tokenizer(path);
  } catch (const Error& error) {
    return {{"error", error.what()}};
  }
  const auto token = [&](std::optional<int32_t> id) {
    return id ? json{{"id", *id}, {"text", tokenizer->token_text(*id)}} : json(nullptr);
  };
  json ends = json::array();
  for (const int32_t id : tokenizer->end_ids()) ends.push_back(token(id));
  return {{"vocab_size", tokenizer->vocab_size()},
          {"bos", token(tokenizer->bos())},
          {"eos", token(tokenizer->eos())},
          {"adds_bos", tokenizer->adds_bos()},
          {"end_tokens", ends},
          {"has_chat_template", !tokenizer->chat_template().empty()}};
}

json inspect_model(const std::string& path) {
  const auto weights = open_weights(path);
  const LlamaConfig& c = weights->config();
  static const char* const kRope[] = {"none", "linear", "llama3"};
  json config = {{"vocab_size", c.vocab_size},
                 {"hidden_size", c.hidden_size},
                 {"intermediate_size", c.intermediate_size},
                 {"num_layers", c.num_layers},
                 {"num_heads", c.num_heads},
                 {"num_kv_heads", c.num_kv_heads},
                 {"head_dim", c.head_dim},
                 {"rms_norm_eps", c.rms_norm_eps},
                 {"tie_word_embeddings", c.tie_word_embeddings},
                 {"attention_bias", c.attention_bias},
                 {"mlp_bias", c.mlp_bias},
                 {"max_position_embeddings", c.max_position_embeddings},
                 {"rope_theta", c.rope.theta},
                 {"rope_scaling", kRope[static_cast<size_t>(c.rope.type)]},
                 {"rope_factors", c.rope.factors.size()},
                 {"bos_token_id", c.bos_token_id},
                 {"eos_token_ids", c.eos_token_ids}};
  int64_t parameters = 0, stored = 0;
  std::map<std::string, int64_t> types;
  json tensors = json::array();
  for (const TensorEntry& tensor : weights->tensors()) {
    json shape = json::array();
    for (int i = 0; i < tensor.shape.rank; ++i) shape.push_back(tensor.shape[i]);
    tensors.push_back({{"name", tensor.name},
                       {"shape", shape},
                       {"type", tensor.stored_type},
                       {"bytes", tensor.stored_bytes}});
    parameters += tensor.shape.count();
    stored += tensor.stored_bytes;
    ++types[tensor.stored_type];
  }
  return {{"kind", "model"},
          {"path", path},
          {"format", weights->format()},
          {"parameters", parameters},
          {"stored_bytes", stored},
          {"config", config},
          {"tokenizer", inspect_tokenizer(path)},
          {"types", types},
          {"notes", weights->notes()},
          {"tensors", tensors}};
}

json inspect_checkpoint(const std::string& path) {
  const CheckpointReader reader(path);
  json tensors = json::array(), texts = json::object();
  int64_t bytes = 0;
  for (const std::string& name : reader.tensor_names()) {
    const ConstTensor tensor = reader.tensor(name);
    tensors.push_back({{"name", name},
                       {"shape", to_string(tensor.shape())},
                       {"type", dtype_name(tensor.dtype())},
                       {"bytes", tensor.bytes()}});
    bytes += tensor.bytes();
  }
  for (const std::string& name : reader.json_names()) texts[name] = json::parse(reader.json(name));
  return {{"kind", "checkpoint"},
          {"path", path},
          {"stored_bytes", bytes},
          {"texts", texts},
          {"tensors", tensors}};
}

json inspect_run(const std::string& path) {
  const std::string file = fs::weakly_canonical(find_checkpoint(path)).string();
  json out = inspect_checkpoint(file);
  out["kind"] = "run";
  out["path"] = path;
  out["checkpoint"] = file;
  return out;
}

json inspect_data(const std::string& path, const std::vector<std::string>& settings) {
  const DataConfig config = load_train_config("", settings).data;
  DataReport report;
  const std::vector<Example> examples = read_examples(path, config, report);
  const auto lengths = [&](auto text_of) {
    int64_t total = 0, longest = 0;
    for (const Example& example : examples) {
      const auto size = static_cast<int64_t>(text_of(example));
      total += size;
      longest = std::max(longest, size);
    }
    return json{{"mean", static_cast<double>(total) / static_cast<double>(examples.size())},
                {"longest", longest}};
  };
  const auto counts = [](const std::map<std::string, DataReport::Count>& reasons) {
    json out = json::object();
    for (const auto& [reason, count] : reasons)
      out[reason] = {{"items", count.items}, {"first_line", count.first_line}};
    return out;
  };
  json samples = json::array();
  for (size_t i = 0; i < examples.size() && i < 3; ++i) {
    json sample = {{"line", examples[i].line}};
    if (examples[i].messages.empty()) {
      sample["prompt"] = examples[i].prompt;
    } else {
      for (const ChatTurn& turn : examples[i].messages)
        sample["messages"].push_back({{"role", turn.role}, {"content", turn.content}});
    }
    sample["completion"] = examples[i].completion;
    if (!examples[i].references.empty()) sample["references"] = examples[i].references;
    samples.push_back(sample);
  }
  std::map<std::string, int64_t> keys;
  for (const Example& example : examples) ++keys[content_key(example)];
  return {{"kind", "data"},
          {"path", path},
          {"read", report.read},
          {"kept", report.kept},
          {"dropped", counts(report.dropped)},
          {"distinct_prompts", keys.size()},
          {"prompt_bytes", lengths([](const Example& e) {
             size_t size = e.prompt.size();
             for (const ChatTurn& turn : e.messages) size += turn.content.size();
             return size;
           })},
          {"completion_bytes", lengths([](const Example& e) { return e.completion.size(); })},
          {"samples", samples}};
}

// What a path is, by what it holds.
std::string kind_of(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) fail("{}: no such file or folder", path.string());
  if (fs::is_directory(path, error)) return fs::is_directory(path / "checkpoints", error) ? "run" : "model";
  // A link (a run's latest and best) is what it points to.
  const std::string ending = fs::weakly_canonical(path, error).extension().string();
  if (ending == ".ckpt") return "checkpoint";
  if (ending == ".gguf" || ending == ".bin") return "model";
  if (ending == ".safetensors")
    fail("{}: expected a model's folder (config.json beside the weights), a run, a checkpoint or a data file",
         path.string());
  return "data";
}

void print_text(const json& facts) {
  // Long values are counted, not shown.
  const auto line = [](const std::string& name, const json& value) {
    constexpr size_t kShown = 160;
    std::string text = value.is_string() ? value.get<std::string>()
                                         : value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (text.size() > kShown)
      text = value.is_string() ? fmt::format("{} bytes (--json shows them)", text.size())
                               : fmt::format("{} values (--json shows them)", value.size());
    fmt::print("{:<28} {}\n", name, text);
  };
  for (const auto& [name, value] : facts.items()) {
    if (name == "tensors") {
      fmt::print("\n{} tensors\n", value.size());
      for (const json& tensor : value)
        fmt::print("  {:<48} {:<6} {}\n", tensor["name"].get<std::string>(),
                   tensor["type"].get<std::string>(),
                   tensor["shape"].is_string() ? tensor["shape"].get<std::string>() : tensor["shape"].dump());
    } else if (name == "texts") {
      for (const auto& [key, inner] : value.items()) {
        if (inner.is_object()) {
          for (const auto& [field, held] : inner.items()) line(fmt::format("{}: {}", key, field), held);
        } else {
          line(key, inner);
        }
      }
    } else if (name == "config" || name == "tokenizer" || name == "dropped") {
      for (const auto& [key, inner] : value.items())
        line(name == "dropped" || name == "tokenizer" ? fmt::format("{}: {}", name, key) : key, inner);
    } else if (name == "samples") {
      for (const json& sample : value)
        fmt::print("\n{}\n", sample.dump(2, ' ', false, json::error_handler_t::replace));
    } else if (name == "stored_bytes") {
      line("stored", bytes_text(value.get<int64_t>()));
    } else {
      line(name, value);
    }
  }
}

}  // namespace

Action add_inspect(CLI::App& program) {
  struct Flags {
    std::string path, kind = "auto";
    std::vector<std::string> settings;
    bool json_out = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App& verb = *program.add_subcommand("inspect", "say what a model, run, checkpoint or data file holds");
  verb.footer(
      "Example: gantrain inspect reviews.tsv data.columns=label,text data.prompt_template={text} "
      "data.completion_template={label}");
  verb.add_option("path", flags->path, "model folder or file, run folder, checkpoint, data file");
  verb.add_option("settings", flags->settings, "data files: data.key=value settings");
  verb.add_option("--kind", flags->kind, "auto, model, run, checkpoint or data")->capture_default_str();
  verb.add_flag("--json", flags->json_out, "one JSON object");
  return [flags] {
    need(!flags->path.empty(), "inspect", "a path");
    check_choice("--kind", flags->kind, {"auto", "model", "run", "checkpoint", "data"});
    const std::string kind = flags->kind == "auto" ? kind_of(flags->path) : flags->kind;
    if (kind != "data" && !flags->settings.empty())
      fail_usage("inspect: '{}': settings are for data files, and {} is a {}", flags->settings[0],
                 flags->path, kind);
    const json facts = kind == "model"        ? inspect_model(flags->path)
                       : kind == "run"        ? inspect_run(flags->path)
                       : kind == "checkpoint" ? inspect_checkpoint(flags->path)
                                              : inspect_data(flags->path, flags->settings);
    if (flags->json_out)
      fmt::print("{}\n", facts.dump(-1, ' ', false, json::error_handler_t::replace));
    else
      print_text(facts);
    return 0;
  };
}

}  // namespace gantrain::cli
