// Tokens that stand for one byte.
#pragma once

#include <string_view>

namespace gantrain {

// The byte that a token "<0x00>" to "<0xFF>" stands for, -1 for any other. Its digits are capitals.
inline int byte_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

}  // namespace gantrain
