// From a part of a packed matrix to its kernels' arguments.
#pragma once

#include "cuda/kernels/dequantize.cuh"
#include "cuda/runtime/matrix.h"

namespace gantrain::cuda {

// The scales of an NF4 part from block `first` on; of another type nothing that is read.
inline Nf4Tensor nf4_tensor(const PackedPart& part, int64_t first) {
  return {.codes = part.codes + first,
          .steps = part.steps,
          .values = part.values,
          .mean = part.mean,
          .first = first};
}

// f.operator()<PackedCode>() for a type.
template <typename F>
void with_packed(PackedType type, F f) {
  switch (type) {
    case PackedType::kQ8_0:
      return f.template operator()<PackedCode::kQ8_0>();
    case PackedType::kQ4_0:
      return f.template operator()<PackedCode::kQ4_0>();
    case PackedType::kQ4_1:
      return f.template operator()<PackedCode::kQ4_1>();
    case PackedType::kQ4_K:
      return f.template operator()<PackedCode::kQ4_K>();
    case PackedType::kQ6_K:
      return f.template operator()<PackedCode::kQ6_K>();
    case PackedType::kNf4:
      return f.template operator()<PackedCode::kNf4>();
  }
}

}  // namespace gantrain::cuda
