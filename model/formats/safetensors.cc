#include "model/formats/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "model/formats/json_text.h"

namespace gantrain {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // the reference implementation's own limit

struct TypeName {
  const char* name;
  DType dtype;
};
constexpr TypeName kTypes[] = {{"F32", DType::kF32}, {"F16", DType::kF16}, {"BF16", DType::kBF16},
                               {"I32", DType::kI32}, {"I64", DType::kI64}, {"U8", DType::kU8}};

const char* type_name(DType t) {
  for (const TypeName& n : kTypes)
    if (n.dtype == t) return n.name;
  return "?";
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(std::make_unique<MappedFile>(path)) {
  const auto bytes = file_->bytes();
  if (bytes.size() < 8)
    fail("{}: expected at least 8 bytes of safetensors header, got {}; the file is truncated: fetch it again",
         path, bytes.size());
  uint64_t n = 0;
  std::memcpy(&n, bytes.data(), 8);
  if (n < 2 || n > kMaxHeader || n > bytes.size() - 8)
    fail(
        "{}: header length {} at offset 0: expected 2 to {} (the file has {} bytes); the file is truncated "
        "or not safetensors: fetch it again",
        path, n, std::min<uint64_t>(kMaxHeader, bytes.size() - 8), bytes.size());
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, n);
  if (text[0] != '{')
    fail("{}: byte 8: expected '{{' of the JSON header, got byte {}; not safetensors", path,
         static_cast<unsigned char>(text[0]));
  const json header = parse_json(text, path + ": header");
  const uint64_t data_begin = 8 + n, data_size = bytes.size() - data_begin;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) fail("{}: __metadata__ is not an object", path);
      for (const auto& [k, v] : value.items()) {
        if (!v.is_string()) fail("{}: __metadata__.{}: expected a string, got {}", path, k, v.type_name());
        metadata_[k] = v.get<std::string>();
      }
      continue;
    }
    if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") ||
        !value.contains("data_offsets") || !value.at("dtype").is_string() || !value.at("shape").is_array() ||
        !value.at("data_offsets").is_array())
      fail("{}: tensor '{}': expected an object with dtype, shape and data_offsets", path, name);
    Entry e;
    e.name = name;
    const std::string dtype = value.at("dtype").get<std::string>();
    const TypeName* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                        [&](const TypeName& t) { return dtype == t.name; });
    if (type == std::end(kTypes))
      fail("{}: tensor '{}': type {} is not supported; supported: F32, F16, BF16, I32, I64, U8", path, name,
           dtype);
    e.dtype = type->dtype;
    const json& shape = value.at("shape");
    if (shape.size() > 4) fail("{}: tensor '{}': rank {} is more than 4", path, name, shape.size());
    uint64_t count = 1;
    for (const json& d : shape) {
      if (!d.is_number_unsigned())
        fail("{}: tensor '{}': shape {} holds something that is not a size", path, name,
             shape.dump().substr(0, 80));
      const uint64_t extent = d.get<uint64_t>();
      if (extent != 0 && count > (uint64_t{1} << 48) / extent)
        fail("{}: tensor '{}': shape {} overflows", path, name, shape.dump());
      count *= extent;
      e.shape.extent[static_cast<size_t>(e.shape.rank++)] = static_cast<int64_t>(extent);
    }
    const json& offsets = value.at("data_offsets");
    if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned())
      fail("{}: tensor '{}': data_offsets {}: expected [begin, end]", path, name,
           offsets.dump().substr(0, 80));
    const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
    if (begin > end || end > data_size)
      fail(
          "{}: tensor '{}': data_offsets [{}, {}] leave the data of {} bytes; the file is truncated or "
          "damaged: fetch it again",
          path, name, begin, end, data_size);
    const uint64_t expected = count * static_cast<uint64_t>(dtype_size(e.dtype));
    if (end - begin != expected)
      fail("{}: tensor '{}': {} of shape {} needs {} bytes, data_offsets give {}", path, name, dtype,
           shape.dump(), expected, end - begin);
    e.offset = static_cast<int64_t>(data_begin + begin);
    e.bytes = static_cast<int64_t>(expected);
    entries_.push_back(std::move(e));
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.bytes < b.bytes;
  });
  int64_t at = static_cast<int64_t>(data_begin);
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& e = entries_[i];
    if (e.offset != at)
      fail("{}: tensor '{}' starts at byte {} of the data, expected {}: tensors {}", path, e.name,
           e.offset - static_cast<int64_t>(data_begin), at - static_cast<int64_t>(data_begin),
           e.offset < at ? "overlap" : "leave a hole");
    at += e.bytes;
    index_.emplace(e.name, i);
  }
  if (at != file_->size())
    fail("{}: {} bytes after the last tensor belong to nothing; the file is damaged", path,
         file_->size() - at);
}

const SafetensorsFile::Entry* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &entries_[it->second];
}

ConstTensor SafetensorsFile::tensor(const Entry& e) const {
  return ConstTensor(file_->bytes().data() + e.offset, e.dtype, e.shape);
}

ConstTensor SafetensorsFile::tensor(std::string_view name) const {
  const Entry* e = find(name);
  if (!e) fail("{}: no tensor '{}'", path(), name);
  return tensor(*e);
}

void write_file_atomically(const std::string& path,
                           const std::vector<std::pair<const void*, size_t>>& pieces) {
  const std::string temporary = fmt::format("{}.tmp.{}", path, ::getpid());
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) fail("{}: cannot create: {}", temporary, std::strerror(errno));
  auto give_up = [&](const char* what) {
    const int error = errno;
    ::close(fd);
    ::unlink(temporary.c_str());
    fail("{}: cannot {}: {}; nothing was left behind", path, what, std::strerror(error));
  };
  for (const auto& [data, size] : pieces) {
    const char* p = static_cast<const char*>(data);
    for (size_t done = 0; done < size;) {
      const ssize_t n = ::write(fd, p + done, std::min<size_t>(size - done, 1u << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) give_up("write");
      done += static_cast<size_t>(n);
    }
  }
  if (::fsync(fd) != 0) give_up("sync");
  // A file system over a network may report what it could not write only now; the descriptor is gone either
  // way.
  if (::close(fd) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    fail("{}: cannot close: {}; nothing was left behind", path, std::strerror(error));
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    fail("{}: cannot rename {} to it: {}", path, temporary, std::strerror(error));
  }
  const size_t slash = path.rfind('/');
  const int folder = ::open(slash == std::string::npos ? "." : path.substr(0, slash + 1).c_str(),
                            O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0)
    fail("{}: written, but its folder cannot be opened to sync it: {}", path, std::strerror(errno));
  const int synced = ::fsync(folder), error = errno;
  ::close(folder);
  // EINVAL: the file system has no such thing as syncing a folder.
  if (synced != 0 && error != EINVAL)
    fail("{}: written, but its folder cannot be synced: {}; after a power cut it may be missing", path,
         std::strerror(error));
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  // Larger elements first keeps every tensor aligned to its type.
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& t : tensors) order.push_back(&t);
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return dtype_size(a->tensor.dtype()) > dtype_size(b->tensor.dtype());
  });
  int64_t offset = 0;
  for (const NamedTensor* t : order) {
    GT_CHECK(!header.contains(t->name), "{}: tensor '{}' is given twice", path, t->name);
    json shape = json::array();
    for (int i = 0; i < t->tensor.rank(); ++i) shape.push_back(t->tensor.dim(i));
    header[t->name] = {{"dtype", type_name(t->tensor.dtype())},
                       {"shape", shape},
                       {"data_offsets", {offset, offset + t->tensor.bytes()}}};
    offset += t->tensor.bytes();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t n = text.size();
  std::vector<std::pair<const void*, size_t>> pieces{{&n, 8}, {text.data(), text.size()}};
  for (const NamedTensor* t : order)
    pieces.emplace_back(t->tensor.raw(), static_cast<size_t>(t->tensor.bytes()));
  write_file_atomically(path, pieces);
}

}  // namespace gantrain
