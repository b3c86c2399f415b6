#include "cuda/runtime/tensor_map.h"

#include "cuda/runtime/check.h"

namespace gantrain::cuda {
namespace {

// Of the driver, through the runtime: the program links no driver library.
decltype(&cuTensorMapEncodeTiled) encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  GT_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                           &found));
  if (found != cudaDriverEntryPointSuccess || !function)
    fail(
        "device cuda: the driver has no cuTensorMapEncodeTiled, which a GPU of compute capability 9.0 needs; "
        "install a driver for CUDA 12 or newer");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

CUtensorMap tensor_map(const void* data, const TensorBoxes& b) {
  static const auto encode = encoder();
  uint32_t rank = 0;
  while (rank < 4 && b.extent[rank] > 0) ++rank;
  std::array<cuuint64_t, 4> extent{}, stride{};
  std::array<cuuint32_t, 4> box{}, every = {1, 1, 1, 1};
  for (uint32_t i = 0; i < rank; ++i) {
    extent[i] = static_cast<cuuint64_t>(b.extent[i]);
    box[i] = static_cast<cuuint32_t>(b.box[i]);
    if (i > 0) stride[i - 1] = static_cast<cuuint64_t>(b.stride[i - 1]) * 2;
  }
  const int64_t row = b.box[0] * 2;
  GT_CHECK(row == 64 || row == 128, "a box with rows of {} bytes", row);
  CUtensorMap map{};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<void*>(data), extent.data(),
             stride.data(), box.data(), every.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
             row == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  GT_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error {}, extents {} {} {} {}, boxes {} {} {} {}",
           static_cast<int>(result), b.extent[0], b.extent[1], b.extent[2], b.extent[3], b.box[0], b.box[1],
           b.box[2], b.box[3]);
  return map;
}

}  // namespace gantrain::cuda
