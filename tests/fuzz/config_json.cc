// A model's config.json.
#include "model/config.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    rope_inverse_frequencies(parse_llama_config(bytes, "config.json"));
  });
}
