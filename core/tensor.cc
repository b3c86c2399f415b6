#include "core/tensor.h"

namespace gantrain {

std::string to_string(const Shape& shape) {
  std::string s = "(";
  for (int i = 0; i < shape.rank; ++i) s += fmt::format("{}{}", i ? ", " : "", shape[i]);
  return s + ")";
}

}  // namespace gantrain
