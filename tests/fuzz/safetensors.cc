// A safetensors file: its header, every tensor's bytes, and the same file as a model's weights.
#include "model/formats/safetensors.h"

#include "tests/fuzz/models.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  static const fuzz::Scratch scratch;
  static const std::string config = scratch.hold("config.json", fuzz::kTinyConfig);
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    const SafetensorsFile file(scratch.hold("model.safetensors", bytes));
    for (const SafetensorsFile::Entry& e : file.entries()) {
      const ConstTensor t = file.tensor(e);
      fuzz::touch(t.raw(), static_cast<size_t>(t.bytes()));
    }
    fuzz::read_all_rows(*open_weights(scratch.path()));
  });
}
