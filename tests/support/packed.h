// Matrices that stay packed, and the same ones expanded, for the tests of what reads them.
#pragma once

#include <memory>
#include <vector>

#include "core/device.h"
#include "core/packed.h"
#include "tests/support/fill.h"

namespace gantrain::test {

inline constexpr PackedType kPackedTypes[] = {PackedType::kQ8_0, PackedType::kQ4_0, PackedType::kQ4_1,
                                              PackedType::kQ4_K, PackedType::kQ6_K, PackedType::kNf4};

// Random blocks whose values are some 0.05 in size: every bit of every field takes part but for the scales',
// which are made small and finite.
inline std::vector<uint8_t> random_small_blocks(PackedType type, int64_t blocks, uint64_t seed) {
  const int64_t size = packed_block(type).bytes;
  std::vector<uint8_t> bytes;
  for (const int32_t b : random_ints(blocks * size, seed, 0, 255)) bytes.push_back(static_cast<uint8_t>(b));
  const auto half = [&](int64_t at, float value) {
    const f16 h(value);
    bytes[static_cast<size_t>(at)] = static_cast<uint8_t>(h.bits & 255);
    bytes[static_cast<size_t>(at) + 1] = static_cast<uint8_t>(h.bits >> 8);
  };
  const auto scale = random_uniform(2 * blocks, seed + 1, 0.5f, 1.5f);
  for (int64_t b = 0; b < blocks; ++b) {
    const float s = scale[static_cast<size_t>(2 * b)] * 0.05f,
                m = scale[static_cast<size_t>(2 * b + 1)] * 0.05f;
    const int64_t at = b * size;
    if (type == PackedType::kQ8_0) half(at, s / 127);
    if (type == PackedType::kQ4_0) half(at, s / 8);
    if (type == PackedType::kQ4_1) half(at, s / 8), half(at + 2, -m);
    if (type == PackedType::kQ4_K) half(at, s / 512), half(at + 2, m / 64);
    if (type == PackedType::kQ6_K) half(at + 208, s / 2048);
  }
  return bytes;
}

// A matrix of `rows` by `cols` values in parts of these types, top to bottom, of about equal height.
class PackedMatrix {
 public:
  PackedMatrix(int64_t rows, int64_t cols, const std::vector<PackedType>& types, uint64_t seed,
               bool tall = false) {
    source_.rows = rows;
    source_.cols = cols;
    source_.tall = tall;
    values_.resize(static_cast<size_t>(rows * cols));
    parts_.resize(types.size());
    const auto count = static_cast<int64_t>(types.size());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = rows * i / count, end = rows * (i + 1) / count;
      const PackedType type = types[static_cast<size_t>(i)];
      const int64_t row = packed_row_bytes(type, cols), row_blocks = cols / packed_block(type).values;
      Part& part = parts_[static_cast<size_t>(i)];
      part.bytes =
          random_small_blocks(type, (end - begin) * row_blocks, seed + 10 * static_cast<uint64_t>(i));
      float* to = values_.data() + begin * cols;
      PackedRows packed{type, begin, end - begin, [&part, row](int64_t r) {
                          return static_cast<const void*>(part.bytes.data() + r * row);
                        }};
      if (type == PackedType::kNf4) {
        part.scales = quantise_nf4_scales(random_uniform((end - begin) * row_blocks, seed + 5, 0.02f, 0.2f));
        packed.scales = [&part] { return part.scales; };
        unpack_nf4(
            part.bytes.data(),
            {.codes = part.scales.codes.data(), .steps = part.scales.steps.data(), .mean = part.scales.mean},
            (end - begin) * row_blocks, to);
      } else {
        unpack_blocks(type, part.bytes.data(), (end - begin) * row_blocks, to);
      }
      source_.packed.push_back(std::move(packed));
    }
    source_.read = [this, cols](int64_t begin, int64_t n, float* out) {
      std::copy_n(values_.begin() + begin * cols, n * cols, out);
    };
  }
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;

  const std::vector<float>& values() const { return values_; }  // in f32
  std::unique_ptr<const FrozenMatrix> packed(Device& device, DType dtype) const {
    MatrixSource source = source_;
    source.keep_packed = true;
    return device.freeze(source, dtype);
  }
  std::unique_ptr<const FrozenMatrix> expanded(Device& device, DType dtype) const {
    MatrixSource source = source_;
    source.packed.clear();
    return device.freeze(source, dtype);
  }
  MatrixSource source() const { return source_; }

 private:
  struct Part {
    std::vector<uint8_t> bytes;
    Nf4Quantised scales;
  };
  MatrixSource source_;
  std::vector<float> values_;
  std::vector<Part> parts_;
};

}  // namespace gantrain::test
