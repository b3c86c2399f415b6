// Errors and checks. One exception type for the whole project; no library code exits or aborts.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace gantrain {

// What kind of failure; the program's exit code (0 fine, 1 failure, 2 usage, 3 out of memory).
enum class ErrorKind { kFailure = 1, kUsage = 2, kOutOfMemory = 3 };

// The one exception type. `what()` says what failed, where, expected against got, and what to do next.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ErrorKind kind = ErrorKind::kFailure)
      : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }

 private:
  ErrorKind kind_;
};

// fail("{}: expected {} got {}", ...): a failure that a person can act on (a file, a setting); no file:line.
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

// The same for wrong usage: an unknown flag, a value out of range. Exit code 2.
template <typename... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...), ErrorKind::kUsage);
}

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* expression,
                               const std::string& message);
}  // namespace detail

}  // namespace gantrain

// A broken contract inside the program: throws Error with the expression, the place and the message.
#define GT_CHECK(condition, ...)                                                                    \
  do {                                                                                              \
    if (!(condition)) [[unlikely]]                                                                  \
      ::gantrain::detail::check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__)); \
  } while (false)
