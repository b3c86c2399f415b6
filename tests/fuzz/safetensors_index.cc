// model.safetensors.index.json over two shards that are always the same.
#include "tests/fuzz/models.h"

namespace {

// The tensors of the tiny model whose name holds `part`, all ones.
void write_shard(const gantrain::fuzz::Scratch& scratch, const char* name, bool attention,
                 std::string& bytes) {
  using namespace gantrain;
  static const float ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  std::vector<NamedTensor> tensors;
  for (const TensorEntry& e : expected_tensors(parse_llama_config(fuzz::kTinyConfig, "tiny")))
    if ((e.name.find("self_attn") != std::string::npos) == attention)
      tensors.push_back({e.name, ConstTensor(ones, DType::kF32, e.shape)});
  const std::string path = scratch.path() + "/" + name;
  write_safetensors(path, tensors, {});
  std::ifstream in(path, std::ios::binary);
  bytes.assign(std::istreambuf_iterator<char>(in), {});
  scratch.hold(name, bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  static const fuzz::Scratch scratch;
  static std::string shards[2];
  static const bool once = [] {
    scratch.hold("config.json", fuzz::kTinyConfig);
    write_shard(scratch, "a.safetensors", true, shards[0]);
    write_shard(scratch, "b.safetensors", false, shards[1]);
    return true;
  }();
  (void)once;
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    scratch.hold("model.safetensors.index.json", bytes);
    fuzz::read_all_rows(*open_weights(scratch.path()));
  });
}
