// Blocks of quantised weights as GGUF files hold them (llama.cpp's formats): a few values share a scale. A
// row is whole blocks, one behind the other. The formulas stand in docs/kernels/dequant.md.
#pragma once

#include <cstdint>
#include <functional>

namespace gantrain {

enum class PackedType : uint8_t { kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K };

struct PackedBlock {
  const char* name;
  int64_t values, bytes;
};
constexpr PackedBlock packed_block(PackedType t) {
  switch (t) {
    case PackedType::kQ8_0:
      return {"Q8_0", 32, 34};
    case PackedType::kQ4_0:
      return {"Q4_0", 32, 18};
    case PackedType::kQ4_1:
      return {"Q4_1", 32, 20};
    case PackedType::kQ4_K:
      return {"Q4_K", 256, 144};
    case PackedType::kQ6_K:
      return {"Q6_K", 256, 210};
  }
  return {"?", 1, 1};
}
// Bytes of a row of `cols` values, a multiple of the block's.
constexpr int64_t packed_row_bytes(PackedType t, int64_t cols) {
  return cols / packed_block(t).values * packed_block(t).bytes;
}

// out[0 .. blocks * values) = the values of `blocks` blocks that lie one behind the other, at any address.
// Every product of a scale and an integer is exact in f32; the one subtraction or addition of Q4_1 and Q4_K
// rounds once. So all backends give the same bits.
void unpack_blocks(PackedType type, const void* blocks, int64_t count, float* out);

// Rows [begin, begin + rows) of a matrix whose values are packed: `row(i)` is where row `begin + i` lies.
struct PackedRows {
  PackedType type;
  int64_t begin = 0, rows = 0;
  std::function<const void*(int64_t i)> row;
};

}  // namespace gantrain
