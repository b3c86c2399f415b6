// How the matrices of a base lie in memory: expanded, or in blocks of quantised values (core/packed.h).
#pragma once

#include <cstdint>
#include <memory>

#include "model/weights.h"

namespace gantrain {

enum class BasePacking : uint8_t {
  kAuto,  // as the method wants it; resolved before a model is opened
  kNone,  // every value is expanded to the model's type
  kFile,  // what a file holds packed stays so
  kNf4,   // the same, and what it does not hold packed is quantised: linear layers, not the embedding and the
          // head
  kQ8_0,  // the embedding and the head too
  kQ4_0,
  kQ4_1
};
// What kAuto is where no method says more.
constexpr BasePacking resolved(BasePacking p) { return p == BasePacking::kAuto ? BasePacking::kNone : p; }
inline constexpr const char* kBasePackingNames[] = {"auto", "none", "file", "nf4", "q8_0", "q4_0", "q4_1"};

// The weights as a base of this packing has them: where matrices are quantised, read_rows() gives the values
// that are left, and packed() the blocks. A matrix whose width is no multiple of the block stays as it is.
std::shared_ptr<const Weights> with_packing(std::shared_ptr<const Weights> weights, BasePacking packing);

}  // namespace gantrain
