#include "cuda/ops/dequantize.h"

#include "cuda/kernels/dequantize.cuh"
#include "cuda/ops/dispatch.cuh"

namespace gantrain {
namespace cuda {
namespace {

constexpr int kThreads = 256;

template <PackedCode kType, typename T>
void run(const Context& context, const void* packed, void* y, int64_t blocks) {
  constexpr int kRun = 4096 / kPackedValues<kType>;
  const bool read = aligned_to(16, packed), write = aligned_to(16, y);
  // One that is not aligned is read, or written, in small pieces whatever the other is: three instances would
  // not pay.
  launch(read && write ? dequantize_kernel<kType, T, true, true, kThreads>
         : write       ? dequantize_kernel<kType, T, false, true, kThreads>
                       : dequantize_kernel<kType, T, false, false, kThreads>,
         blocks_for(blocks, kRun), kThreads, 0, context.stream, static_cast<const unsigned char*>(packed),
         static_cast<T*>(y), blocks);
}

}  // namespace

void dequantize_blocks(const Context& context, PackedType type, const void* packed, DType dtype, void* y,
                       int64_t blocks) {
  with_weights(dtype, [&]<typename T>(Tag<T>) {
    const auto with = [&]<PackedType kType>() {
      constexpr auto kCode = static_cast<PackedCode>(kType);
      static_assert(kPackedValues<kCode> == packed_block(kType).values &&
                    kPackedBytes<kCode> == packed_block(kType).bytes);
      run<kCode, T>(context, packed, y, blocks);
    };
    switch (type) {
      case PackedType::kQ8_0:
        return with.template operator()<PackedType::kQ8_0>();
      case PackedType::kQ4_0:
        return with.template operator()<PackedType::kQ4_0>();
      case PackedType::kQ4_1:
        return with.template operator()<PackedType::kQ4_1>();
      case PackedType::kQ4_K:
        return with.template operator()<PackedType::kQ4_K>();
      case PackedType::kQ6_K:
        return with.template operator()<PackedType::kQ6_K>();
    }
  });
}

}  // namespace cuda

void CudaOps::dequantize(const Dequantize& a) {
  cuda::dequantize_blocks(context_, a.type, a.packed.raw(), a.y.dtype(), a.y.raw(),
                          a.y.count() / packed_block(a.type).values);
}

}  // namespace gantrain
