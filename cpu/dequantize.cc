#include <algorithm>

#include "cpu/cpu_ops.h"
#include "cpu/rows.h"

namespace gantrain {

void CpuOps::dequantize(const Dequantize& a) {
  const PackedBlock block = packed_block(a.type);
  const int64_t c = a.y.dim(1), blocks = c / block.values, row_bytes = packed_row_bytes(a.type, c);
  const auto* packed = static_cast<const std::byte*>(a.packed.raw());
  const auto unpack = [&](int64_t row, int64_t rows, float* to) {
    const std::byte* from = packed + row * row_bytes;
    if (a.type != PackedType::kNf4) return unpack_blocks(a.type, from, rows * blocks, to);
    unpack_nf4(from,
               {.codes = a.codes.data<uint8_t>() + row * blocks,
                .values = a.values.data<float>(),
                .steps = a.steps.data<float>(),
                .mean = a.mean,
                .first = a.first + row * blocks},
               rows * blocks, to);
  };
  const int64_t grain = std::clamp<int64_t>((1 << 16) / c, 1, a.y.dim(0));
  pool_.parallel_ranges(a.y.dim(0), grain, [&](int64_t begin, int64_t end) {
    if (a.y.dtype() == DType::kF32) {
      unpack(begin, end - begin, a.y.data<float>() + begin * c);
    } else {
      float* values = thread_scratch(0, (end - begin) * c);
      unpack(begin, end - begin, values);
      convert_to_bf16(values, a.y.data<bf16>() + begin * c, (end - begin) * c);
    }
  });
}

}  // namespace gantrain
