#include "model/formats/json_text.h"

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/check.h"

namespace gantrain {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32, kShown = 200;

struct Refused {
  std::string problem;
};

// Asked by the library at every key and container while it builds the value; ends the parsing by throwing.
class Guard {
 public:
  bool operator()(int, json::parse_event_t event, const json& value) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        if (keys_.size() >= kMaxDepth) throw Refused{fmt::format("nested deeper than {} levels", kMaxDepth)};
        keys_.emplace_back();
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        keys_.pop_back();
        break;
      case json::parse_event_t::key:
        if (const auto& name = value.get_ref<const std::string&>(); !keys_.back().insert(name).second)
          throw Refused{fmt::format("the key '{}' stands twice in one object", name.substr(0, kShown))};
        break;
      case json::parse_event_t::value:
        break;
    }
    return true;
  }

 private:
  std::vector<std::set<std::string>> keys_;  // of every container around; an array's stays empty
};

}  // namespace

std::string read_json(std::string_view text, json& into, bool explain) {
  try {
    into = json::parse(text, Guard(), /*allow_exceptions=*/explain);
    return into.is_discarded() ? "not valid JSON" : "";
  } catch (const Refused& refused) {
    return refused.problem;
  } catch (const json::exception& error) {
    // The library's message without its own tag: "at line 1, column 5: ...".
    std::string problem = error.what();
    if (const size_t tag = problem.find("] "); problem.starts_with('[') && tag != std::string::npos)
      problem.erase(0, tag + 2);
    if (problem.starts_with("parse error ")) problem.erase(0, 12);
    return "not valid JSON " + problem.substr(0, kShown);
  }
}

json parse_json(std::string_view text, std::string_view where) {
  json value;
  if (const std::string problem = read_json(text, value); !problem.empty())
    fail("{}: {}; the file is damaged or of another kind", where, problem);
  return value;
}

}  // namespace gantrain
