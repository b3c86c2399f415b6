// Files that a test holds in memory.
#pragma once

#include <span>
#include <string>

namespace gantrain {

// From now on a MappedFile of `path`, spelled just so, is a copy of these bytes, and the system is asked for
// nothing. The bytes are the caller's and must stay until the next call for this path or the last reading.
// Only where a file is copied anyway, under the address sanitizer; elsewhere it does nothing and says false.
// One thread only.
bool hold_in_memory(const std::string& path, std::span<const unsigned char> bytes);

}  // namespace gantrain
