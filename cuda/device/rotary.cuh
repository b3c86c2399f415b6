// Rotation of pairs of elements, i and i + D / 2 of a head: core/ops/qkv.h.
#pragma once

namespace gantrain::cuda {

// A pair (a, b), rotated; back with -sine. One rounding order wherever it is used.
struct RotatedPair {
  float first, second;
};
__device__ inline RotatedPair rotate(float a, float b, float cosine, float sine) {
  return {fmaf(a, cosine, -(b * sine)), fmaf(b, cosine, a * sine)};
}

}  // namespace gantrain::cuda
