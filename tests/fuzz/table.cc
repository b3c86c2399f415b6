// TSV, CSV and patterned lines. The first byte chooses the format and its settings.
#include "tests/fuzz/data.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    if (!bytes.empty()) fuzz::read_data(static_cast<unsigned char>(bytes[0]), bytes.substr(1), false);
  });
}
