// Blocks of quantised weights: a few values share a scale. A row is whole blocks, one behind the other. Q and
// K types are as GGUF files hold them (llama.cpp's formats); NF4 is QLoRA's (Dettmers et al.,
// arXiv:2305.14314) with its second quantisation, in bitsandbytes' layout. The formulas stand in
// docs/kernels/dequant.md.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace gantrain {

enum class PackedType : uint8_t { kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K, kNf4 };

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
    case PackedType::kNf4:
      return {"NF4", 64, 32};  // and a byte in Nf4Scales
  }
  return {"?", 1, 1};
}
// Bytes of a row of `cols` values, a multiple of the block's.
constexpr int64_t packed_row_bytes(PackedType t, int64_t cols) {
  return cols / packed_block(t).values * packed_block(t).bytes;
}

// out[0 .. blocks * values) = the values of `blocks` blocks that lie one behind the other, at any address;
// any type but NF4. Every product of a scale and an integer is exact in f32; the one subtraction or addition
// of Q4_1 and Q4_K rounds once. So all backends give the same bits.
void unpack_blocks(PackedType type, const void* blocks, int64_t count, float* out);

// Values to blocks of Q8_0, Q4_0 or Q4_1, rounded as the gguf package rounds them.
void pack_blocks(PackedType type, const float* values, int64_t count, void* blocks);

// NF4: value i of block b is kNf4Values[q] * scale(b), q four bits: those of value 2j above those of 2j + 1
// in byte j. The scales are quantised again:
//   scale(b) = values[codes[b]] * steps[b / 256] + mean
// with both operations rounded to f32. b counts the blocks of a whole tensor, row by row.
constexpr int64_t kNf4Group = 256;  // scales that share a step
inline constexpr float kNf4Values[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
// The 256 values of a scale's code, ascending: 0, 1, and for each decade 10^-6 ... 10^0 twice as many as for
// the one below it, equally spaced in it, of both signs (Dettmers, arXiv:1511.04561: dynamic tree
// quantisation).
const float* nf4_scale_values();

// The scales of a tensor's blocks, or of some of them: `first` is the number of the first in its tensor.
struct Nf4Scales {
  const uint8_t* codes = nullptr;
  const float* values = nf4_scale_values();
  const float* steps = nullptr;  // of the whole tensor
  float mean = 0.0f;
  int64_t first = 0;
};
float nf4_scale(const Nf4Scales& scales, int64_t block);
void unpack_nf4(const void* blocks, const Nf4Scales& scales, int64_t count, float* out);

// Quantises a tensor's scales: as many as it has blocks.
struct Nf4Quantised {
  std::vector<uint8_t> codes;
  std::vector<float> steps;
  float mean = 0.0f;
};
Nf4Quantised quantise_nf4_scales(const std::vector<float>& scales);
// Values to NF4 blocks, and the scale of each in f32: the largest magnitude in it.
void pack_nf4(const float* values, int64_t count, void* blocks, float* scales);

// Rows [begin, begin + rows) of a matrix whose values are packed: `row(i)` is where row `begin + i` lies; it
// may make the row, and then the bytes are there until the calling thread asks for its next one. Thread-safe.
struct PackedRows {
  PackedType type;
  int64_t begin = 0, rows = 0;
  std::function<const void*(int64_t i)> row;
  std::function<Nf4Quantised()> scales{};  // NF4: may be asked for once every row was
};

}  // namespace gantrain
