// The run's diary: one JSON object a line, appended and flushed, for programs (jq, pandas) and our reports.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace gantrain {

using EventValue =
    std::variant<double, int64_t, bool, std::string, std::vector<double>, std::vector<std::string>>;
using EventFields = std::vector<std::pair<std::string, EventValue>>;

class EventLog {
 public:
  // Opens `file` for appending. `keep_bytes` >= 0 first cuts it to that length: a resumed run drops what was
  // written after the checkpoint it starts from. Throws Error when that is not possible.
  explicit EventLog(const std::filesystem::path& file, int64_t keep_bytes = -1);
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;
  ~EventLog();

  // {"event": name, "step": step, "seconds": since the log was opened, fields...}. NaN and infinities, which
  // JSON has no word for, become null and their keys are listed under "not_finite". Throws Error when the
  // line cannot be written.
  void write(const std::string& name, int64_t step, const EventFields& fields);

  // Length of the file so far: what a checkpoint keeps, for keep_bytes.
  int64_t bytes() const { return bytes_; }

 private:
  std::filesystem::path file_;
  std::FILE* out_ = nullptr;
  int64_t bytes_ = 0;
  double opened_ = 0.0;
};

}  // namespace gantrain
