// Every function that core/ops declares is called by a test of this folder, or this fails.
// g++ 12 with sanitizers takes members of its own <regex> for uninitialised (GCC bug 105562).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "tests/support/paths.h"

namespace gantrain {
namespace {

// All of a folder's files that end like this, one after the other.
std::string sources(const std::string& folder, const std::string& ending) {
  std::ostringstream all;
  for (const auto& entry : std::filesystem::directory_iterator(test::source_folder() / folder))
    if (entry.path().string().ends_with(ending)) all << std::ifstream(entry.path()).rdbuf();
  return all.str();
}

TEST(OpCoverage, EveryDeclaredOpIsTested) {
  const std::string headers = sources("core/ops", ".h"), tests = sources("tests/ops", "_test.cc");
  std::set<std::string> called;
  const std::regex call("([a-z][a-z0-9_]*)\\("), declaration("\\n(?:void|bool|int64_t) ([a-z][a-z0-9_]*)\\(");
  const std::sregex_iterator end;
  for (std::sregex_iterator i(tests.begin(), tests.end(), call); i != end; ++i) called.insert((*i)[1]);
  int ops = 0;
  for (std::sregex_iterator i(headers.begin(), headers.end(), declaration); i != end; ++i, ++ops)
    EXPECT_TRUE(called.count((*i)[1]))
        << "core/ops declares " << (*i)[1] << ", and no test in tests/ops calls it";
  EXPECT_GE(ops, 70) << "the search no longer finds the declarations";
}

}  // namespace
}  // namespace gantrain
