// What the 128 bytes of a CUtensorMap hold here (NVIDIA's own layout is not public; programs treat it as
// opaque).
#pragma once

#include <cstdint>

namespace softgpu {

struct TensorMap {
  static constexpr uint32_t kMagic = 0x50414d54;  // "TMAP"
  uint32_t magic;
  uint32_t rank;
  uint64_t address;
  uint64_t strides[5];  // bytes; strides[0] unused
  uint32_t dims_low[5];
  uint16_t box[5];
  uint8_t element;      // bytes
  uint8_t swizzle : 3;  // 0 none, 1 32 bytes, 2 64 bytes, 3 128 bytes
  uint8_t is_float : 1;
  uint8_t nan_fill : 1;
  uint64_t dim(uint32_t i) const { return uint64_t{dims_low[i]} + 1; }
};
static_assert(sizeof(TensorMap) <= 128);

}  // namespace softgpu
