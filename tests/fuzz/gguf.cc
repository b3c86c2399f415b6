// A GGUF file: metadata, every tensor dequantised, the model and the tokenizer inside.
#include "model/formats/gguf.h"

#include "model/tokenizer/formats.h"
#include "tests/fuzz/models.h"
#include "tests/fuzz/tokens.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  static const fuzz::Scratch scratch;
  static std::string path;
  bool opened = false;
  fuzz::expect_refusal_or_success(data, size, [&](std::string_view bytes) {
    path = scratch.hold("model.gguf", bytes);
    const GgufFile file(path);
    opened = true;
    std::vector<float> row;
    for (const GgufFile::Tensor& t : file.tensors()) {
      const int64_t cols = t.shape[t.shape.rank - 1], rows = t.shape.count() / cols;
      row.resize(static_cast<size_t>(cols));
      for (int64_t r = 0; r < rows; ++r) file.read_rows(t, r, 1, row.data());
    }
  });
  if (!opened) return 0;  // what follows begins with the same GgufFile
  // Both, whether or not the other one is refused: a file may lack either half.
  fuzz::expect_refusal_or_success(data, size,
                                  [](std::string_view) { fuzz::use(*read_gguf_tokenizer(path)); });
  return fuzz::expect_refusal_or_success(data, size,
                                         [](std::string_view) { fuzz::read_all_rows(*open_weights(path)); });
}
