// A SentencePiece .model.
#include "model/tokenizer/formats.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tokens.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  static const fuzz::Scratch scratch;
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    fuzz::use(*read_sentencepiece_model(scratch.hold("tokenizer.model", bytes)));
  });
}
