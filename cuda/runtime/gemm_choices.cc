#include "cuda/runtime/gemm_choices.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "core/digest.h"

namespace gantrain::cuda {
namespace {

namespace fs = std::filesystem;
constexpr size_t kMostBytes = size_t{1} << 20, kMostChoices = 8192;

// Against damage, not against an enemy, who could only make products slower.
uint64_t checksum(std::string_view text) {
  Digest digest;
  digest.add_bytes(text);
  return digest.value;
}

// The next line of `text`, which must end in a newline; false: there is none.
bool take_line(std::string_view* text, std::string_view* line) {
  const size_t end = text->find('\n');
  if (end == std::string_view::npos) return false;
  *line = text->substr(0, end);
  text->remove_prefix(end + 1);
  return true;
}

// "m n k lda ldb ldc bits own" or "... library", single spaces.
bool parse_choice(std::string_view line, GemmChoices::Key* key, bool* library) {
  for (int64_t& value : *key) {
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    if (error != std::errc() || end == line.data() + line.size() || *end != ' ' || value < 0) return false;
    line.remove_prefix(static_cast<size_t>(end - line.data()) + 1);
  }
  *library = line == "library";
  return *library || line == "own";
}

}  // namespace

GemmChoices::GemmChoices(std::string file, std::string identity)
    : file_(std::move(file)), identity_(std::move(identity)), choices_(read()) {}

std::optional<bool> GemmChoices::find(const Key& key) const {
  const auto it = choices_.find(key);
  return it == choices_.end() ? std::nullopt : std::optional(it->second);
}

void GemmChoices::remember(const Key& key, bool library) {
  // Another process may have written since: its choices are kept, ours win.
  for (const auto& [other, choice] : read()) choices_.emplace(other, choice);
  if (choices_.size() >= kMostChoices) choices_.clear();
  choices_[key] = library;
  write();
}

std::map<GemmChoices::Key, bool> GemmChoices::read() const {
  std::error_code error;
  if (file_.empty() || !fs::is_regular_file(file_, error)) return {};
  const auto bytes = fs::file_size(file_, error);
  if (error || bytes > kMostBytes) return {};
  std::ifstream in(file_, std::ios::binary);
  std::string all(kMostBytes, '\0');
  in.read(all.data(), static_cast<std::streamsize>(all.size()));
  all.resize(static_cast<size_t>(in.gcount()));

  std::string_view text = all, line;
  if (!take_line(&text, &line) || line != identity_) return {};
  std::map<Key, bool> choices;
  while (take_line(&text, &line)) {
    if (line.substr(0, 4) == "end ") {
      const size_t body = static_cast<size_t>(line.data() - all.data());
      const std::string want =
          fmt::format("end {} {:016x}", choices.size(), checksum(std::string_view(all).substr(0, body)));
      return text.empty() && line == want ? choices : std::map<Key, bool>{};
    }
    Key key{};
    bool library = false;
    if (!parse_choice(line, &key, &library) || choices.size() >= kMostChoices ||
        !choices.emplace(key, library).second)
      return {};
  }
  return {};
}

// A cache that cannot be written is not there the next time: no reason to stop.
void GemmChoices::write() const {
  if (file_.empty()) return;
  std::error_code error;
  fs::create_directories(fs::path(file_).parent_path(), error);
  std::string text = identity_ + "\n";
  for (const auto& [key, library] : choices_) {
    for (const int64_t value : key) text += std::to_string(value) + " ";
    text += library ? "library\n" : "own\n";
  }
  text += fmt::format("end {} {:016x}\n", choices_.size(), checksum(text));
  const std::string part = fmt::format("{}.{}", file_, ::getpid());
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (out)
    fs::rename(part, file_, error);
  else
    fs::remove(part, error);
}

std::string gemm_choices_file(const std::string& identity) {
  const auto folder = [](const char* variable, const char* below) {
    const char* value = std::getenv(variable);
    return value && *value ? std::string(value) + below : std::string();
  };
  for (const std::string& at : {folder("GANTRAIN_CACHE", ""), folder("XDG_CACHE_HOME", "/gantrain"),
                                folder("HOME", "/.cache/gantrain")})
    if (!at.empty()) return fmt::format("{}/gemm-{:016x}.txt", at, checksum(identity));
  return {};
}

}  // namespace gantrain::cuda
