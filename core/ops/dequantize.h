// Packed rows to values: core/packed.h. Forward only, for frozen weights. A caller may pass any run of rows
// of a matrix: a tile of rows into scratch, before a product that reads it.
#pragma once

#include "core/device.h"
#include "core/packed.h"

namespace gantrain {

struct Dequantize {
  ConstTensor packed;  // (N, packed_row_bytes(type, C)) u8, at an even address; NF4: a multiple of 4
  PackedType type;
  Tensor y;  // (N, C) f32 or bf16 (rounded once to nearest even)  =
  // NF4 alone: the scales of these blocks (core/packed.h), of which the first is `first` in its tensor.
  ConstTensor codes{};   // (N * C / 64) u8
  ConstTensor steps{};   // (blocks of the tensor / 256, rounded up) f32
  ConstTensor values{};  // (256) f32: nf4_scale_values()
  float mean = 0.0f;
  int64_t first = 0;
};

void dequantize(Device&, const Dequantize&);
int64_t dequantize_bytes(const Dequantize&);

}  // namespace gantrain
