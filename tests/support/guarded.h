// Device memory for one test. Every tensor has canaries on both sides; outputs start as NaN; inputs are
// compared with what they were. `verify()` (also run by the destructor) reports anything that was touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"

namespace gantrain::test {

class GuardedMemory {
 public:
  // Every tensor but scratch begins `shift` elements behind a multiple of 64 bytes: in the middle of the 16
  // bytes that a kernel likes to take at once, where it is 1.
  explicit GuardedMemory(Device& device, int64_t shift = 0);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  // An input: must be bit-identical afterwards. f32 values are rounded to bf16 or f16 where `dtype` says so.
  ConstTensor input(const std::vector<float>& values, Shape shape, DType dtype = DType::kF32);
  ConstTensor input(const std::vector<int32_t>& values, Shape shape);
  ConstTensor input(const std::vector<int64_t>& values, Shape shape);
  // An output marked `=`: starts as NaN (i32: INT32_MIN).
  Tensor output(Shape shape, DType dtype = DType::kF32);
  // An output marked `+=`: starts as `values`.
  Tensor accumulator(const std::vector<float>& values, Shape shape);
  // Scratch of exactly this size, uninitialised in meaning, 0xff in fact; empty view for 0 bytes.
  Tensor scratch(int64_t bytes);

  // The tensor's values on the host; bf16 and f16 widened.
  std::vector<float> read(ConstTensor tensor);
  std::vector<int32_t> read_ints(ConstTensor tensor);

  // False, with a test failure for each, if a canary or an input changed.
  bool verify();

 private:
  struct Piece;
  Tensor add(const void* values, DType dtype, Shape shape, bool is_input, int64_t shift);
  Device& device_;
  int64_t shift_;
  std::vector<std::unique_ptr<Piece>> pieces_;
};

}  // namespace gantrain::test
