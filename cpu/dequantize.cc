#include <algorithm>

#include "cpu/cpu_ops.h"
#include "cpu/rows.h"

namespace gantrain {

void CpuOps::dequantize(const Dequantize& a) {
  const PackedBlock block = packed_block(a.type);
  const int64_t c = a.y.dim(1), blocks = c / block.values, row_bytes = packed_row_bytes(a.type, c);
  const auto* packed = static_cast<const std::byte*>(a.packed.raw());
  const int64_t grain = std::clamp<int64_t>((1 << 16) / c, 1, a.y.dim(0));
  pool_.parallel_ranges(a.y.dim(0), grain, [&](int64_t begin, int64_t end) {
    const std::byte* from = packed + begin * row_bytes;
    if (a.y.dtype() == DType::kF32) {
      unpack_blocks(a.type, from, (end - begin) * blocks, a.y.data<float>() + begin * c);
    } else {
      float* values = thread_scratch(0, (end - begin) * c);
      unpack_blocks(a.type, from, (end - begin) * blocks, values);
      convert_to_bf16(values, a.y.data<bf16>() + begin * c, (end - begin) * c);
    }
  });
}

}  // namespace gantrain
