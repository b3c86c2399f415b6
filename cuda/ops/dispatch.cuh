// From run-time types to template arguments, and whether rows may be read 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/ops.h"
#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/matrix.h"

namespace gantrain::cuda {

template <typename T>
struct Tag {
  using type = T;
};
// f(Tag<T>) for a stored type: f32, bf16 or f16.
template <typename F>
void with_type(DType t, F f) {
  switch (t) {
    case DType::kF32:
      return f(Tag<float>{});
    case DType::kBF16:
      return f(Tag<__nv_bfloat16>{});
    case DType::kF16:
      return f(Tag<__half>{});
    default:
      GT_CHECK(false, "no kernel for {}", dtype_name(t));
  }
}
// f(Tag<T>) for the type of weights and of gradients: f32 or bf16.
template <typename F>
void with_weights(DType t, F f) {
  if (t == DType::kF32)
    f(Tag<float>{});
  else
    f(Tag<__nv_bfloat16>{});
}
// f(Tag<T>, Tag<S>): weights and what is kept beside them (core/ops/qkv.h).
template <typename F>
void with_pair(DType weights, DType kept, F f) {
  if (weights == DType::kF32)
    f(Tag<float>{}, Tag<float>{});
  else if (kept == DType::kBF16)
    f(Tag<__nv_bfloat16>{}, Tag<__nv_bfloat16>{});
  else
    f(Tag<__nv_bfloat16>{}, Tag<__half>{});
}

template <typename T>
const T* raw(const ConstTensor& t) {
  return static_cast<const T*>(t.raw());
}
template <typename T>
T* raw(const Tensor& t) {
  return static_cast<T*>(t.raw());
}

// Whether all of these addresses are multiples of `bytes`.
template <typename... Pointers>
bool aligned_to(uintptr_t bytes, Pointers... p) {
  return ((reinterpret_cast<uintptr_t>(p) % bytes == 0) && ...);
}

// wide(begin, count) for the leading whole vectors of `vector` values where all is aligned to them, and
// narrow(begin, count) for the rest: a second launch only where `count` is no multiple.
template <typename Wide, typename Narrow>
void in_vectors(int64_t count, int64_t vector, bool aligned, Wide wide, Narrow narrow) {
  const int64_t whole = aligned ? count / vector * vector : 0;
  if (whole > 0) wide(int64_t{0}, whole);
  if (whole < count) narrow(whole, count - whole);
}

// How many lanes of a warp share a row of c columns, `vector` at a time, as a power of two: 32, or as few as
// 8 where that leaves less than a twentieth of them idle in the row's last pass and more would not.
inline int log_row_lanes(int64_t c, int64_t vector) {
  const int64_t pieces = (c + vector - 1) / vector;
  for (int log_lanes = 5; log_lanes >= 3; --log_lanes) {
    const int64_t lanes = int64_t{1} << log_lanes, taken = (pieces + lanes - 1) / lanes * lanes;
    if (20 * pieces >= 19 * taken) return log_lanes;
  }
  return 5;
}

// Hands out 256-byte aligned pieces of a scratch tensor; over an empty one it only counts.
class Pieces {
 public:
  Pieces() = default;
  explicit Pieces(const Tensor& scratch) : base_(static_cast<std::byte*>(scratch.raw())) {
    const auto at = reinterpret_cast<uintptr_t>(base_);
    if (base_) base_ += (256 - at % 256) % 256;
  }
  template <typename T>
  T* take(int64_t count) {
    std::byte* p = base_ ? base_ + used_ : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(p);
  }
  // Scratch is 64-byte aligned at least: up to 192 bytes are lost in front.
  int64_t bytes() const { return used_ == 0 ? 0 : used_ + 192; }

 private:
  std::byte* base_ = nullptr;
  int64_t used_ = 0;
};

}  // namespace gantrain::cuda
