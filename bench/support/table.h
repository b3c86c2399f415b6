// Results as tables for people (Markdown) and programs (CSV), besides Google Benchmark's own JSON.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace gantrain::bench {

// One case: a repetition a sample. No samples: it was run and counted, not timed.
struct Row {
  std::string name;
  std::vector<double> seconds;                          // of one iteration
  std::map<std::string, std::vector<double>> counters;  // name -> a value a repetition
  std::string error;                                    // why it has no result; empty: it has one
};

double median(std::vector<double> values);
// 0.00123 -> "1.23 ms"
std::string human_time(double seconds);

using Facts = std::vector<std::pair<std::string, std::string>>;  // what stands above the results
// `timed` false: the software GPU's, whose column of times says that there is none.
std::string to_markdown(const std::string& title, const Facts& facts, const std::vector<Row>& rows,
                        bool timed);
std::string to_csv(const std::vector<Row>& rows, bool timed);
// In the shape of Google Benchmark's JSON, for results without times.
std::string to_count_json(const Facts& facts, const std::vector<Row>& rows);

}  // namespace gantrain::bench
