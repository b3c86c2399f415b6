// Tensor maps: how the tensor memory accelerator (compute capability 9.0) reads boxes of a bf16 tensor into
// shared memory. Made on the host by the driver, in under a microsecond, and handed to a kernel by value.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

namespace gantrain::cuda {

// Up to four dimensions, the innermost first; those not named are of one.
struct TensorBoxes {
  std::array<int64_t, 4> extent = {};  // values
  std::array<int64_t, 3> stride = {};  // values, from a place to the next in the second dimension and on
  std::array<int64_t, 4> box = {};  // at most 256 each; a row of 64 or 128 bytes, which the copy swizzles so
};
// `data` and all strides are multiples of 16 bytes. Throws Error where the driver makes none.
CUtensorMap tensor_map(const void* data, const TensorBoxes& boxes);

}  // namespace gantrain::cuda
