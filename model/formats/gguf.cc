#include "model/formats/gguf.h"

#include <algorithm>
#include <cstring>
#include <fstream>

namespace gantrain {
namespace {

struct Block {
  GgufType type;
  const char* name;
  int64_t values, bytes;  // in one block
  std::optional<PackedType> packed{};
};
constexpr Block packed(GgufType type, PackedType t) {
  const PackedBlock b = packed_block(t);
  return {type, b.name, b.values, b.bytes, t};
}
constexpr Block kBlocks[] = {{GgufType::kF32, "F32", 1, 4},
                             {GgufType::kF16, "F16", 1, 2},
                             {GgufType::kBF16, "BF16", 1, 2},
                             packed(GgufType::kQ8_0, PackedType::kQ8_0),
                             packed(GgufType::kQ4_0, PackedType::kQ4_0),
                             packed(GgufType::kQ4_1, PackedType::kQ4_1),
                             packed(GgufType::kQ4_K, PackedType::kQ4_K),
                             packed(GgufType::kQ6_K, PackedType::kQ6_K)};

const Block* find_block(uint32_t type) {
  for (const Block& b : kBlocks)
    if (static_cast<uint32_t>(b.type) == type) return &b;
  return nullptr;
}

// ggml's types that are not read here, for messages.
struct OtherType {
  uint32_t type;
  const char* name;
};
constexpr OtherType kOtherTypes[] = {
    {6, "Q5_0"},   {7, "Q5_1"},     {9, "Q8_1"},    {10, "Q2_K"},    {11, "Q3_K"},  {13, "Q5_K"},
    {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"},
    {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"}, {24, "I8"},      {25, "I16"},   {26, "I32"},
    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},  {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"}};

std::string other_type_name(uint32_t type) {
  for (const OtherType& t : kOtherTypes)
    if (t.type == type) return t.name;
  return fmt::format("with number {}", type);
}

// Reads little-endian values in order, never past the end.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file), bytes_(file.bytes()) {}
  template <typename T>
  T read(const char* what) {
    need(sizeof(T), what);
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string string(const char* what) {
    const uint64_t n = read<uint64_t>(what);
    need(n, what);
    std::string s(reinterpret_cast<const char*>(bytes_.data()) + at_, n);
    at_ += n;
    return s;
  }
  // Each element of an array needs at least `size` bytes: a wild length fails before anything is allocated.
  uint64_t count(uint64_t size, const char* what) {
    const uint64_t n = read<uint64_t>(what);
    if (n > (bytes_.size() - at_) / size)
      fail("{}: {} at byte {}: {} elements do not fit the {} bytes left; the file is truncated or damaged",
           file_.path(), what, at_ - 8, n, bytes_.size() - at_);
    return n;
  }
  void need(uint64_t n, const char* what) {
    if (n > bytes_.size() - at_)
      fail("{}: {} at byte {}: expected {} more bytes, got {}; the file is truncated or damaged",
           file_.path(), what, at_, n, bytes_.size() - at_);
  }
  uint64_t at() const { return at_; }

 private:
  const MappedFile& file_;
  std::span<const unsigned char> bytes_;
  uint64_t at_ = 0;
};

}  // namespace

const char* gguf_type_name(GgufType type) {
  const Block* b = find_block(static_cast<uint32_t>(type));
  return b ? b->name : "?";
}

bool GgufFile::has_magic(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  char magic[4] = {};
  return in.read(magic, 4) && std::memcmp(magic, "GGUF", 4) == 0;
}

GgufFile::GgufFile(const std::string& path) : file_(std::make_unique<MappedFile>(path)) {
  Cursor in(*file_);
  in.need(24, "GGUF header");
  if (std::memcmp(file_->bytes().data(), "GGUF", 4) != 0)
    fail("{}: expected the magic 'GGUF' at byte 0; the file is no GGUF or damaged", path);
  in.read<uint32_t>("magic");
  const uint32_t version = in.read<uint32_t>("version");
  if (version != 2 && version != 3)
    fail("{}: GGUF version {} is not supported; supported: 2, 3", path, version);
  const uint64_t tensor_count = in.count(24, "tensor count");
  const uint64_t kv_count = in.count(12, "metadata count");

  auto scalar = [&](uint32_t type, const char* what) -> Value {
    switch (type) {
      case 0:
        return int64_t{in.read<uint8_t>(what)};
      case 1:
        return int64_t{in.read<int8_t>(what)};
      case 2:
        return int64_t{in.read<uint16_t>(what)};
      case 3:
        return int64_t{in.read<int16_t>(what)};
      case 4:
        return int64_t{in.read<uint32_t>(what)};
      case 5:
        return int64_t{in.read<int32_t>(what)};
      case 6:
        return double{in.read<float>(what)};
      case 7:
        return in.read<uint8_t>(what) != 0;
      case 8:
        return in.string(what);
      case 10:
        return static_cast<int64_t>(in.read<uint64_t>(what));
      case 11:
        return in.read<int64_t>(what);
      case 12:
        return in.read<double>(what);
      default:
        fail("{}: {}: unknown metadata type {} at byte {}", path, what, type, in.at());
    }
  };
  constexpr uint64_t kMinimum[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  for (uint64_t i = 0; i < kv_count; ++i) {
    const std::string key = in.string("metadata key");
    if (key.empty() || key.size() > 65535) fail("{}: metadata key {} has {} bytes", path, i, key.size());
    const uint32_t type = in.read<uint32_t>(key.c_str());
    Value value;
    if (type == 9) {
      const uint32_t element = in.read<uint32_t>(key.c_str());
      if (element > 12 || element == 9)
        fail("{}: {}: arrays of type {} are not supported", path, key, element);
      const uint64_t n = in.count(kMinimum[element], key.c_str());
      if (element == 8) {
        std::vector<std::string> v;
        v.reserve(n);
        for (uint64_t j = 0; j < n; ++j) v.push_back(in.string(key.c_str()));
        value = std::move(v);
      } else if (element == 6 || element == 12) {
        std::vector<double> v;
        v.reserve(n);
        for (uint64_t j = 0; j < n; ++j) v.push_back(std::get<double>(scalar(element, key.c_str())));
        value = std::move(v);
      } else {
        std::vector<int64_t> v;
        v.reserve(n);
        for (uint64_t j = 0; j < n; ++j) {
          const Value s = scalar(element, key.c_str());
          v.push_back(std::holds_alternative<bool>(s) ? std::get<bool>(s) : std::get<int64_t>(s));
        }
        value = std::move(v);
      }
    } else {
      value = scalar(type, key.c_str());
    }
    if (!values_.emplace(key, std::move(value)).second)
      fail("{}: metadata key '{}' appears twice", path, key);
  }

  struct Place {
    uint64_t offset;
  };
  std::vector<Place> places;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    Tensor t;
    t.name = in.string("tensor name");
    const uint32_t rank = in.read<uint32_t>("tensor rank");
    if (rank < 1 || rank > 4) fail("{}: tensor '{}': expected rank 1 to 4, got {}", path, t.name, rank);
    uint64_t ne[4] = {1, 1, 1, 1}, total = 1;
    for (uint32_t d = 0; d < rank; ++d) {
      ne[d] = in.read<uint64_t>("tensor extent");
      if (ne[d] == 0 || ne[d] > (uint64_t{1} << 40) || total > (uint64_t{1} << 44) / ne[d])
        fail("{}: tensor '{}': extent {} of {} is out of range", path, t.name, d, ne[d]);
      total *= ne[d];
    }
    const uint32_t type = in.read<uint32_t>("tensor type");
    const Block* block = find_block(type);
    if (!block)
      fail(
          "{}: tensor '{}': type {} is not supported; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, "
          "Q6_K; use a file of one of these",
          path, t.name, other_type_name(type));
    if (ne[0] % static_cast<uint64_t>(block->values) != 0)
      fail("{}: tensor '{}': row of {} values is not a multiple of {}'s block of {}", path, t.name, ne[0],
           block->name, block->values);
    t.type = block->type;
    t.shape.rank = static_cast<int>(rank);
    for (uint32_t d = 0; d < rank; ++d) t.shape.extent[rank - 1 - d] = static_cast<int64_t>(ne[d]);
    t.bytes = static_cast<int64_t>(total) / block->values * block->bytes;
    places.push_back({in.read<uint64_t>("tensor offset")});
    if (!index_.emplace(t.name, tensors_.size()).second) fail("{}: tensor '{}' appears twice", path, t.name);
    tensors_.push_back(std::move(t));
  }
  int64_t alignment = 32;
  if (has("general.alignment")) alignment = get_int("general.alignment");
  if (alignment < 8 || alignment > 65536 || alignment % 8 != 0)
    fail("{}: general.alignment: expected a multiple of 8 up to 65536, got {}", path, alignment);
  const uint64_t data = (in.at() + static_cast<uint64_t>(alignment) - 1) / static_cast<uint64_t>(alignment) *
                        static_cast<uint64_t>(alignment);
  const uint64_t size = static_cast<uint64_t>(file_->size());
  std::vector<size_t> order(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    order[i] = i;
    Tensor& t = tensors_[i];
    if (places[i].offset % static_cast<uint64_t>(alignment) != 0)
      fail("{}: tensor '{}': offset {} is not aligned to {}", path, t.name, places[i].offset, alignment);
    if (data > size || places[i].offset > size - data ||
        static_cast<uint64_t>(t.bytes) > size - data - places[i].offset)
      fail("{}: tensor '{}': {} bytes at offset {} leave the file of {} bytes; the file is truncated", path,
           t.name, t.bytes, places[i].offset, size);
    t.offset = static_cast<int64_t>(data + places[i].offset);
  }
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return tensors_[a].offset < tensors_[b].offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Tensor &a = tensors_[order[i - 1]], &b = tensors_[order[i]];
    if (a.offset + a.bytes > b.offset)
      fail("{}: tensors '{}' and '{}' overlap at byte {}; the file is damaged", path, a.name, b.name,
           b.offset);
  }
}

const GgufFile::Tensor* GgufFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

ConstTensor GgufFile::direct(const Tensor& t) const {
  const unsigned char* p = file_->bytes().data() + t.offset;
  if (t.type == GgufType::kF32) return ConstTensor(p, DType::kF32, t.shape);
  if (t.type == GgufType::kF16) return ConstTensor(p, DType::kF16, t.shape);
  if (t.type == GgufType::kBF16) return ConstTensor(p, DType::kBF16, t.shape);
  return {};
}

std::optional<PackedType> GgufFile::packed_type(const Tensor& t) {
  return find_block(static_cast<uint32_t>(t.type))->packed;
}

const void* GgufFile::packed_row(const Tensor& t, int64_t row) const {
  const Block& block = *find_block(static_cast<uint32_t>(t.type));
  return file_->bytes().data() + t.offset + row * (t.shape[t.shape.rank - 1] / block.values) * block.bytes;
}

void GgufFile::read_rows(const Tensor& t, int64_t begin, int64_t n, float* out) const {
  const int64_t cols = t.shape[t.shape.rank - 1], rows = t.shape.count() / cols;
  GT_CHECK(begin >= 0 && n >= 0 && begin + n <= rows, "{}: rows [{}, {}) of {}", t.name, begin, begin + n,
           rows);
  const auto* p = static_cast<const unsigned char*>(packed_row(t, begin));
  if (const auto type = packed_type(t))
    return unpack_blocks(*type, p, n * (cols / packed_block(*type).values), out);
  if (t.type == GgufType::kF32) {
    std::memcpy(out, p, static_cast<size_t>(n * cols) * 4);
    return;
  }
  for (int64_t i = 0; i < n * cols; ++i) {
    uint16_t bits;
    std::memcpy(&bits, p + 2 * i, 2);
    if (t.type == GgufType::kF16) {
      f16 v;
      v.bits = bits;
      out[i] = static_cast<float>(v);
    } else {
      bf16 v;
      v.bits = bits;
      out[i] = static_cast<float>(v);
    }
  }
}

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> out;
  for (const auto& [k, v] : values_) out.push_back(k);
  return out;
}

template <typename T>
const T& GgufFile::get(std::string_view key, const char* expected) const {
  const auto it = values_.find(key);
  if (it == values_.end()) fail("{}: metadata key '{}' is missing; expected {}", path(), key, expected);
  const T* v = std::get_if<T>(&it->second);
  if (!v) {
    constexpr const char* kKinds[] = {"an integer", "a number", "a boolean", "a string",
                                      "strings",    "numbers",  "integers"};
    fail("{}: metadata key '{}': expected {}, got {}", path(), key, expected, kKinds[it->second.index()]);
  }
  return *v;
}

std::string GgufFile::get_string(std::string_view key) const { return get<std::string>(key, "a string"); }
int64_t GgufFile::get_int(std::string_view key) const { return get<int64_t>(key, "an integer"); }
double GgufFile::get_float(std::string_view key) const { return get<double>(key, "a number"); }
bool GgufFile::get_bool(std::string_view key) const { return get<bool>(key, "a boolean"); }
const std::vector<std::string>& GgufFile::get_strings(std::string_view key) const {
  return get<std::vector<std::string>>(key, "strings");
}
const std::vector<double>& GgufFile::get_floats(std::string_view key) const {
  return get<std::vector<double>>(key, "numbers");
}
const std::vector<int64_t>& GgufFile::get_ints(std::string_view key) const {
  return get<std::vector<int64_t>>(key, "integers");
}

}  // namespace gantrain
