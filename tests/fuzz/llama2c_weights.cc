// A llama2.c .bin checkpoint.
#include "tests/fuzz/models.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  static const fuzz::Scratch scratch;
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    if (bytes.starts_with("GGUF")) return;  // goes to the other reader
    fuzz::read_all_rows(*open_weights(scratch.hold("model.bin", bytes)));
  });
}
