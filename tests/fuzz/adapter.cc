// A PEFT folder: the first byte chooses which of its two files the rest is, and of which kind the other.
#include "model/adapters/peft.h"
#include "model/formats/safetensors.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  static const fuzz::Scratch scratch;
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    if (bytes.empty()) return;
    LlamaConfig model;
    model.hidden_size = 4;
    model.num_layers = 1;
    model.num_heads = 2;
    model.num_kv_heads = 1;
    model.head_dim = 2;
    model.intermediate_size = 6;
    static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    static const auto file = [&](const std::vector<NamedTensor>& tensors) {
      const std::string path = scratch.path() + "/ones";
      write_safetensors(path, tensors);
      std::ifstream in(path, std::ios::binary);
      return std::string(std::istreambuf_iterator<char>(in), {});
    };
    static const std::string prompt = file({{kPeftPromptKey, ConstTensor(ones, DType::kF32, {2, 4})}});
    static const std::string lora = file({{peft_key(0, 2, false), ConstTensor(ones, DType::kF32, {1, 4})},
                                          {peft_key(0, 2, true), ConstTensor(ones, DType::kF32, {2, 1})}});
    const auto kind = static_cast<unsigned char>(bytes[0]);
    const bool config = kind % 2 == 0, low_rank = kind % 4 >= 2;
    static constexpr std::string_view kConfigs[]{
        R"({"peft_type":"PROMPT_TUNING","num_virtual_tokens":2})",
        R"({"peft_type":"LORA","r":1,"lora_alpha":2})",
        R"({"peft_type":"BOTTLENECK","width":1,"activation":"silu"})", R"({"peft_type":"PREFIX_TUNING"})"};
    scratch.hold("adapter_config.json", config ? bytes.substr(1) : kConfigs[kind / 2 % 4]);
    scratch.hold("adapter_model.safetensors", !config    ? bytes.substr(1)
                                              : low_rank ? std::string_view(lora)
                                                         : std::string_view(prompt));
    const PeftAdapter got = read_peft(scratch.path(), model);
    fuzz::touch(got.prompt.data(), got.prompt.size() * sizeof(float));
    fuzz::touch(got.prefix.data(), got.prefix.size() * sizeof(float));
    for (const auto& layer : got.bottlenecks)
      for (const BottleneckValues& v : layer)
        for (const std::vector<float>* t : {&v.down, &v.down_bias, &v.up, &v.up_bias})
          fuzz::touch(t->data(), t->size() * sizeof(float));
    for (const auto& layer : got.layers)
      for (const PeftAdapter::Pair& p : layer) {
        fuzz::touch(p.a.data(), p.a.size() * sizeof(float));
        fuzz::touch(p.b.data(), p.b.size() * sizeof(float));
      }
  });
}
