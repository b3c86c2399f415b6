// What the files beside a Hugging Face tokenizer say about it.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/formats/json_text.h"
#include "model/formats/mapped_file.h"
#include "model/tokenizer/formats.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kLargestFile = 64 << 20;

std::string read_text(const fs::path& path) {
  const MappedFile file(path.string());
  if (file.size() > kLargestFile)
    fail("{}: {} bytes; expected at most {}", path.string(), file.size(), kLargestFile);
  return {file.bytes().begin(), file.bytes().end()};
}

// The object in the file; an empty one where there is no file.
json read_object(const fs::path& path) {
  if (!fs::is_regular_file(path)) return json::object();
  const json root = parse_json(read_text(path), path.string());
  if (!root.is_object()) fail("{}: expected an object, got {}", path.string(), root.type_name());
  return root;
}

// "bos_token": "<s>" or {"content": "<s>", ...}. A name that is no special token here is left alone.
void name_token(const json& config, const char* key, const Tokenizer& tokenizer, std::optional<int32_t>& id) {
  const auto found = config.find(key);
  if (found == config.end()) return;
  const json* text = &*found;
  if (text->is_object() && text->contains("content")) text = &(*text)["content"];
  if (!text->is_string()) return;
  if (const auto special = tokenizer.special_id(text->get<std::string>())) id = special;
}

// An id or a list of ids.
std::vector<int32_t> read_ids(const json& config, const char* key, int64_t vocab_size,
                              const std::string& where) {
  std::vector<int32_t> ids;
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return ids;
  const json list = found->is_array() ? *found : json::array({*found});
  for (const json& entry : list) {
    const bool integer = entry.is_number_integer();
    const int64_t id = integer ? entry.get<int64_t>() : -1;
    if (!integer || id >= vocab_size || id < -1)
      fail("{}: {} has {}; expected ids below {}", where, key, entry.dump(), vocab_size);
    if (id >= 0) ids.push_back(static_cast<int32_t>(id));  // -1 means none
  }
  return ids;
}

}  // namespace

void read_folder_settings(const std::string& folder, Tokenizer& tokenizer) {
  TokenizerInfo info = tokenizer.info();
  const fs::path base(folder);
  // From the weakest to the strongest: a later file overrides.
  for (const char* name : {"config.json", "generation_config.json"}) {
    const std::string where = (base / name).string();
    const json config = read_object(base / name);
    if (const auto ids = read_ids(config, "bos_token_id", info.vocab_size, where); !ids.empty())
      info.bos = ids[0];
    if (const auto ids = read_ids(config, "eos_token_id", info.vocab_size, where); !ids.empty()) {
      info.eos = ids[0];
      info.end_ids.insert(info.end_ids.end(), ids.begin(), ids.end());
    }
  }
  for (const char* name : {"special_tokens_map.json", "tokenizer_config.json"}) {
    const json config = read_object(base / name);
    name_token(config, "bos_token", tokenizer, info.bos);
    name_token(config, "eos_token", tokenizer, info.eos);
    name_token(config, "unk_token", tokenizer, info.unk);
    if (const auto found = config.find("add_bos_token"); found != config.end() && found->is_boolean())
      info.adds_bos = found->get<bool>();
    const auto chat = config.find("chat_template");
    if (chat == config.end()) continue;
    if (chat->is_string()) info.chat_template = chat->get<std::string>();
    if (chat->is_array())  // several, by name
      for (const json& entry : *chat)
        if (entry.is_object() && entry.value("name", json()) == "default" && entry.contains("template") &&
            entry["template"].is_string())
          info.chat_template = entry["template"].get<std::string>();
  }
  if (fs::is_regular_file(base / "chat_template.jinja"))
    info.chat_template = read_text(base / "chat_template.jinja");
  tokenizer.set_info(std::move(info));
}

}  // namespace gantrain
