// A low-rank adapter (Hu et al., arXiv:2106.09685) as what it is to a matrix: W + scale * B A on some rows.
#pragma once

#include <cstddef>
#include <vector>

namespace gantrain::reference {

// w (., in) with scale * b (out, rank) a (rank, in) added to rows first .. first + out - 1.
template <typename T>
std::vector<T> merged(std::vector<T> w, const std::vector<T>& a, const std::vector<T>& b, double scale,
                      size_t first, size_t in, size_t rank) {
  const size_t out = b.size() / rank;
  for (size_t o = 0; o < out; ++o)
    for (size_t i = 0; i < in; ++i)
      for (size_t r = 0; r < rank; ++r) w[(first + o) * in + i] += scale * b[o * rank + r] * a[r * in + i];
  return w;
}

}  // namespace gantrain::reference
