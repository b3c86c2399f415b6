// CRC-32C (Castagnoli; RFC 3720 appendix B.4): checks checkpoints, and frames TensorBoard's records.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace gantrain {

// The checksum of `size` more bytes, going on from `before` (0 to start).
uint32_t crc32c(const void* data, size_t size, uint32_t before = 0);
inline uint32_t crc32c(std::string_view text, uint32_t before = 0) {
  return crc32c(text.data(), text.size(), before);
}

}  // namespace gantrain
