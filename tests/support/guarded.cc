#include "tests/support/guarded.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace gantrain::test {
namespace {

constexpr int64_t kGuardBytes = 256;  // keeps the 64-byte alignment that every tensor has
// Read as f32 or bf16 it is -4e37: finite, and nothing that a sum could hide.
constexpr std::byte kCanary{0xfd};

}  // namespace

struct GuardedMemory::Piece {
  void* memory = nullptr;
  int64_t total = 0, front = 0;  // bytes, and of them in front of the tensor
  Tensor view;
  std::vector<std::byte> before;  // of inputs only
};

GuardedMemory::GuardedMemory(Device& device, int64_t shift) : device_(device), shift_(shift) {}

GuardedMemory::~GuardedMemory() {
  verify();
  for (auto& piece : pieces_) device_.release(piece->memory, piece->total);
}

Tensor GuardedMemory::add(const void* values, DType dtype, Shape shape, bool is_input, int64_t shift) {
  const int64_t bytes = shape.count() * dtype_size(dtype);
  auto piece = std::make_unique<Piece>();
  // The rear guard starts right behind the last element: an overrun of one byte is seen.
  const int64_t front = piece->front = kGuardBytes + shift * dtype_size(dtype);
  piece->total = front + bytes + kGuardBytes;
  piece->memory = device_.allocate(piece->total);
  std::vector<std::byte> image(static_cast<size_t>(piece->total), kCanary);
  std::memcpy(image.data() + front, values, static_cast<size_t>(bytes));
  device_.copy_in(Tensor(piece->memory, DType::kU8, {piece->total}, device_.kind()), image.data());
  piece->view = Tensor(static_cast<std::byte*>(piece->memory) + front, dtype, shape, device_.kind());
  if (is_input) piece->before.assign(image.begin() + front, image.begin() + front + bytes);
  pieces_.push_back(std::move(piece));
  return pieces_.back()->view;
}

ConstTensor GuardedMemory::input(const std::vector<float>& values, Shape shape, DType dtype) {
  GT_CHECK(static_cast<int64_t>(values.size()) == shape.count(), "{} values for {}", values.size(),
           to_string(shape));
  if (dtype == DType::kF32) return add(values.data(), dtype, shape, true, shift_);
  GT_CHECK(dtype == DType::kBF16 || dtype == DType::kF16, "test inputs are f32, bf16 or f16, not {}",
           dtype_name(dtype));
  std::vector<uint16_t> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(),
                 [&](float x) { return dtype == DType::kBF16 ? bf16::from_float(x) : f16::from_float(x); });
  return add(bits.data(), dtype, shape, true, shift_);
}

ConstTensor GuardedMemory::input(const std::vector<int32_t>& values, Shape shape) {
  GT_CHECK(static_cast<int64_t>(values.size()) == shape.count(), "{} values for {}", values.size(),
           to_string(shape));
  return add(values.data(), DType::kI32, shape, true, shift_);
}

ConstTensor GuardedMemory::input(const std::vector<int64_t>& values, Shape shape) {
  GT_CHECK(static_cast<int64_t>(values.size()) == shape.count(), "{} values for {}", values.size(),
           to_string(shape));
  return add(values.data(), DType::kI64, shape, true, shift_);
}

Tensor GuardedMemory::output(Shape shape, DType dtype) {
  const size_t count = static_cast<size_t>(shape.count());
  if (dtype == DType::kF32) {
    const std::vector<float> nan(count, std::numeric_limits<float>::quiet_NaN());
    return add(nan.data(), dtype, shape, false, shift_);
  }
  if (dtype == DType::kBF16 || dtype == DType::kF16) {
    const std::vector<uint16_t> nan(count, dtype == DType::kBF16 ? 0x7fc1 : 0x7e01);
    return add(nan.data(), dtype, shape, false, shift_);
  }
  if (dtype == DType::kI32) {
    const std::vector<int32_t> lowest(count, std::numeric_limits<int32_t>::min());
    return add(lowest.data(), dtype, shape, false, shift_);
  }
  GT_CHECK(false, "no test output of type {}", dtype_name(dtype));
  return {};
}

Tensor GuardedMemory::accumulator(const std::vector<float>& values, Shape shape) {
  GT_CHECK(static_cast<int64_t>(values.size()) == shape.count(), "{} values for {}", values.size(),
           to_string(shape));
  return add(values.data(), DType::kF32, shape, false, shift_);
}

Tensor GuardedMemory::scratch(int64_t bytes) {
  if (bytes == 0) return {};
  const std::vector<std::byte> image(static_cast<size_t>(bytes), std::byte{0xff});
  return add(image.data(), DType::kU8, {bytes}, false, 0);
}

std::vector<float> GuardedMemory::read(ConstTensor tensor) {
  device_.synchronize();
  std::vector<float> out(static_cast<size_t>(tensor.count()));
  if (tensor.dtype() == DType::kF32) {
    device_.copy_out(out.data(), tensor);
    return out;
  }
  const DType t = tensor.dtype();
  GT_CHECK(t == DType::kBF16 || t == DType::kF16, "cannot read {} as floats", dtype_name(t));
  std::vector<uint16_t> bits(out.size());
  device_.copy_out(bits.data(), tensor);
  std::transform(bits.begin(), bits.end(), out.begin(), [&](uint16_t b) {
    if (t == DType::kBF16) return static_cast<float>(std::bit_cast<bf16>(b));
    return static_cast<float>(std::bit_cast<f16>(b));
  });
  return out;
}

std::vector<int32_t> GuardedMemory::read_ints(ConstTensor tensor) {
  GT_CHECK(tensor.dtype() == DType::kI32, "cannot read {} as i32", dtype_name(tensor.dtype()));
  device_.synchronize();
  std::vector<int32_t> out(static_cast<size_t>(tensor.count()));
  device_.copy_out(out.data(), tensor);
  return out;
}

bool GuardedMemory::verify() {
  device_.synchronize();
  bool intact = true;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    Piece& piece = *pieces_[i];
    std::vector<std::byte> image(static_cast<size_t>(piece.total));
    device_.copy_out(image.data(), ConstTensor(piece.memory, DType::kU8, {piece.total}, device_.kind()));
    const auto is_canary = [](std::byte b) { return b == kCanary; };
    const std::string name = fmt::format("tensor {} of this test, {} {}", i, dtype_name(piece.view.dtype()),
                                         to_string(piece.view.shape()));
    if (!std::all_of(image.begin(), image.begin() + piece.front, is_canary)) {
      ADD_FAILURE() << name << ": written to in front of its first element";
      intact = false;
    }
    if (!std::all_of(image.end() - kGuardBytes, image.end(), is_canary)) {
      ADD_FAILURE() << name << ": written to behind its last element";
      intact = false;
    }
    if (!piece.before.empty() &&
        std::memcmp(piece.before.data(), image.data() + piece.front, piece.before.size()) != 0) {
      ADD_FAILURE() << name << ": an input was changed";
      intact = false;
    }
  }
  return intact;
}

}  // namespace gantrain::test
