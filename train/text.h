// Text from outside: reading files with a bound, UTF-8.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace gantrain {

// The whole file. Throws Error naming the file and the system's reason when it cannot be read, is no regular
// file, or is larger than `limit` bytes.
std::string read_text_file(const std::filesystem::path& file, int64_t limit);

// The offset of the first byte that is no valid UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing
// past U+10FFFF), or std::string::npos.
size_t find_bad_utf8(std::string_view text);

// Latin-1 to UTF-8: every byte is one character.
std::string latin1_to_utf8(std::string_view text);

// The words with `between` between them.
std::string join(const std::vector<std::string>& words, std::string_view between);
// "gantrain WORD ...", each word quoted where a shell would take it apart.
std::string shell_line(const std::vector<std::string>& words);

}  // namespace gantrain
