// The few functions of the driver that a runtime program asks for by name.
#include <cuda.h>
#include <fmt/format.h>

#include <cstring>
#include <iterator>

#include "cuda/softgpu/tensor_map.h"

namespace softgpu {
namespace {

CUresult refuse(const char* what) {
  fmt::print(stderr, "softgpu: cuTensorMapEncodeTiled: {}\n", what);
  return CUDA_ERROR_INVALID_VALUE;
}

// Restrictions from the CUDA Driver API documentation of cuTensorMapEncodeTiled.
CUresult encode_tiled(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  static constexpr uint32_t sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  if (!out || reinterpret_cast<uintptr_t>(out) % 64)
    return refuse("the tensor map must be aligned to 64 bytes");
  if (static_cast<size_t>(type) >= std::size(sizes)) return refuse("data type not supported");
  if (rank < 1 || rank > 5) return refuse("the rank must be 1 to 5");
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return refuse("interleaved layouts are not supported");
  if (!address || reinterpret_cast<uintptr_t>(address) % 16)
    return refuse("the global address must be aligned to 16 bytes");
  TensorMap m{};
  m.magic = TensorMap::kMagic;
  m.address = reinterpret_cast<uint64_t>(address);
  m.rank = rank;
  m.element = static_cast<uint8_t>(sizes[type]);
  m.is_float = type >= CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  if (swizzle > 3) return refuse("swizzle mode not supported");
  m.swizzle = static_cast<uint8_t>(swizzle & 7);
  m.nan_fill = fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
  for (uint32_t i = 0; i < rank; ++i) {
    if (dims[i] == 0 || dims[i] > (uint64_t{1} << 32)) return refuse("a dimension must be 1 to 2^32");
    if (box[i] == 0 || box[i] > 256) return refuse("a box dimension must be 1 to 256");
    if (element_strides[i] != 1) return refuse("element strides other than 1 are not supported");
    m.dims_low[i] = static_cast<uint32_t>(dims[i] - 1), m.box[i] = static_cast<uint16_t>(box[i]);
    if (i == 0) continue;
    if (strides[i - 1] % 16 || strides[i - 1] >= (uint64_t{1} << 40))
      return refuse("a stride must be a multiple of 16 and below 2^40");
    m.strides[i] = strides[i - 1];
  }
  const uint64_t inner = uint64_t{box[0]} * m.element;
  if (inner % 16) return refuse("the inner box dimension must be a multiple of 16 bytes");
  static constexpr uint64_t spans[] = {UINT64_MAX, 32, 64, 128};
  if (inner > spans[m.swizzle]) return refuse("the inner box dimension exceeds the swizzle's span");
  std::memset(out, 0, sizeof *out);
  std::memcpy(out, &m, sizeof m);
  return CUDA_SUCCESS;
}

CUresult error_string(CUresult, const char** s) {
  *s = "error of the driver stand-in (see standard error)";
  return CUDA_SUCCESS;
}

}  // namespace

void* driver_function(const char* name) {
  if (!std::strcmp(name, "cuTensorMapEncodeTiled")) return reinterpret_cast<void*>(encode_tiled);
  if (!std::strcmp(name, "cuGetErrorString") || !std::strcmp(name, "cuGetErrorName"))
    return reinterpret_cast<void*>(error_string);
  return nullptr;
}

}  // namespace softgpu
