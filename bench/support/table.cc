#include "bench/support/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

namespace gantrain::bench {
namespace {

// Counters of the whole table, in the order that is read best; then all others by name.
std::vector<std::string> columns_of(const std::vector<Row>& rows) {
  std::set<std::string> all;
  for (const Row& r : rows)
    for (const auto& [name, values] : r.counters) all.insert(name);
  std::vector<std::string> out;
  for (const char* name :
       {"tokens/s", "bytes", "bytes/s", "bandwidth_share", "flops", "flops/s", "flops_share"})
    if (all.erase(name) > 0) out.push_back(name);
  out.insert(out.end(), all.begin(), all.end());
  return out;
}

std::string human(const std::string& column, double v) {
  if (column.ends_with("_share")) return fmt::format("{:.1f} %", 100 * v);
  if (column.ends_with("_seconds")) return human_time(v);
  const char* unit = "";
  for (const auto& [limit, letter] : {std::pair(1e12, "T"), {1e9, "G"}, {1e6, "M"}, {1e3, "k"}})
    if (std::abs(v) >= limit) {
      v /= limit;
      unit = letter;
      break;
    }
  return fmt::format("{:.4g}{}{}", v, *unit ? " " : "", unit);
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string out(1, '"');
  for (const char c : text) {
    if (c == '"') out.push_back('"');
    out.push_back(c);
  }
  out.push_back('"');
  return out;
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

std::string human_time(double seconds) {
  if (seconds >= 1) return fmt::format("{:.3f} s", seconds);
  if (seconds >= 1e-3) return fmt::format("{:.3f} ms", seconds * 1e3);
  return fmt::format("{:.2f} us", seconds * 1e6);
}

std::string to_markdown(const std::string& title, const Facts& facts, const std::vector<Row>& rows,
                        bool timed) {
  std::string out = fmt::format("# {}\n\n", title);
  for (const auto& [name, value] : facts) out += fmt::format("- {}: {}\n", name, value);
  const std::vector<std::string> columns = columns_of(rows);
  out += timed ? "\n| case | time, measured | spread | repetitions |" : "\n| case | time | label |";
  for (const std::string& c : columns) out += fmt::format(" {} |", c);
  out += timed ? "\n|---|---|---|---|" : "\n|---|---|---|";
  for (size_t i = 0; i < columns.size(); ++i) out += "---|";
  out += "\n";
  for (const Row& r : rows) {
    out += fmt::format("| {} |", r.name);
    if (!r.error.empty()) {
      out += fmt::format(" {}{} |\n", r.error.starts_with("skipped: ") ? "" : "error: ", r.error);
      continue;
    }
    if (timed) {
      const double middle = median(r.seconds),
                   spread = r.seconds.empty() ? 0
                                              : *std::max_element(r.seconds.begin(), r.seconds.end()) -
                                                    *std::min_element(r.seconds.begin(), r.seconds.end());
      out += fmt::format(
          " {} | {} | {} |", human_time(middle),
          r.seconds.size() > 1 && middle > 0 ? fmt::format("{:.1f} %", 100 * spread / middle) : "",
          r.seconds.size());
    } else {
      out += " none | predicted/none |";
    }
    for (const std::string& c : columns) {
      const auto found = r.counters.find(c);
      out += found == r.counters.end() ? " |" : fmt::format(" {} |", human(c, median(found->second)));
    }
    out += "\n";
  }
  return out;
}

std::string to_csv(const std::vector<Row>& rows, bool timed) {
  const std::vector<std::string> columns = columns_of(rows);
  std::string out = timed ? "case,repetition,seconds" : "case,repetition,label";
  for (const std::string& c : columns) out += fmt::format(",{}", quoted(c));
  out += ",error\n";
  for (const Row& r : rows) {
    const size_t lines = std::max<size_t>(1, r.seconds.size());
    for (size_t i = 0; i < lines; ++i) {
      out += fmt::format("{},{},", quoted(r.name), i);
      out += !timed ? "predicted/none" : i < r.seconds.size() ? fmt::format("{:.9g}", r.seconds[i]) : "";
      for (const std::string& c : columns) {
        const auto found = r.counters.find(c);
        out += ",";
        if (found != r.counters.end() && i < found->second.size())
          out += fmt::format("{:.9g}", found->second[i]);
      }
      out += fmt::format(",{}\n", quoted(r.error));
    }
  }
  return out;
}

std::string to_count_json(const Facts& facts, const std::vector<Row>& rows) {
  nlohmann::ordered_json j;
  for (const auto& [name, value] : facts) j["context"][name] = value;
  j["benchmarks"] = nlohmann::ordered_json::array();
  for (const Row& r : rows) {
    nlohmann::ordered_json b{{"name", r.name},
                             {"run_name", r.name},
                             {"run_type", "iteration"},
                             {"iterations", 1},
                             {"label", "predicted/none"}};
    if (!r.error.empty()) {
      b["error_occurred"] = true;
      b["error_message"] = r.error;
    }
    for (const auto& [name, values] : r.counters) b[name] = median(values);
    j["benchmarks"].push_back(b);
  }
  return j.dump(2) + "\n";
}

}  // namespace gantrain::bench
