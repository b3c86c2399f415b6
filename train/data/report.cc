#include "train/data/report.h"

#include <fmt/format.h>

namespace gantrain {

std::string to_string(const DataReport& report) {
  std::string out = fmt::format("{}: {} items, {} kept\n", report.file, report.read, report.kept);
  for (const auto& [reason, count] : report.dropped)
    out += fmt::format("  {:>8} dropped: {} (first at line {})\n", count.items, reason, count.first_line);
  for (const auto& [reason, count] : report.changed)
    out += fmt::format("  {:>8} changed: {} (first at line {})\n", count.items, reason, count.first_line);
  if (report.completion_tokens > 0 && report.kept > 0) {
    const double items = static_cast<double>(report.kept);
    out += fmt::format("  prompt tokens: {:.1f} an item, {} the longest; completion tokens: {:.1f}, {}\n",
                       static_cast<double>(report.prompt_tokens) / items, report.longest_prompt,
                       static_cast<double>(report.completion_tokens) / items, report.longest_completion);
  }
  return out;
}

}  // namespace gantrain
