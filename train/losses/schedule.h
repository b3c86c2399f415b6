// Values that change over a run: learning rates, alpha, gamma, tau.
#pragma once

#include <cstdint>

#include "train/config.h"

namespace gantrain {

// The value at `step` (counted from 0) of `total`. With `warmup` > 0 it rises linearly over the first steps,
// start * (step + 1) / warmup, so that no step is lost at 0; from there to the last step it goes from start
// to end by cosine or linearly, or stays at start. Beyond `total` it stays where it ended.
double scheduled(Schedule kind, double start, double end, int64_t step, int64_t total, int64_t warmup = 0);

}  // namespace gantrain
