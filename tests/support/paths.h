// Where tests find the project's sources and its data folder.
#pragma once

#include <filesystem>

namespace gantrain::test {

// The data folder: $GANTRAIN_DATA, else shared/data beside the source folder. It may be missing: a test that
// needs it skips, saying so.
std::filesystem::path data_folder();
std::filesystem::path source_folder();

}  // namespace gantrain::test

// Skips the test, with the reason, where the data folder does not hold `RELATIVE`.
#define GT_SKIP_WITHOUT_DATA(RELATIVE)                                                         \
  do {                                                                                         \
    const auto path = ::gantrain::test::data_folder() / (RELATIVE);                            \
    if (!std::filesystem::exists(path))                                                        \
      GTEST_SKIP() << path.string() << " is missing; set GANTRAIN_DATA to the folder of data"; \
  } while (false)
