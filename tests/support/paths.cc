#include "tests/support/paths.h"

#include <cstdlib>

namespace gantrain::test {

std::filesystem::path data_folder() {
  if (const char* set = std::getenv("GANTRAIN_DATA"); set && *set) return set;
  return source_folder().parent_path() / "shared" / "data";
}

std::filesystem::path source_folder() { return GANTRAIN_SOURCE_DIR; }

}  // namespace gantrain::test
