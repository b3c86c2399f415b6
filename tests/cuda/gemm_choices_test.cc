// The file of what timing found about products: read back whole, or as if it were not there.
#include "cuda/runtime/gemm_choices.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace gantrain {
namespace {

using cuda::GemmChoices;
namespace fs = std::filesystem;
constexpr GemmChoices::Key kFirst = {64, 8, 8, 8, 8, 8, 3},
                           kSecond = {1024, 4096, 11008, 11008, 4096, 4096, 64};
constexpr const char* kIdentity = "gantrain 1, cuBLASLt 130000, a GPU, compute capability 9.0";

class GemmChoicesFile : public testing::Test {
 protected:
  GemmChoicesFile()
      : folder_(fs::temp_directory_path() / ("gemm_choices." + std::to_string(::getpid()))),
        file_((folder_ / "below" / "gemm.txt").string()) {}
  ~GemmChoicesFile() override {
    std::error_code error;
    fs::remove_all(folder_, error);
  }
  std::string text() const {
    std::ostringstream all;
    all << std::ifstream(file_, std::ios::binary).rdbuf();
    return all.str();
  }
  void put(const std::string& text) const {
    std::ofstream(file_, std::ios::binary | std::ios::trunc) << text;
  }
  fs::path folder_;
  std::string file_;
};

TEST_F(GemmChoicesFile, IsReadBackByTheSameDeviceAlone) {
  GemmChoices choices(file_, kIdentity);
  EXPECT_FALSE(fs::exists(file_)) << "written before there was anything to write";
  choices.remember(kFirst, true);
  choices.remember(kSecond, false);
  const GemmChoices again(file_, kIdentity);
  EXPECT_EQ(again.size(), 2u);
  EXPECT_EQ(again.find(kFirst), std::optional(true));
  EXPECT_EQ(again.find(kSecond), std::optional(false));
  EXPECT_EQ(again.find({1, 2, 3, 4, 5, 6, 7}), std::nullopt);
  EXPECT_EQ(GemmChoices(file_, "another GPU").size(), 0u);
  for (const auto& entry : fs::directory_iterator(fs::path(file_).parent_path()))
    EXPECT_EQ(entry.path(), fs::path(file_)) << "a part was left";
}

TEST_F(GemmChoicesFile, KeepsWhatAnotherProcessWrote) {
  GemmChoices one(file_, kIdentity), other(file_, kIdentity);
  one.remember(kFirst, true);
  other.remember(kSecond, false);
  EXPECT_EQ(GemmChoices(file_, kIdentity).size(), 2u);
}

// Cut off anywhere, or one byte changed anywhere: nothing of it counts, and the next choice writes it anew.
TEST_F(GemmChoicesFile, DamagedIsAsIfItWereNotThere) {
  GemmChoices(file_, kIdentity).remember(kFirst, true);
  GemmChoices(file_, kIdentity).remember(kSecond, false);
  const std::string whole = text();
  ASSERT_EQ(GemmChoices(file_, kIdentity).size(), 2u);
  for (size_t i = 0; i < whole.size(); ++i) {
    put(whole.substr(0, i));
    EXPECT_EQ(GemmChoices(file_, kIdentity).size(), 0u) << "cut off at " << i;
    for (const char c : {char(whole[i] ^ 1), '\n', '\0', ' ', '9'}) {
      if (c == whole[i]) continue;
      std::string changed = whole;
      changed[i] = c;
      put(changed);
      EXPECT_EQ(GemmChoices(file_, kIdentity).size(), 0u) << "byte " << i << " changed to " << int(c);
    }
  }
  put(whole + "more\n");
  EXPECT_EQ(GemmChoices(file_, kIdentity).size(), 0u);
  put(std::string(size_t{2} << 20, '1'));
  GemmChoices choices(file_, kIdentity);
  EXPECT_EQ(choices.size(), 0u);
  choices.remember(kFirst, false);
  EXPECT_EQ(GemmChoices(file_, kIdentity).find(kFirst), std::optional(false));
}

// No place to write: the choices of this process still count.
TEST_F(GemmChoicesFile, WithoutAPlaceIsOfTheProcessAlone) {
  for (const std::string& file : {std::string(), std::string("/proc/none/gemm.txt")}) {
    GemmChoices choices(file, kIdentity);
    choices.remember(kFirst, true);
    EXPECT_EQ(choices.find(kFirst), std::optional(true));
  }
}

TEST(GemmChoicesPlace, IsTheCacheFolder) {
  const auto saved = [](const char* name) {
    const char* value = std::getenv(name);
    return value ? std::optional<std::string>(value) : std::nullopt;
  };
  const auto cache = saved("GANTRAIN_CACHE"), xdg = saved("XDG_CACHE_HOME"), home = saved("HOME");
  const auto set = [](const char* name, const std::optional<std::string>& value) {
    value ? ::setenv(name, value->c_str(), 1) : ::unsetenv(name);
  };
  set("GANTRAIN_CACHE", "/c"), set("XDG_CACHE_HOME", "/x"), set("HOME", "/h");
  const std::string first = cuda::gemm_choices_file("a");
  EXPECT_EQ(first.substr(0, 8), "/c/gemm-");
  EXPECT_NE(first, cuda::gemm_choices_file("b"));
  set("GANTRAIN_CACHE", std::nullopt);
  EXPECT_EQ(cuda::gemm_choices_file("a").substr(0, 17), "/x/gantrain/gemm-");
  set("XDG_CACHE_HOME", "");
  EXPECT_EQ(cuda::gemm_choices_file("a").substr(0, 24), "/h/.cache/gantrain/gemm-");
  set("HOME", std::nullopt);
  EXPECT_EQ(cuda::gemm_choices_file("a"), "");
  set("GANTRAIN_CACHE", cache), set("XDG_CACHE_HOME", xdg), set("HOME", home);
}

}  // namespace
}  // namespace gantrain
