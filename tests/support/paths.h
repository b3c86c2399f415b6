// Where tests find the project's data folder.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace gantrain::test {

// The data folder: $GANTRAIN_DATA, else shared/data beside the source folder. It may be missing: a test that
// needs it skips, saying so.
inline std::filesystem::path data_folder() {
  if (const char* set = std::getenv("GANTRAIN_DATA"); set && *set) return set;
  return std::filesystem::path(GANTRAIN_SOURCE_DIR).parent_path() / "shared" / "data";
}

}  // namespace gantrain::test

// Skips the test, with the reason, where the data folder does not hold `RELATIVE`.
#define GT_SKIP_WITHOUT_DATA(RELATIVE)                                                         \
  do {                                                                                         \
    const auto path = ::gantrain::test::data_folder() / (RELATIVE);                            \
    if (!std::filesystem::exists(path))                                                        \
      GTEST_SKIP() << path.string() << " is missing; set GANTRAIN_DATA to the folder of data"; \
  } while (false)
