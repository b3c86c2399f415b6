// The two players' losses as their papers write them; every seed is checked against the derivative of these.
#pragma once

#include <cstddef>
#include <vector>

#include "tests/reference/scalar.h"

namespace gantrain::reference {

template <typename T, typename Index>
std::vector<T> segment_mean(const std::vector<T>& x, const std::vector<Index>& offsets, size_t width) {
  std::vector<T> y;
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    for (size_t j = 0; j < width; ++j) {
      T sum(0.0);
      for (Index r = offsets[s]; r < offsets[s + 1]; ++r) sum += x[static_cast<size_t>(r) * width + j];
      y.push_back(sum / static_cast<double>(offsets[s + 1] - offsets[s]));
    }
  return y;
}

enum class PairKind { kRelativistic, kBce, kHinge };

// Discriminator's loss. Relativistic pairing: Jolicoeur-Martineau 1807.00734, Huang et al. 2501.05441.
// Empty noisy copies: no gradient penalty.
template <typename T>
T pair_loss(PairKind kind, const std::vector<T>& dr, const std::vector<T>& df, const std::vector<T>& dr_noisy,
            const std::vector<T>& df_noisy, double lam, double center, double smooth) {
  T sum(0.0);
  for (size_t i = 0; i < dr.size(); ++i) {
    if (kind == PairKind::kRelativistic) sum += softplus(-(dr[i] - df[i]));
    if (kind == PairKind::kBce)
      sum += (1.0 - smooth) * softplus(-dr[i]) + smooth * softplus(dr[i]) + softplus(df[i]);
    if (kind == PairKind::kHinge) {
      if (real_part(dr[i]) < 1.0) sum += T(1.0) - dr[i];
      if (real_part(df[i]) > -1.0) sum += T(1.0) + df[i];
    }
    if (!dr_noisy.empty()) sum += lam * (square(dr[i] - dr_noisy[i]) + square(df[i] - df_noisy[i]));
    sum += center * (square(dr[i]) + square(df[i]));
  }
  return sum / static_cast<double>(dr.size());
}

// Generator's adversarial loss; dr is a constant.
template <typename T>
T generator_pair_loss(PairKind kind, const std::vector<T>& dr, const std::vector<T>& df) {
  T sum(0.0);
  for (size_t i = 0; i < df.size(); ++i) {
    if (kind == PairKind::kRelativistic) sum += softplus(-(df[i] - dr[i]));
    if (kind == PairKind::kBce) sum += softplus(-df[i]);
    if (kind == PairKind::kHinge) sum -= df[i];
  }
  return sum / static_cast<double>(df.size());
}

// weight * log(rms(x) / reference)^2
template <typename T>
T rms_penalty(const std::vector<T>& x, double reference, double weight) {
  T sum(0.0);
  for (const T& v : x) sum += v * v;
  return weight * square(std::log(std::sqrt(sum / static_cast<double>(x.size())) / reference));
}

}  // namespace gantrain::reference
