#include "train/log/events.h"

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace gantrain {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

EventLog::EventLog(const std::filesystem::path& file, int64_t keep_bytes) : file_(file), opened_(now()) {
  std::error_code error;
  if (keep_bytes >= 0) {
    const auto size = std::filesystem::exists(file) ? std::filesystem::file_size(file, error) : 0;
    if (error || size < static_cast<uintmax_t>(keep_bytes))
      fail("{}: expected at least the {} bytes it had at the checkpoint, got {}", file.string(), keep_bytes,
           size);
    if (size > static_cast<uintmax_t>(keep_bytes))
      std::filesystem::resize_file(file, static_cast<uintmax_t>(keep_bytes), error);
    if (error) fail("{}: cannot be cut to {} bytes: {}", file.string(), keep_bytes, error.message());
  }
  out_ = std::fopen(file.c_str(), "ab");
  if (!out_) fail("{}: cannot be opened for writing: {}", file.string(), std::strerror(errno));
  const auto size = std::filesystem::file_size(file, error);
  bytes_ = error ? 0 : static_cast<int64_t>(size);
}

EventLog::~EventLog() {
  if (out_) std::fclose(out_);
}

void EventLog::write(const std::string& name, int64_t step, const EventFields& fields) {
  using json = nlohmann::ordered_json;
  json line;
  line["event"] = name;
  line["step"] = step;
  line["seconds"] = std::round((now() - opened_) * 1000.0) / 1000.0;
  json not_finite = json::array();
  for (const auto& [key, value] : fields) {
    GT_CHECK(!line.contains(key), "event {}: field {} is given twice", name, key);
    std::visit(
        [&, &key = key](const auto& v) {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_same_v<T, double>) {
            line[key] = std::isfinite(v) ? json(v) : json(nullptr);
            if (!std::isfinite(v)) not_finite.push_back(key);
          } else if constexpr (std::is_same_v<T, std::vector<double>>) {
            json list = json::array();
            bool finite = true;
            for (const double x : v) {
              list.push_back(std::isfinite(x) ? json(x) : json(nullptr));
              finite = finite && std::isfinite(x);
            }
            line[key] = std::move(list);
            if (!finite) not_finite.push_back(key);
          } else {
            line[key] = v;
          }
        },
        value);
  }
  if (!not_finite.empty()) line["not_finite"] = std::move(not_finite);
  // Sampled text may be cut inside a character: such bytes become U+FFFD instead of an exception.
  const std::string text = line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  if (std::fwrite(text.data(), 1, text.size(), out_) != text.size() || std::fflush(out_) != 0)
    fail("{}: cannot be written: {}", file_.string(), std::strerror(errno));
  bytes_ += static_cast<int64_t>(text.size());
}

}  // namespace gantrain
