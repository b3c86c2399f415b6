#include "model/packing.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

namespace gantrain {
namespace {

class QuantisedWeights final : public Weights {
 public:
  QuantisedWeights(std::shared_ptr<const Weights> base, PackedType type)
      : base_(std::move(base)), type_(type) {}

  const LlamaConfig& config() const override { return base_->config(); }
  const std::string& path() const override { return base_->path(); }
  std::string format() const override { return base_->format(); }
  const std::vector<TensorEntry>& tensors() const override { return base_->tensors(); }
  bool has(std::string_view name) const override { return base_->has(name); }
  std::vector<std::string> notes() const override { return base_->notes(); }
  ConstTensor direct(std::string_view name) const override {
    return quantises(name) ? ConstTensor{} : base_->direct(name);
  }

  void read_rows(std::string_view name, int64_t begin, int64_t n, float* out) const override {
    const TensorEntry* entry = quantises(name);
    if (!entry) return base_->read_rows(name, begin, n, out);
    const int64_t cols = entry->shape[1], blocks = cols / packed_block(type_).values;
    const Nf4Quantised* scales = scales_of(*entry);
    std::vector<uint8_t> packed(static_cast<size_t>(packed_row_bytes(type_, cols)));
    for (int64_t i = begin; i < begin + n; ++i, out += cols) {
      pack_row(*entry, i, packed.data());
      if (scales)
        unpack_nf4(packed.data(),
                   {.codes = scales->codes.data() + i * blocks,
                    .steps = scales->steps.data(),
                    .mean = scales->mean,
                    .first = i * blocks},
                   blocks, out);
      else
        unpack_blocks(type_, packed.data(), blocks, out);
    }
  }

  std::optional<PackedRows> packed(std::string_view name) const override {
    const TensorEntry* entry = quantises(name);
    if (!entry) return base_->packed(name);
    PackedRows rows{type_, 0, entry->shape[0], [this, entry](int64_t i) {
                      thread_local std::vector<uint8_t> row;
                      row.resize(static_cast<size_t>(packed_row_bytes(type_, entry->shape[1])));
                      pack_row(*entry, i, row.data());
                      return static_cast<const void*>(row.data());
                    }};
    if (const Nf4Quantised* scales = scales_of(*entry)) rows.scales = [scales] { return *scales; };
    return rows;
  }

 private:
  // The tensor, if it is one of those that are quantised here.
  const TensorEntry* quantises(std::string_view name) const {
    if (type_ == PackedType::kNf4 && (name == "model.embed_tokens.weight" || name == "lm_head.weight"))
      return nullptr;
    for (const TensorEntry& entry : base_->tensors())
      if (entry.name == name)
        return entry.shape.rank == 2 && entry.shape[1] % packed_block(type_).values == 0 &&
                       !base_->packed(name)
                   ? &entry
                   : nullptr;
    return nullptr;
  }
  // A row as it is in the file. What is not finite could not be told any more once it is packed.
  const float* read_row(const TensorEntry& entry, int64_t row) const {
    thread_local std::vector<float> values;
    const int64_t cols = entry.shape[1];
    values.resize(static_cast<size_t>(cols));
    base_->read_rows(entry.name, row, 1, values.data());
    double squares = 0;
    for (const float v : values) squares += static_cast<double>(v) * static_cast<double>(v);
    if (!std::isfinite(squares))
      fail(
          "{}: tensor {} holds a value that is not finite in row {}; the file is damaged or was saved after "
          "a "
          "diverged run",
          path(), entry.name, row);
    return values.data();
  }
  void pack_row(const TensorEntry& entry, int64_t row, uint8_t* to) const {
    const float* values = read_row(entry, row);
    const int64_t blocks = entry.shape[1] / packed_block(type_).values;
    if (type_ != PackedType::kNf4) return pack_blocks(type_, values, blocks, to);
    thread_local std::vector<float> scales;
    scales.resize(static_cast<size_t>(blocks));
    pack_nf4(values, blocks, to, scales.data());
  }
  // NF4: the scales of the whole tensor, read for them once; null for other types.
  const Nf4Quantised* scales_of(const TensorEntry& entry) const {
    if (type_ != PackedType::kNf4) return nullptr;
    const std::lock_guard lock(mutex_);
    const auto found = scales_.find(entry.name);
    if (found != scales_.end()) return &found->second;
    constexpr int64_t kValues = packed_block(PackedType::kNf4).values;
    std::vector<float> scales;
    scales.reserve(static_cast<size_t>(entry.shape.count() / kValues));
    for (int64_t row = 0; row < entry.shape[0]; ++row) {
      const float* values = read_row(entry, row);
      for (int64_t at = 0; at < entry.shape[1]; at += kValues) {
        float most = 0.0f;
        for (int64_t i = at; i < at + kValues; ++i) most = std::max(most, std::abs(values[i]));
        scales.push_back(most);
      }
    }
    return &scales_.emplace(entry.name, quantise_nf4_scales(scales)).first->second;
  }

  std::shared_ptr<const Weights> base_;
  PackedType type_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, Nf4Quantised> scales_;
};

}  // namespace

std::shared_ptr<const Weights> with_packing(std::shared_ptr<const Weights> weights, BasePacking packing) {
  const auto quantised = [&](PackedType type) {
    return std::make_shared<const QuantisedWeights>(std::move(weights), type);
  };
  switch (packing) {
    case BasePacking::kAuto:
      GT_CHECK(false, "auto is no packing of weights");
    case BasePacking::kNone:
    case BasePacking::kFile:
      return weights;
    case BasePacking::kNf4:
      return quantised(PackedType::kNf4);
    case BasePacking::kQ8_0:
      return quantised(PackedType::kQ8_0);
    case BasePacking::kQ4_0:
      return quantised(PackedType::kQ4_0);
    case BasePacking::kQ4_1:
      return quantised(PackedType::kQ4_1);
  }
  return weights;
}

}  // namespace gantrain
