// Helpers for the contract checks in core/ops/*.cc; nothing else includes this.
#pragma once

#include "core/device.h"
#include "core/ops.h"

namespace gantrain::contract {

// Checks the tensors of one call: `op` and `device` are named in every message. Profilers see the call under
// its name.
class Checker {
 public:
  Checker(const char* op, Device& device) : op_(op), device_(device), range_(device, op) {}

  // A tensor that must be there (unless it has no elements), of this type and shape.
  void tensor(const char* name, const ConstTensor& t, DType dtype, const Shape& shape) const {
    GT_CHECK(!t.empty() || shape.count() == 0, "{}: {} is missing, expected {} {}", op_, name,
             dtype_name(dtype), to_string(shape));
    if (t.empty()) return;
    GT_CHECK(t.dtype() == dtype, "{}: {} is {}, expected {}", op_, name, dtype_name(t.dtype()),
             dtype_name(dtype));
    GT_CHECK(t.shape() == shape, "{}: {} is {}, expected {}", op_, name, to_string(t.shape()),
             to_string(shape));
    GT_CHECK(t.device() == device_.kind(), "{}: {} is on another device than the op", op_, name);
  }
  // A tensor kept from forward for backward: of the weights' type, or f16 beside bf16 weights.
  void kept(const char* name, const ConstTensor& t, DType weights, const Shape& shape) const {
    const bool f16 = weights == DType::kBF16 && !t.empty() && t.dtype() == DType::kF16;
    tensor(name, t, f16 ? DType::kF16 : weights, shape);
  }
  void optional(const char* name, const ConstTensor& t, DType dtype, const Shape& shape) const {
    if (!t.empty()) tensor(name, t, dtype, shape);
  }
  // A stream rounded beside its f32 form, for products with bf16 weights; or empty.
  void rounded(const char* name, const ConstTensor& t, DType weights, const Shape& shape) const {
    GT_CHECK(t.empty() || weights == DType::kBF16, "{}: {} is given beside weights in {}", op_, name,
             dtype_name(weights));
    optional(name, t, DType::kBF16, shape);
  }
  // Gradients of the weights themselves are made beside f32 weights only.
  void trained(DType weights, bool wanted) const {
    GT_CHECK(!wanted || weights == DType::kF32, "{}: gradients of weights in {}, expected f32", op_,
             dtype_name(weights));
  }
  void rank(const char* name, const ConstTensor& t, int rank) const {
    GT_CHECK(t.rank() == rank, "{}: {} is {}, expected {} extents", op_, name, to_string(t.shape()), rank);
  }
  void matrix(const char* name, const FrozenMatrix* m, int64_t rows, int64_t cols) const {
    GT_CHECK(m != nullptr, "{}: {} is missing, expected ({}, {})", op_, name, rows, cols);
    GT_CHECK(m->rows() == rows && m->cols() == cols, "{}: {} is ({}, {}), expected ({}, {})", op_, name,
             m->rows(), m->cols(), rows, cols);
    GT_CHECK(m->device() == device_.kind(), "{}: {} is on another device than the op", op_, name);
  }
  void scratch(const ConstTensor& t, int64_t bytes) const {
    if (bytes == 0) return;
    GT_CHECK(!t.empty() && t.bytes() >= bytes, "{}: scratch has {} bytes, expected {}", op_,
             t.empty() ? 0 : t.bytes(), bytes);
    GT_CHECK(t.device() == device_.kind(), "{}: scratch is on another device than the op", op_);
  }
  void positive(const char* name, double value) const {
    GT_CHECK(value > 0, "{}: {} is {}, expected more than 0", op_, name, value);
  }
  // Every index in [low, high). Looks at the data on the CPU only: there it costs nothing.
  void indices(const char* name, const ConstTensor& t, int64_t low, int64_t high) const {
    if (t.empty() || t.device() != DeviceKind::kCpu) return;
    const int32_t* index = t.data<int32_t>();
    for (int64_t i = 0; i < t.count(); ++i) {
      GT_CHECK(index[i] >= low && index[i] < high, "{}: {}[{}] is {}, expected {} to {}", op_, name, i,
               index[i], low, high - 1);
    }
  }
  // Adapters of a product of `in` inputs and `out` outputs over n rows.
  template <typename Part>
  void lora(std::span<const Part> parts, int64_t n, int64_t in, int64_t out) const {
    for (const Part& p : parts) {
      rank("lora a", p.a, 2);
      rank("lora b", p.b, 2);
      const int64_t r = p.a.dim(0), o = p.b.dim(0);
      GT_CHECK(r > 0, "{}: an adapter of rank 0", op_);
      GT_CHECK(p.first >= 0 && p.first + o <= out, "{}: an adapter of outputs {} to {} of {}", op_, p.first,
               p.first + o, out);
      tensor("lora a", p.a, DType::kF32, {r, in});
      tensor("lora b", p.b, DType::kF32, {o, r});
      tensor("lora z", p.z, DType::kF32, {n, r});
      GT_CHECK(p.dropout >= 0.0f && p.dropout < 1.0f, "{}: an adapter with dropout {}", op_, p.dropout);
      if constexpr (std::is_same_v<Part, LoraPartBackward>) {
        tensor("lora da", p.da, DType::kF32, {r, in});
        tensor("lora db", p.db, DType::kF32, {o, r});
      }
    }
  }
  const char* op() const { return op_; }
  Device& device() const { return device_; }

 private:
  const char* op_;
  Device& device_;
  Range range_;
};

inline int64_t bytes_of(const ConstTensor& t) { return t.empty() ? 0 : t.bytes(); }
inline int64_t bytes_of(const FrozenMatrix* m) {
  if (!m) return 0;
  return m->packed() ? m->bytes() : m->rows() * m->cols() * dtype_size(m->dtype());
}

}  // namespace gantrain::contract
