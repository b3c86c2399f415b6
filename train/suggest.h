// "Did you mean": the nearest known word, for unknown keys, flags, verbs and columns.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gantrain {

// Edits (insert, delete, replace, swap of neighbours) that turn one word into the other: the optimal string
// alignment distance.
int edit_distance(std::string_view a, std::string_view b);

// The known word nearest to `word`, or "" when none is near enough: at most a third of the longer word's
// letters changed. A dotted key also matches by its last part, so `batch` finds `train.batch`.
std::string nearest(std::string_view word, std::span<const std::string> known);

// "; did you mean 'x'?" or "".
std::string did_you_mean(std::string_view word, std::span<const std::string> known);

}  // namespace gantrain
