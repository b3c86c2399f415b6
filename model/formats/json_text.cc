#include "model/formats/json_text.h"

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/check.h"

namespace gantrain {
namespace {

using nlohmann::json;

// Stops at the first problem: every callback that says false ends the parsing.
class Checker : public nlohmann::json_sax<json> {
 public:
  std::string problem;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return descend(); }
  bool end_object() override { return ascend(); }
  bool start_array(size_t) override { return descend(); }
  bool end_array() override { return ascend(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    problem = fmt::format("the key '{}' stands twice in one object", name.substr(0, kShown));
    return false;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    // The library's message without its own tag: "at line 1, column 5: ...".
    std::string text = e.what();
    if (const size_t tag = text.find("] "); text.starts_with('[') && tag != std::string::npos)
      text.erase(0, tag + 2);
    if (text.starts_with("parse error ")) text.erase(0, 12);
    problem = "not valid JSON " + text.substr(0, kShown);
    return false;
  }

 private:
  static constexpr size_t kMaxDepth = 32, kShown = 200;
  bool descend() {
    if (keys_.size() >= kMaxDepth) {
      problem = fmt::format("nested deeper than {} levels", kMaxDepth);
      return false;
    }
    keys_.emplace_back();
    return true;
  }
  bool ascend() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;  // of every container around; an array's stays empty
};

}  // namespace

std::string json_problem(std::string_view text) {
  Checker checker;
  json::sax_parse(text, &checker);
  return checker.problem;
}

void check_json(std::string_view text, std::string_view where) {
  if (const std::string problem = json_problem(text); !problem.empty())
    fail("{}: {}; the file is damaged or of another kind", where, problem);
}

}  // namespace gantrain
