#include "model/formats/json_text.h"

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/check.h"

namespace gantrain {
namespace {

using nlohmann::json;

class Checker : public nlohmann::json_sax<json> {
 public:
  explicit Checker(std::string_view where) : where_(where) {}

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
    if (!keys_.back().insert(name).second)
      fail("{}: the key '{}' stands twice in one object", where_, name.substr(0, 200));
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    fail("{}: not valid JSON: {}", where_, e.what());
  }

 private:
  static constexpr size_t kMaxDepth = 32;
  bool descend() {
    if (keys_.size() >= kMaxDepth) fail("{}: JSON nested deeper than {} levels", where_, kMaxDepth);
    keys_.emplace_back();
    return true;
  }
  bool ascend() {
    keys_.pop_back();
    return true;
  }

  std::string_view where_;
  std::vector<std::set<std::string>> keys_;  // of every container around; an array's stays empty
};

}  // namespace

void check_json(std::string_view text, std::string_view where) {
  Checker checker(where);
  json::sax_parse(text, &checker);
}

}  // namespace gantrain
