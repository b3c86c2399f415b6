// JSON from files that nobody vouches for.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace gantrain {

// The value of `text`. Throws Error beginning with `where` (a file, or a part of one) if the text is not
// valid JSON, if a key stands twice in one object (the library keeps the last one silently), or if it nests
// deeper than 32 levels (the library copies and prints values by recursion: depth is stack).
nlohmann::json parse_json(std::string_view text, std::string_view where);

// The same for callers with a message of their own: what is wrong ("not valid JSON at line 1, column 5:
// ..."), or "" and the value in `into`. Without `explain`, "not valid JSON" is all that is said of the
// syntax, several times sooner.
std::string read_json(std::string_view text, nlohmann::json& into, bool explain = true);

}  // namespace gantrain
