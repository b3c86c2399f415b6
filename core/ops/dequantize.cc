#include "core/ops/dequantize.h"

#include "core/ops/contract.h"

namespace gantrain {

void dequantize(Device& device, const Dequantize& a) {
  const contract::Checker check("dequantize", device);
  const PackedBlock block = packed_block(a.type);
  check.rank("y", a.y, 2);
  const int64_t n = a.y.dim(0), c = a.y.dim(1);
  GT_CHECK(c % block.values == 0, "dequantize: {} columns of y, expected a multiple of {}'s block of {}", c,
           block.name, block.values);
  check.tensor("packed", a.packed, DType::kU8, {n, packed_row_bytes(a.type, c)});
  const bool bf16 = !a.y.empty() && a.y.dtype() == DType::kBF16;
  check.tensor("y", a.y, bf16 ? DType::kBF16 : DType::kF32, {n, c});
  if (a.type == PackedType::kNf4) {
    const int64_t blocks = n * c / block.values;
    check.rank("steps", a.steps, 1);
    check.tensor("codes", a.codes, DType::kU8, {blocks});
    check.tensor("steps", a.steps, DType::kF32, {a.steps.dim(0)});
    check.tensor("values", a.values, DType::kF32, {256});
    GT_CHECK(a.first >= 0 && (a.first + blocks + kNf4Group - 1) / kNf4Group <= a.steps.dim(0),
             "dequantize: {} steps for blocks {} to {}", a.steps.dim(0), a.first, a.first + blocks);
  }
  if (a.y.count() == 0) return;
  const uintptr_t alignment = a.type == PackedType::kNf4 ? 4 : 2;
  GT_CHECK(reinterpret_cast<uintptr_t>(a.packed.raw()) % alignment == 0,
           "dequantize: packed is not at a multiple of {} bytes", alignment);
  device.ops().dequantize(a);
}

int64_t dequantize_bytes(const Dequantize& a) {
  return contract::bytes_of(a.packed) + contract::bytes_of(a.y) + contract::bytes_of(a.codes);
}

}  // namespace gantrain
