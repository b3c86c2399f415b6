// A PEFT prompt-tuning folder: the first byte chooses which of its two files the rest is.
#include "model/formats/safetensors.h"
#include "model/probe.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  static const fuzz::Scratch scratch;
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    if (bytes.empty()) return;
    static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    static const std::string weights = [] {
      const std::string file = scratch.path() + "/ones";
      write_safetensors(file, {{"prompt_embeddings", ConstTensor(ones, DType::kF32, {2, 4})}}, {});
      std::ifstream in(file, std::ios::binary);
      return std::string(std::istreambuf_iterator<char>(in), {});
    }();
    const bool config = bytes[0] % 2 == 0;
    scratch.write("adapter_config.json",
                  config ? bytes.substr(1) : R"({"peft_type":"PROMPT_TUNING","num_virtual_tokens":2})");
    scratch.write("adapter_model.safetensors", config ? std::string_view(weights) : bytes.substr(1));
    const std::vector<float> prompt = read_peft_prompt(scratch.path(), 4);
    fuzz::touch(prompt.data(), prompt.size() * sizeof(float));
  });
}
