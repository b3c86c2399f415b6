#include "core/check.h"

#include <atomic>
#include <string_view>

#include "core/broken_contracts.h"

namespace gantrain {
namespace {
std::atomic<int64_t> broken = 0;
}  // namespace

int64_t broken_contracts() { return broken; }

namespace detail {

void check_failed(const char* file, int line, const char* expression, const std::string& message) {
  ++broken;
  // Only the path inside the project: a message must not depend on where the project was built.
  std::string_view path(file), root(__FILE__);
  root.remove_suffix(std::string_view("core/check.cc").size());
  if (path.starts_with(root)) path.remove_prefix(root.size());
  throw Error(fmt::format("{} [check failed: {} at {}:{}]", message, expression, path, line));
}

}  // namespace detail
}  // namespace gantrain
