// Packed rows to values: core/packed.h. Forward only, for frozen weights. A caller may pass any run of rows
// of a matrix: a tile of rows into scratch, before a product that reads it.
#pragma once

#include "core/device.h"
#include "core/packed.h"

namespace gantrain {

struct Dequantize {
  ConstTensor packed;  // (N, packed_row_bytes(type, C)) u8, at an even address
  PackedType type;
  Tensor y;  // (N, C) f32 or bf16 (rounded once to nearest even)  =
};

void dequantize(Device&, const Dequantize&);
int64_t dequantize_bytes(const Dequantize&);

}  // namespace gantrain
