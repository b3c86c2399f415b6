// For tests: whether a contract broke on the way, whoever caught its Error and whatever was made of its
// words.
#pragma once

#include <cstdint>

namespace gantrain {

// How often a GT_CHECK has failed in this process. Any thread.
int64_t broken_contracts();

}  // namespace gantrain
