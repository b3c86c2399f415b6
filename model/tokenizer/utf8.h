// UTF-8, byte by byte: validity, walking over characters, and the two ways of making invalid bytes printable.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace gantrain::utf8 {

// The length 1..4 of the valid character (RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF)
// that starts at `at`; 0 where there is none.
int length_at(std::string_view text, size_t at);

// The offset of the first byte that starts no valid character, or npos.
size_t find_invalid(std::string_view text);

// The character at `at`, which must be valid; moves `at` behind it.
uint32_t next(std::string_view text, size_t& at);

void append(std::string& out, uint32_t code_point);

// Every maximal invalid part becomes one U+FFFD, as in Rust's from_utf8_lossy and Python's errors="replace".
std::string lossy(std::string_view bytes);

inline constexpr std::string_view kReplacement = "\xef\xbf\xbd";

}  // namespace gantrain::utf8
