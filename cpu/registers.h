// For the inner loops of products.
#pragma once

namespace gantrain {

// The vector x in a register from here on: g++ would put its load into each product that reads it, and then
// there are more loads than products.
template <typename Vector>
inline Vector in_register(Vector x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#endif
  return x;
}

}  // namespace gantrain
