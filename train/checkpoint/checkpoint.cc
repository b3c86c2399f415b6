#include "train/checkpoint/checkpoint.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "model/formats/json_text.h"
#include "train/crc32c.h"

namespace gantrain {
namespace {

constexpr const char* kFormat = "gantrain-checkpoint";
constexpr const char* kVersion = "1";
constexpr const char* kTextPrefix = "json.";

uint32_t checksum(const std::string& name, ConstTensor tensor) {
  // The name, type and shape too: two tensors of one size that changed places are damage.
  const std::string head =
      fmt::format("{} {} {}", name, dtype_name(tensor.dtype()), to_string(tensor.shape()));
  return crc32c(tensor.raw(), static_cast<size_t>(tensor.bytes()), crc32c(head));
}

uint32_t checksum(const std::string& name, const std::string& text) { return crc32c(text, crc32c(name)); }

}  // namespace

void CheckpointWriter::check_name(const std::string& name) const {
  GT_CHECK(!name.empty() && name != "__metadata__", "checkpoint: bad name '{}'", name);
  for (const NamedTensor& other : tensors_)
    GT_CHECK(other.name != name, "checkpoint: tensor '{}' is added twice", name);
}

void CheckpointWriter::add(const std::string& name, ConstTensor tensor) {
  check_name(name);
  GT_CHECK(tensor.device() == DeviceKind::kCpu, "checkpoint: tensor '{}' is not in host memory", name);
  GT_CHECK(tensor || tensor.count() == 0, "checkpoint: tensor '{}' is an empty view", name);
  tensors_.push_back({name, tensor});
}

template <typename T>
void CheckpointWriter::copy_values(const std::string& name, std::span<const T> values) {
  auto copy = std::make_unique<unsigned char[]>(values.size_bytes() + 1);  // never a null view
  if (!values.empty()) std::memcpy(copy.get(), values.data(), values.size_bytes());
  add(name, ConstTensor(copy.get(), dtype_of<T>::value, {static_cast<int64_t>(values.size())}));
  copies_.push_back(std::move(copy));
}
void CheckpointWriter::add_values(const std::string& name, std::span<const float> v) { copy_values(name, v); }
void CheckpointWriter::add_values(const std::string& name, std::span<const int32_t> v) {
  copy_values(name, v);
}
void CheckpointWriter::add_values(const std::string& name, std::span<const int64_t> v) {
  copy_values(name, v);
}
void CheckpointWriter::add_values(const std::string& name, std::span<const uint8_t> v) {
  copy_values(name, v);
}

void CheckpointWriter::add_copy(const std::string& name, Shape shape, std::span<const float> values) {
  GT_CHECK(shape.count() == static_cast<int64_t>(values.size()), "checkpoint: {} values of shape {}",
           values.size(), to_string(shape));
  auto copy = std::make_unique<unsigned char[]>(values.size_bytes() + 1);
  if (!values.empty()) std::memcpy(copy.get(), values.data(), values.size_bytes());
  add(name, ConstTensor(copy.get(), DType::kF32, shape));
  copies_.push_back(std::move(copy));
}

void CheckpointWriter::add_json(const std::string& name, const std::string& text) {
  GT_CHECK(!name.empty(), "checkpoint: a JSON text without a name");
  GT_CHECK(nlohmann::json::accept(text), "checkpoint: '{}' is not JSON", name);
  GT_CHECK(texts_.emplace(name, text).second, "checkpoint: JSON '{}' is added twice", name);
}

void CheckpointWriter::commit(const std::string& path) const {
  nlohmann::json sums = nlohmann::json::object();
  for (const NamedTensor& t : tensors_) sums["tensor"][t.name] = checksum(t.name, t.tensor);
  for (const auto& [name, text] : texts_) sums["json"][name] = checksum(name, text);
  const std::string sums_text = sums.dump();
  std::map<std::string, std::string> metadata = {{"format", kFormat},
                                                 {"version", kVersion},
                                                 {"checksums", sums_text},
                                                 {"checksum", fmt::format("{:08x}", crc32c(sums_text))}};
  for (const auto& [name, text] : texts_) metadata[kTextPrefix + name] = text;
  write_safetensors(path, tensors_, metadata);
}

CheckpointReader::CheckpointReader(const std::string& path) : file_(path) {
  const auto& metadata = file_.metadata();
  const auto get = [&](const char* key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  if (get("format") != kFormat)
    fail("{}: expected a gantrain checkpoint, got a safetensors file of format '{}'", path, get("format"));
  if (get("version") != kVersion)
    fail("{}: checkpoint version {}, this program reads version {}; use the program that wrote it", path,
         get("version"), kVersion);
  const auto damaged = [&](const std::string& what) {
    fail("{}: {} is damaged (checksum); use another checkpoint of the run", path, what);
  };
  const std::string sums_text = get("checksums");
  if (get("checksum") != fmt::format("{:08x}", crc32c(sums_text))) damaged("the list of checksums");
  nlohmann::json sums;
  if (!read_json(sums_text, sums).empty()) damaged("the list of checksums");
  const auto sums_of = [&](const char* kind) {
    const auto found = sums.is_object() ? sums.find(kind) : sums.end();
    return found != sums.end() && found->is_object() ? *found : nlohmann::json::object();
  };
  const auto tensor_sums = sums_of("tensor"), text_sums = sums_of("json");
  for (const auto& entry : file_.entries()) {
    const auto found = tensor_sums.find(entry.name);
    if (found == tensor_sums.end() || *found != checksum(entry.name, file_.tensor(entry)))
      damaged(fmt::format("tensor '{}'", entry.name));
  }
  if (tensor_sums.size() != file_.entries().size()) damaged("the list of tensors");
  for (const auto& [key, text] : metadata)
    if (key.starts_with(kTextPrefix)) texts_[key.substr(std::strlen(kTextPrefix))] = text;
  for (const auto& [name, text] : texts_) {
    const auto found = text_sums.find(name);
    if (found == text_sums.end() || *found != checksum(name, text)) damaged(fmt::format("text '{}'", name));
    parse_json(text, fmt::format("{}: text '{}'", path, name));
  }
  if (text_sums.size() != texts_.size()) damaged("the list of texts");
}

std::vector<std::string> CheckpointReader::tensor_names() const {
  std::vector<std::string> names;
  for (const auto& entry : file_.entries()) names.push_back(entry.name);
  return names;
}

std::vector<std::string> CheckpointReader::json_names() const {
  std::vector<std::string> names;
  for (const auto& [name, text] : texts_) names.push_back(name);
  return names;
}

ConstTensor CheckpointReader::tensor(const std::string& name) const { return file_.tensor(name); }

void CheckpointReader::read_into(const std::string& name, Tensor into) const {
  const ConstTensor from = tensor(name);
  GT_CHECK(into.device() == DeviceKind::kCpu, "checkpoint: '{}' is to be read into device memory", name);
  if (from.dtype() != into.dtype() || from.shape() != into.shape())
    fail("{}: tensor '{}': expected {} {}, got {} {}; was it written with another configuration?", path(),
         name, dtype_name(into.dtype()), to_string(into.shape()), dtype_name(from.dtype()),
         to_string(from.shape()));
  if (from.bytes() > 0) std::memcpy(into.raw(), from.raw(), static_cast<size_t>(from.bytes()));
}

template <typename T>
std::vector<T> CheckpointReader::values(const std::string& name) const {
  const ConstTensor from = tensor(name);
  if (from.dtype() != dtype_of<T>::value)
    fail("{}: tensor '{}': expected {}, got {}", path(), name, dtype_name(dtype_of<T>::value),
         dtype_name(from.dtype()));
  std::vector<T> out(static_cast<size_t>(from.count()));
  if (!out.empty()) std::memcpy(out.data(), from.raw(), static_cast<size_t>(from.bytes()));
  return out;
}
std::vector<float> CheckpointReader::floats(const std::string& name) const { return values<float>(name); }
std::vector<int32_t> CheckpointReader::ints(const std::string& name) const { return values<int32_t>(name); }
std::vector<int64_t> CheckpointReader::longs(const std::string& name) const { return values<int64_t>(name); }
std::vector<uint8_t> CheckpointReader::bytes(const std::string& name) const { return values<uint8_t>(name); }

const std::string& CheckpointReader::json(const std::string& name) const {
  const auto found = texts_.find(name);
  if (found == texts_.end()) fail("{}: no text '{}' in the checkpoint", path(), name);
  return found->second;
}

}  // namespace gantrain
