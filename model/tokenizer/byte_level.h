// GPT-2's alphabet for bytes: each of the 256 bytes is one printable character.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace gantrain::byte_level {

// byte -> code point: 33..126, 161..172 and 174..255 are themselves, the n-th other byte is U+0100 + n.
const std::array<uint32_t, 256>& alphabet();

// The bytes as characters of the alphabet.
std::string encode(std::string_view bytes);

// The bytes of a token; a token with a character outside the alphabet is its own text.
std::string decode(std::string_view token);

}  // namespace gantrain::byte_level
