// A run's TOML file, and the same bytes as key=value words, one a line. What was read is written and read
// again.
#include "train/config.h"

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    const std::string once = to_toml(parse_train_config(bytes, "run.toml", {}));
    std::string twice;
    try {
      twice = to_toml(parse_train_config(once, "written", {}));
    } catch (const Error& error) {
      GT_CHECK(false, "what was written cannot be read: {}", error.what());
    }
    GT_CHECK(once == twice, "reading what was written changes it");
  });
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    std::vector<std::string> words;
    for (size_t begin = 0; begin < bytes.size() && words.size() < 8;) {
      const size_t end = std::min(bytes.find('\n', begin), bytes.size());
      words.emplace_back(bytes.substr(begin, end - begin));
      begin = end + 1;
    }
    parse_train_config("", "(no file)", words);
  });
}
