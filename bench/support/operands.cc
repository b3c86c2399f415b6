#include <fstream>

#include "bench/support/harness.h"
#include "core/rng.h"

namespace gantrain::bench {
namespace {

constexpr size_t kDraws = 65537;  // a prime: no row length divides it

const std::vector<float>& draws() {
  static const std::vector<float> values = [] {
    std::vector<float> v(kDraws);
    const Philox rng{derive_key(20261128, 1)};
    for (size_t i = 0; i < kDraws; ++i) {
      const auto words = rng(0, i);
      v[i] = normal_pair(words[0], words[1])[0];
    }
    return v;
  }();
  return values;
}

void fill(uint64_t from, int64_t count, float scale, float* out) {
  const std::vector<float>& v = draws();
  size_t at = static_cast<size_t>(from % kDraws);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = scale * v[at];
    at = at + 1 == kDraws ? 0 : at + 1;
  }
}

}  // namespace

Tensor Memory::keep(OwnedTensor t) {
  tensors_.push_back(std::move(t));
  return tensors_.back().view();
}

Tensor Memory::normal(Shape shape, DType dtype, float scale) {
  std::vector<float> values(static_cast<size_t>(shape.count()));
  fill(next_, shape.count(), scale, values.data());
  next_ += static_cast<uint64_t>(shape.count());
  OwnedTensor t(device_, dtype, shape);
  if (dtype == DType::kF32) {
    device_.copy_in(t, values.data());
  } else {
    std::vector<uint16_t> half(values.size());
    for (size_t i = 0; i < half.size(); ++i)
      half[i] = dtype == DType::kBF16 ? bf16(values[i]).bits : f16(values[i]).bits;
    device_.copy_in(t, half.data());
  }
  return keep(std::move(t));
}

Tensor Memory::positive(Shape shape) {
  std::vector<float> values(static_cast<size_t>(shape.count()));
  const Philox rng{derive_key(20261128, 2, next_++)};
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.5f + uniform_open(rng(0, i)[0]);
  OwnedTensor t(device_, DType::kF32, shape);
  device_.copy_in(t, values.data());
  return keep(std::move(t));
}

Tensor Memory::ints(Shape shape, int32_t low, int32_t high) {
  std::vector<int32_t> values(static_cast<size_t>(shape.count()));
  const Philox rng{derive_key(20261128, 3, next_++)};
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = low + static_cast<int32_t>(uint64_t{rng(0, i)[0]} * static_cast<uint64_t>(high - low) >> 32);
  return ints(values).view(shape);
}

Tensor Memory::ints(const std::vector<int32_t>& values) {
  OwnedTensor t(device_, DType::kI32, {static_cast<int64_t>(values.size())});
  device_.copy_in(t, values.data());
  return keep(std::move(t));
}

Tensor Memory::longs(Shape shape) {
  std::vector<int64_t> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<int64_t>(derive_key(20261128, 4, next_++) >> 1);
  OwnedTensor t(device_, DType::kI64, shape);
  device_.copy_in(t, values.data());
  return keep(std::move(t));
}

Tensor Memory::floats(Shape shape, float value) {
  const std::vector<float> values(static_cast<size_t>(shape.count()), value);
  OwnedTensor t(device_, DType::kF32, shape);
  device_.copy_in(t, values.data());
  return keep(std::move(t));
}

const FrozenMatrix* Memory::frozen(int64_t rows, int64_t cols, DType dtype) {
  MatrixSource source;
  source.rows = rows;
  source.cols = cols;
  const uint64_t base = next_;
  next_ += static_cast<uint64_t>(rows * cols);
  const float scale = 1.0f / std::sqrt(static_cast<float>(cols));  // products of the size of their inputs
  source.read = [base, cols, scale](int64_t begin, int64_t n, float* out) {
    fill(base + static_cast<uint64_t>(begin * cols), n * cols, scale, out);
  };
  matrices_.push_back(device_.freeze(source, dtype));
  return matrices_.back().get();
}

Tensor Memory::scratch(int64_t bytes) {
  return bytes == 0 ? Tensor() : keep(OwnedTensor(device_, DType::kU8, {bytes}));
}

const AttentionPlan* Memory::plan(AttentionPlan plan) {
  plans_.push_back(std::move(plan));
  return &plans_.back();
}

int64_t peak_resident_bytes() {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  return 0;
}

void reset_peak_resident() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace gantrain::bench
