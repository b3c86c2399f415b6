// FNV-1a with 64 bits (Fowler, Noll and Vo): a hash against accidents, not against an enemy. Its values stand
// in checkpoints and decide splits, so they are the same in every version.
#pragma once

#include <cstdint>
#include <string_view>

namespace gantrain {

struct Digest {
  uint64_t value = 0xcbf29ce484222325ull;
  // A byte; or a wider word in one step, which is not what its bytes one by one would give.
  constexpr void add(uint64_t word) { value = (value ^ word) * 0x100000001b3ull; }
  constexpr void add_bytes(std::string_view bytes) {
    for (const char c : bytes) add(static_cast<unsigned char>(c));
  }
};

}  // namespace gantrain
