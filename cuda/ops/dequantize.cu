#include "cuda/ops/dequantize.h"

#include <algorithm>
#include "cuda/kernels/dequantize.cuh"

#include "cuda/ops/dispatch.cuh"
#include "cuda/ops/packed_parts.cuh"

namespace gantrain {
namespace cuda {
namespace {

constexpr int kThreads = 256;

template <PackedType kType>
constexpr bool same_block() {
  constexpr auto kCode = static_cast<PackedCode>(kType);
  return kPackedValues<kCode> == packed_block(kType).values &&
         kPackedBytes<kCode> == packed_block(kType).bytes;
}
static_assert(same_block<PackedType::kQ8_0>() && same_block<PackedType::kQ4_0>() &&
              same_block<PackedType::kQ4_1>() && same_block<PackedType::kQ4_K>() &&
              same_block<PackedType::kQ6_K>() && same_block<PackedType::kNf4>());
constexpr bool same_table() {
  for (int i = 0; i < 16; ++i)
    if (nf4_value(i) != kNf4Values[i]) return false;
  return true;
}
static_assert(same_table());

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

void dequantize_nf4(const Context& context, const void* packed, const Nf4Tensor& tensor, DType dtype, void* y,
                    int64_t blocks) {
  with_weights(dtype, [&]<typename T>(Tag<T>) {
    launch(aligned_to(16, y) ? dequantize_nf4_kernel<T, true, kThreads>
                             : dequantize_nf4_kernel<T, false, kThreads>,
           blocks_for(blocks * 8, kThreads), kThreads, 0, context.stream,
           static_cast<const unsigned char*>(packed), tensor, static_cast<T*>(y), blocks * 8);
  });
}

}  // namespace

void dequantize_blocks(const Context& context, PackedType type, const void* packed, DType dtype, void* y,
                       int64_t blocks) {
  with_weights(dtype, [&]<typename T>(Tag<T>) {
    with_packed(type, [&]<PackedCode kCode>() {
      if constexpr (kCode == PackedCode::kNf4)
        GT_CHECK(false, "NF4 blocks have their scales beside them: dequantize_nf4");
      else
        run<kCode, T>(context, packed, y, blocks);
    });
  });
}

void expand_weights(const Context& context, const FrozenMatrix& w, int64_t begin, int64_t rows) {
  if (!w.packed()) return;
  const CudaMatrix& m = as_cuda(w);
  const int64_t end = rows == 0 ? m.rows() : begin + rows;
  auto* to = static_cast<std::byte*>(const_cast<void*>(m.data()));
  for (const PackedPart& part : m.parts()) {
    const int64_t from = std::max(begin, part.begin), upto = std::min(end, part.begin + part.rows);
    if (from >= upto) continue;
    const int64_t row_blocks = m.cols() / packed_block(part.type).values,
                  first = (from - part.begin) * row_blocks, blocks = (upto - from) * row_blocks;
    const unsigned char* packed = part.blocks + first * packed_block(part.type).bytes;
    void* y = to + (from - begin) * m.cols() * dtype_size(m.dtype());
    if (part.type == PackedType::kNf4)
      dequantize_nf4(context, packed, nf4_tensor(part, first), m.dtype(), y, blocks);
    else
      dequantize_blocks(context, part.type, packed, m.dtype(), y, blocks);
  }
}

}  // namespace cuda

void CudaOps::dequantize(const Dequantize& a) {
  if (a.type == PackedType::kNf4) {
    const cuda::Nf4Tensor tensor{.codes = cuda::raw<unsigned char>(a.codes),
                                 .steps = cuda::raw<float>(a.steps),
                                 .values = cuda::raw<float>(a.values),
                                 .mean = a.mean,
                                 .first = a.first};
    return cuda::dequantize_nf4(context_, a.packed.raw(), tensor, a.y.dtype(), a.y.raw(), a.y.count() / 64);
  }
  cuda::dequantize_blocks(context_, a.type, a.packed.raw(), a.y.dtype(), a.y.raw(),
                          a.y.count() / packed_block(a.type).values);
}

}  // namespace gantrain
