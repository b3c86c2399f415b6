// A checkpoint. Few changed bytes pass its checksums, so whatever is a safetensors file is also signed anew
// and read again: what lies behind the checksums must hold as well.
#include "train/checkpoint/checkpoint.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "model/formats/json_text.h"
#include "tests/fuzz/fuzz.h"
#include "train/verbs/session.h"

namespace {

void use(const gantrain::CheckpointReader& reader) {
  using namespace gantrain;
  for (const std::string& name : reader.tensor_names()) {
    const ConstTensor t = reader.tensor(name);
    fuzz::touch(t.raw(), static_cast<size_t>(t.bytes()));
    if (t.dtype() == DType::kF32) reader.floats(name);
    if (t.dtype() == DType::kI64) reader.longs(name);
  }
  for (const std::string& name : reader.json_names()) reader.json(name);
  checkpoint_config(reader, {});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  static const fuzz::Scratch scratch;
  static std::string path;
  std::optional<SafetensorsFile> file;  // with which a checkpoint's reader begins
  fuzz::expect_refusal_or_success(data, size, [&](std::string_view bytes) {
    path = scratch.hold("step-00000001.ckpt", bytes);
    file.emplace(path);
    use(CheckpointReader(path));
  });
  if (!file) return 0;
  return fuzz::expect_refusal_or_success(data, size, [&](std::string_view) {
    CheckpointWriter writer;
    for (const SafetensorsFile::Entry& e : file->entries())
      if (!e.name.empty() && e.name != "__metadata__") writer.add(e.name, file->tensor(e));
    for (const auto& [key, text] : file->metadata()) {
      nlohmann::json value;  // what is none a writer never takes
      if (key.starts_with("json.") && key.size() > 5 && read_json(text, value).empty())
        writer.add_json(key.substr(5), text);
    }
    const std::string again = scratch.path() + "/step-00000002.ckpt";
    writer.commit(again);
    use(CheckpointReader(again));
  });
}
