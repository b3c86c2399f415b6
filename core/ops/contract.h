// Contract checks shared by core/ops/*.cc: shape, type and device of every tensor of an argument struct, once
// for all backends. A broken contract names the op, the field, what was expected and what came.
#pragma once

#include "core/device.h"
#include "core/tensor.h"

namespace gantrain {

// `t` is there (or holds no element), of this type and shape, and lives on `device`.
inline void expect_tensor(const Device& device, const char* op, const char* field, ConstTensor t, DType dtype,
                          const Shape& shape) {
  GT_CHECK(t.dtype() == dtype && t.shape() == shape, "{}: {} is {} {}, expected {} {}", op, field,
           dtype_name(t.dtype()), to_string(t.shape()), dtype_name(dtype), to_string(shape));
  GT_CHECK(!t.empty() || shape.count() == 0, "{}: {} is missing", op, field);
  GT_CHECK(t.empty() || t.device() == device.kind(), "{}: {} lives on another device than the op runs on", op,
           field);
}

// The same for an optional field: the empty view is fine.
inline void expect_optional(const Device& device, const char* op, const char* field, ConstTensor t,
                            DType dtype, const Shape& shape) {
  if (!t.empty()) expect_tensor(device, op, field, t, dtype, shape);
}

// `t` is there and has `rank` extents; its shape then sets what the other fields are expected to be.
inline void expect_rank(const char* op, const char* field, ConstTensor t, int rank) {
  GT_CHECK(t.rank() == rank, "{}: {} is {}, expected {} extents", op, field, to_string(t.shape()), rank);
}

}  // namespace gantrain
