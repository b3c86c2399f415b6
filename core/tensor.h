// Tensor and ConstTensor: non-owning, dense, row-major views. A view never owns; a Buffer always does.
// Passing a ConstTensor where a Tensor is wanted does not compile: that is how frozen weights stay frozen.
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <string>

#include "core/check.h"
#include "core/dtype.h"

namespace gantrain {

enum class DeviceKind : uint8_t { kCpu, kCuda };

// Up to four extents; rank 0 is a scalar.
struct Shape {
  std::array<int64_t, 4> extent{1, 1, 1, 1};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> e) {
    GT_CHECK(e.size() <= 4, "a shape has at most 4 extents, got {}", e.size());
    for (int64_t x : e) extent[static_cast<size_t>(rank++)] = x;
  }
  int64_t operator[](int i) const { return extent[static_cast<size_t>(i)]; }
  int64_t count() const { return extent[0] * extent[1] * extent[2] * extent[3]; }
  bool operator==(const Shape&) const = default;
};

std::string to_string(const Shape& shape);  // "(3, 576)"

template <bool kConst>
class BasicTensor {
 public:
  using Void = std::conditional_t<kConst, const void, void>;

  BasicTensor() = default;  // the empty view: optional fields of argument structs
  BasicTensor(Void* data, DType dtype, Shape shape, DeviceKind device = DeviceKind::kCpu)
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}
  // Tensor converts to ConstTensor, never the other way.
  template <bool kOther, typename = std::enable_if_t<kConst && !kOther>>
  BasicTensor(const BasicTensor<kOther>& other)  // NOLINT: implicit on purpose
      : data_(other.raw()), shape_(other.shape()), dtype_(other.dtype()), device_(other.device()) {}

  bool empty() const { return data_ == nullptr; }
  explicit operator bool() const { return data_ != nullptr; }
  Void* raw() const { return data_; }
  template <typename T>
  std::conditional_t<kConst, const T, T>* data() const {
    GT_CHECK(dtype_of<T>::value == dtype_, "tensor holds {}, asked for {}", dtype_name(dtype_),
             dtype_name(dtype_of<T>::value));
    return static_cast<std::conditional_t<kConst, const T, T>*>(data_);
  }
  DType dtype() const { return dtype_; }
  DeviceKind device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t count() const { return shape_.count(); }
  int64_t bytes() const { return count() * dtype_size(dtype_); }

  // Rows [begin, begin + n) of the first extent.
  BasicTensor rows(int64_t begin, int64_t n) const {
    GT_CHECK(begin >= 0 && n >= 0 && begin + n <= dim(0), "rows [{}, {}) of {}", begin, begin + n,
             to_string(shape_));
    Shape s = shape_;
    s.extent[0] = n;
    using Byte = std::conditional_t<kConst, const std::byte, std::byte>;
    const int64_t row_bytes = dim(0) == 0 ? 0 : bytes() / dim(0);
    return BasicTensor(static_cast<Byte*>(data_) + begin * row_bytes, dtype_, s, device_);
  }
  // The same bytes seen with another shape of equal count.
  BasicTensor view(Shape s) const {
    GT_CHECK(s.count() == count(), "view {} of {}", to_string(s), to_string(shape_));
    return BasicTensor(data_, dtype_, s, device_);
  }

 private:
  Void* data_ = nullptr;
  Shape shape_{};
  DType dtype_ = DType::kF32;
  DeviceKind device_ = DeviceKind::kCpu;
};

using Tensor = BasicTensor<false>;
using ConstTensor = BasicTensor<true>;

}  // namespace gantrain
